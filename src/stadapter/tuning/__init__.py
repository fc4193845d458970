"""Strategies: what is added to a frozen trunk, and which parts of it learn.

A strategy is a frozen dataclass with one method, `apply(vit)`, which is called on a fully frozen `ImageViT` and changes
it in place; every parameter that requires a gradient afterwards is trained and saved. A strategy that needs another
head than the average over frames has a second method, `make_head`; one that wants a lower learning rate than new layers
do says so in `highest_lr`. Strategies do not know of each other. What they put into a trunk is in `stadapter.adapters`
and is imported in `apply`: settings, flags and help need only the dataclasses, not torch. docs/strategies.md compares
the strategies.
"""

import copy
import json
from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stadapter.errors import SettingsError
from stadapter.field_types import check_types, from_json
from stadapter.tuning.aim import AIM
from stadapter.tuning.attentive_pooling import AttentivePooling
from stadapter.tuning.bitfit import BitFit
from stadapter.tuning.bottleneck import Bottleneck
from stadapter.tuning.full import Full
from stadapter.tuning.full_temporal import FullTemporal
from stadapter.tuning.linear_probe import LinearProbe
from stadapter.tuning.lora import LoRA
from stadapter.tuning.partial import Partial
from stadapter.tuning.prompt import Prompt
from stadapter.tuning.st_adapter import STAdapter
from stadapter.tuning.temporal import Temporal

if TYPE_CHECKING:
    from stadapter.heads import Head
    from stadapter.vit import ImageViT

__all__ = [
    "AIM",
    "STRATEGIES",
    "AttentivePooling",
    "BitFit",
    "Bottleneck",
    "Full",
    "FullTemporal",
    "LinearProbe",
    "LoRA",
    "MakesHead",
    "Partial",
    "Prompt",
    "STAdapter",
    "Temporal",
    "Tuning",
    "check_json",
    "checked_tuning",
    "tuning_from_json",
    "tuning_name",
    "tuning_to_json",
]


class Tuning(Protocol):
    """What every strategy offers."""

    def apply(self, vit: "ImageViT") -> None:
        """Change a frozen trunk in place."""


@runtime_checkable
class MakesHead(Protocol):
    """What a strategy offers besides `apply` if it needs a head other than the average over frames."""

    def make_head(self, vit: "ImageViT", *, num_classes: int, dropout: float) -> "Head":
        """A fresh head for a trunk that `apply` has changed."""


STRATEGIES: dict[str, type[Any]] = {
    "st-adapter": STAdapter,
    "linear-probe": LinearProbe,
    "attentive-pooling": AttentivePooling,
    "bitfit": BitFit,
    "prompt": Prompt,
    "lora": LoRA,
    "bottleneck": Bottleneck,
    "aim": AIM,
    "temporal": Temporal,
    "partial": Partial,
    "full": Full,
    "full-temporal": FullTemporal,
}
"""From the name of a strategy on the command line and in artefacts to its dataclass."""


def checked_tuning(tuning: Any) -> Any:
    """The strategy with plain settings; anything else, or a setting of the wrong type, is refused.

    Raises:
        SettingsError: it is not a strategy, or a setting has another type than its field.
    """
    if isinstance(tuning, type) or not is_dataclass(tuning) or not hasattr(tuning, "apply"):
        raise SettingsError(f"tuning {tuning!r}: expected a strategy with its settings, such as stadapter.LoRA()")
    plain = copy.copy(tuning)
    check_types(plain)
    return plain


def tuning_name(tuning: Tuning) -> str:
    """The name under which a strategy is written into artefacts."""
    for name, strategy in STRATEGIES.items():
        if type(tuning) is strategy:
            return name
    return type(tuning).__name__


def tuning_to_json(tuning: Tuning) -> dict[str, Any]:
    """A strategy and its settings as plain JSON values."""
    return {"name": tuning_name(tuning), **asdict(tuning)}  # type: ignore[call-overload]  # every strategy is a dataclass


def check_json(tuning: Tuning) -> None:
    """Refuse a strategy whose settings could not be saved with what it trains.

    Raises:
        SettingsError: a setting that JSON does not know, by its name.
    """
    for name, value in asdict(tuning).items():  # type: ignore[call-overload]  # every strategy is a dataclass
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"setting {name} of {tuning_name(tuning)}: expected what JSON can hold, as it is saved with the run: a "
                f"number, a text, True, False, None, or a list or dict of these ({error})"
            ) from error


def tuning_from_json(values: dict[str, Any]) -> Tuning:
    """The inverse of `tuning_to_json`.

    Raises:
        SettingsError: an unknown strategy, or settings that it does not have.
    """
    settings = dict(values)
    name = settings.pop("name", None)
    if name not in STRATEGIES:
        raise SettingsError(f"strategy {name!r}: expected one of {', '.join(STRATEGIES)}")
    known = {field.name for field in fields(STRATEGIES[name])}
    if unknown := sorted(set(settings) - known):
        raise SettingsError(f"strategy {name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    tuning: Tuning = from_json(STRATEGIES[name], settings)
    return tuning
