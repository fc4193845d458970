"""Command-line flags made from a settings class."""

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
    """Settings from flags; what the class itself refuses is raised unchanged, and so reported like every other error.

    Raises:
        SettingsError: the class refuses the settings.
    """
    return kind(**vars(tyro.cli(flags_class(kind), prog=prog, args=arguments)))


def flags_class(
    kind: "type[DataclassInstance]", *, purpose: str | None = None, more: Sequence[tuple[str, Any]] = ()
) -> type[Any]:
    """A subclass whose values are not checked, for tyro to fill.

    Args:
        kind: the settings; the docstring of each is the help of its flag, as one paragraph: tyro would break its lines
            where they break in the source.
        purpose: what the verb does; default the class's own docstring.
        more: names and types of flags in addition to those of the settings, or replacing some.
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
