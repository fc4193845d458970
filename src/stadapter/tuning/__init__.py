"""Strategies: what is added to a frozen trunk, and what of it learns.

A strategy is a frozen dataclass with one method, `apply(vit)`, called on a fully frozen `ImageViT` and changing it in
place; every parameter that requires a gradient afterwards is trained and saved. Strategies do not know each other.
"""

from dataclasses import asdict, fields
from typing import Any, Protocol

from stadapter.errors import SettingsError
from stadapter.tuning.linear_probe import LinearProbe
from stadapter.tuning.lora import LoRA
from stadapter.tuning.st_adapter import STAdapter
from stadapter.vit import ImageViT

__all__ = [
    "STRATEGIES",
    "LinearProbe",
    "LoRA",
    "STAdapter",
    "Tuning",
    "tuning_from_json",
    "tuning_name",
    "tuning_to_json",
]


class Tuning(Protocol):
    """What every strategy offers."""

    def apply(self, vit: ImageViT) -> None:
        """Change a frozen trunk in place."""


STRATEGIES: dict[str, type[Any]] = {"st-adapter": STAdapter, "linear-probe": LinearProbe, "lora": LoRA}
"""The name of a strategy on the command line and in artefacts -> its dataclass."""


def tuning_name(tuning: Tuning) -> str:
    """The name under which a strategy is written into artefacts."""
    for name, strategy in STRATEGIES.items():
        if type(tuning) is strategy:
            return name
    return type(tuning).__name__


def tuning_to_json(tuning: Tuning) -> dict[str, Any]:
    """A strategy and its settings as plain JSON values."""
    return {"name": tuning_name(tuning), **asdict(tuning)}  # type: ignore[call-overload]  # every strategy is a dataclass


def tuning_from_json(values: dict[str, Any]) -> Tuning:
    """The inverse of `tuning_to_json`.

    Raises:
        SettingsError: an unknown strategy, or settings it does not have.
    """
    settings = dict(values)
    name = settings.pop("name", None)
    if name not in STRATEGIES:
        raise SettingsError(f"strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    known = {field.name for field in fields(STRATEGIES[name])}
    if unknown := sorted(set(settings) - known):
        raise SettingsError(f"strategy {name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    tuning: Tuning = STRATEGIES[name](**settings)
    return tuning
