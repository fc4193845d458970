"""Settings dataclasses: checking fields against their annotations, and reading them back from JSON."""

import dataclasses
import math
import numbers
import os
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stadapter.errors import SettingsError

T = TypeVar("T")


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from its fields as they are in JSON, which has lists but no tuples.

    Raises:
        TypeError: an unknown field, or a missing one.
    """
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in dict(values).items()})


def known_from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """The same, without the fields that only a later version of this program knows.

    Raises:
        TypeError: a missing field.
    """
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    return from_json(kind, {name: value for name, value in dict(values).items() if name in names})


def check_types(settings: Any) -> None:
    """Refuse a setting whose type is not that of its field, before it causes trouble far from here.

    For the `__post_init__` of a dataclass: numpy numbers become Python's own, and lists become tuples where those are
    expected. Supported are int, float, bool, str, classes, and literals, unions, tuples and dicts of these; any other
    annotation, such as a protocol, is not checked.

    Raises:
        SettingsError: the first such setting, by its name.

    >>> @dataclasses.dataclass
    ... class Size:
    ...     height: int = 1
    >>> check_types(Size(height=1.5))
    Traceback (most recent call last):
    stadapter.errors.SettingsError: height 1.5: expected a whole number
    """
    try:
        hints = get_type_hints(type(settings))
    except NameError:  # names that exist only for type checkers
        return
    for field in dataclasses.fields(settings):
        given, hint = getattr(settings, field.name), hints[field.name]
        value = _plain(given, hint)
        value = value if _fits(value, hint) else _as_text(value)
        if value is not given:
            object.__setattr__(settings, field.name, value)
        if not _fits(value, hint):
            raise SettingsError(f"{field.name} {value!r}: expected {_described(hint)}")


Limits = Mapping[str, tuple[float, float]]
"""The lowest and the highest value of settings, both allowed, by their names; math.inf where there is no highest."""


def check_limits(settings: Any, limits: Limits, *, below: Collection[str] = ()) -> None:
    """Refuse a number outside its limits; None, which stands for a default, and numbers without limits pass.

    Args:
        settings: a dataclass whose types have been checked.
        limits: of some of its fields.
        below: fields whose highest value is not allowed.

    Raises:
        SettingsError: the first such number, by the name of its setting.

    >>> @dataclasses.dataclass
    ... class Dropout:
    ...     rate: float
    >>> check_limits(Dropout(rate=1.0), {"rate": (0, 1)}, below=("rate",))
    Traceback (most recent call last):
    stadapter.errors.SettingsError: rate 1.0: expected 0 to below 1
    """
    for name, (lowest, highest) in limits.items():
        value = getattr(settings, name)
        if value is None or (lowest <= value <= highest and not (name in below and value == highest)):
            continue
        to = "to below" if name in below else "to"
        wanted = f"at least {lowest}" if highest == math.inf else f"{lowest} {to} {highest}"
        raise SettingsError(f"{name} {value}: expected {wanted}")


def check_at_least_1(settings: Any, *names: str) -> None:
    """Refuse a number below 1 among these fields; None, which stands for a default, passes.

    Raises:
        SettingsError: the first such number, by the name of its setting.
    """
    check_limits(settings, dict.fromkeys(names, (1, math.inf)))


def check_number(name: str, value: object, *, or_none: bool = False) -> None:
    """Refuse an argument that is no number; with `or_none`, None passes.

    Raises:
        SettingsError: it is none, by its name.
    """
    if not isinstance(value, numbers.Real) and not (or_none and value is None):
        raise SettingsError(f"{name} {value!r}: expected a number")


def _plain(value: Any, hint: Any) -> Any:
    if isinstance(value, list) and tuple in (get_origin(hint), *map(get_origin, get_args(hint))):
        return tuple(_plain(each, None) for each in value)
    if type(value) in (bool, int, float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _as_text(value: Any) -> Any:
    """A path as its text, also in a tuple; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(map(_as_text, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple and Ellipsis not in arguments:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, arguments[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(each, arguments[1]) for each in value.values())
    if hint is Any:
        return True
    if hint in (int, float):  # True is an int to Python
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    is_plain_class = isinstance(hint, type) and origin is None and not getattr(hint, "_is_protocol", False)
    return not is_plain_class or isinstance(value, hint)


def _described(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_described, arguments)))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if origin is tuple:
        return f"({', '.join('…' if each is Ellipsis else _described(each) for each in arguments)})"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
    return names.get(hint) or str(hint.__name__)
