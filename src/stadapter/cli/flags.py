"""Flags that are a settings class."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro
from docstring_parser.attrdoc import AttributeDocstrings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")


def parse(kind: type[Settings], prog: str, arguments: Sequence[str]) -> Settings:
    """Settings from flags; what the class itself refuses is raised as it is, and so told as every other error.

    Raises:
        SettingsError: settings that the class refuses.
    """
    flags: Any = tyro.cli(flags_class(kind), prog=prog, args=arguments)
    return kind(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(kind)})


def flags_class(
    kind: "type[DataclassInstance]", *, purpose: str | None = None, more: Sequence[tuple[str, Any]] = ()
) -> type[Any]:
    """A subclass whose values are not checked, for tyro to fill.

    Args:
        kind: the settings; the docstring of each is the help of its flag, in a paragraph: tyro would end its lines
            where they end in the source.
        purpose: what the verb does; default the class' own docstring.
        more: names and types of flags beside those of the settings, or in place of some.
    """
    told = {name: " ".join(text.split()) for name, (text, *_) in AttributeDocstrings().get_attr_docs(kind).items()}
    told = {name: text for name, text in told.items() if name not in dict(more)}
    parameters = [f":param {name}: {text}" for name, text in told.items()]
    return dataclasses.make_dataclass(
        kind.__name__,
        more,
        bases=(kind,),
        namespace={
            "__post_init__": lambda flags: None,
            "__doc__": "\n".join([purpose or inspect.getdoc(kind) or "", "", *parameters]),
        },
        frozen=True,
        kw_only=True,
    )
