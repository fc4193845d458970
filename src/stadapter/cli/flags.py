"""Flags that are a settings class."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def parse(kind: type[Settings], prog: str, arguments: Sequence[str]) -> Settings:
    """Settings from flags; what the class itself refuses is raised as it is, and so told as every other error.

    Raises:
        SettingsError: settings that the class refuses.
    """
    namespace = {"__post_init__": lambda flags: None, "__doc__": kind.__doc__}
    unchecked = dataclasses.make_dataclass(kind.__name__, [], bases=(kind,), namespace=namespace, frozen=True)
    flags: Any = tyro.cli(unchecked, prog=prog, args=arguments)
    return kind(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(kind)})
