"""The results of a comparison and their files, and whether existing ones match what is asked for."""

import dataclasses
import json
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stadapter.durable import write_whole
from stadapter.errors import DataError, SettingsError
from stadapter.field_types import check_types, known_from_json
from stadapter.training.settings import FREE_SETTINGS, TrainConfig, completed, settings_to_json
from stadapter.tuning import STRATEGIES
from stadapter.uncertainty import Interval
from stadapter.wording import changed

ClipKey = tuple[str, float | None, float | None]
"""Name, start and end of a test clip."""
FORMAT = 1
"""The newest format of a result file that this program knows."""
CHOSEN = ("size", "precision")
"""Settings that may be left to the machine: a run's budget and identity have what it chose."""
_CHANGES_NOTHING = (FREE_SETTINGS | {"val_data"}) - {"label_kind", "split_number", "size", "precision"}
"""Settings in which a result may differ from what is asked for: paths, covered by hashes, and settings that do not
affect what is learned. Some that may differ when a run is resumed are covered by its identity, which a result lacks."""


@dataclass(frozen=True)
class RateSearch:
    """What was tried to find a learning rate; outcomes are keyed by rate, as JSON names it."""

    values: tuple[float, ...]
    """The rates."""
    chosen: float | None
    """None if none worked."""
    num_held_out_clips: int
    held_out_sha256: str
    errors: dict[str, str]
    top1: dict[str, float]
    """On the held-out clips."""
    loss: dict[str, float]
    train_loss: dict[str, float]
    steps: int | None = None
    """Steps of each training; None if none worked, and in results from before this was recorded."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is known about a run before it starts."""

    strategy: str
    name: str
    """Name of the experiment."""
    about: str
    seed: int
    budget: dict[str, Any]
    """Steps, batch, size, frames, precision and data: equal in all results of a folder."""
    identity: dict[str, Any]
    """Everything its result depends on, as JSON values: settings, and hashes of data and trunk."""
    lr_search: RateSearch | None = None
    format: int = FORMAT

    @property
    def title(self) -> str:
        """Strategy and name, as people read them."""
        return f"{self.strategy}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class FailedRun(Run):
    """A run without a result."""

    error: str


@dataclass(frozen=True)
class Answer:
    """What a run predicted for one test clip."""

    name: str
    start_seconds: float | None
    end_seconds: float | None
    label: str
    predicted: str
    score: float
    is_correct: bool


@dataclass(frozen=True, kw_only=True)
class FinishedRun(Run):
    """A run with its costs and its figures."""

    config: dict[str, Any]
    """All its settings, as JSON values."""
    commit: str | None
    versions: dict[str, str]
    hardware: dict[str, str]
    precision: str
    size: int
    trained_parameters: int
    total_parameters: int
    gmacs_per_view: float
    artefact_bytes: int
    peak_memory_bytes: int | None
    peak_memory_of: str
    steps: int
    train_loss: float
    """Mean over the last quarter of the steps."""
    clips_per_second: float
    training_seconds: float
    wall_seconds: float
    interruptions: int
    num_clips: int
    """Test clips that were read."""
    num_classes: int | None = None
    """None in results from before this was recorded."""
    top1: float
    top1_interval: Interval
    top5: float
    top5_interval: Interval
    mean_class_accuracy: float
    loss: float
    shuffled: float | None
    reversed: float | None
    single_frame: float | None
    heads: dict[str, Any] = field(default_factory=dict)
    """Figures of each of several heads, by its name."""
    predictions: tuple[Answer, ...]
    unreadable_train_clips: dict[str, str] = field(default_factory=dict)
    unreadable_test_clips: tuple[dict[str, Any], ...] = ()

    def right_by_clip(self) -> dict[ClipKey, bool]:
        """Whether it classified each of its test clips correctly."""
        return {(row.name, row.start_seconds, row.end_seconds): row.is_correct for row in self.predictions}


AnyRun = TypeVar("AnyRun", bound=Run)
_PARTS = {"lr_search": RateSearch, "top1_interval": Interval, "top5_interval": Interval}
"""Fields that are themselves dataclasses."""


def write_result(path: Path, result: Run) -> None:
    """Write a result, whole or not at all."""
    write_json(path, dataclasses.asdict(result))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values, whole or not at all; bytes of a file name that are not text stay escaped."""
    write_whole(path, (json.dumps(values, indent=1) + "\n").encode())


def read_result(path: Path) -> FinishedRun | FailedRun | None:
    """What a result file holds; None if there is none, or it is incomplete.

    Raises:
        DataError: it is of a newer format than this program knows.
    """
    values = _read_object(path)
    if values is None:
        return None
    if isinstance(version := values.get("format"), int) and version > FORMAT:
        raise DataError(
            f"{path} is of format {version}; this program knows up to {FORMAT}: install a newer stadapter, or compare "
            "in another folder"
        )
    if values.get("strategy") not in STRATEGIES:
        return None
    kind: type[FinishedRun | FailedRun] = FailedRun if "error" in values else FinishedRun
    try:
        return run_from_json(kind, values)
    except (TypeError, ValueError, SettingsError):  # a field is missing or has another type
        return None


def run_from_json(kind: type[AnyRun], values: Mapping[str, Any]) -> AnyRun:
    """A run from the values of a file; unknown values are ignored.

    Raises:
        TypeError, ValueError, SettingsError: a field is missing or has another type.
    """
    parts: dict[str, Any] = {
        name: known_from_json(part, values[name]) for name, part in _PARTS.items() if values.get(name) is not None
    }
    if "predictions" in values:
        parts["predictions"] = tuple(known_from_json(Answer, row) for row in values["predictions"])
    result = known_from_json(kind, {**values, **parts})
    for part in (result, *parts.values()):
        if dataclasses.is_dataclass(part):
            check_types(part)
    return result


def read_results(folder: Path, *, but: Container[str] = ()) -> dict[Path, FinishedRun | FailedRun]:
    """The results of a folder, sorted by their names, except those whose files have the names in `but`.

    Raises:
        DataError: a file is named like a result but is not a complete one.
    """
    found = {}
    for path in sorted(folder.glob(result_name("*", "*", "*"))):
        if path.name in but:
            continue
        result = read_result(path)
        if result is None or path.name != result_name(result.strategy, result.name, result.seed):
            raise DataError(
                f"{path} is not a complete result of stadapter compare under its original name; delete it to have it "
                "run again, or move it elsewhere"
            )
        found[path] = result
    return found


def result_name(strategy: str, name: str, seed: int | str) -> str:
    """The name of a result file."""
    return f"{strategy}--{name}--seed{seed}.json"


def read_job(path: Path) -> tuple[dict[str, Any], float] | None:
    """The identity and the learning rate of the run that a job file describes; None if there is none to read."""
    values = _read_object(path) or {}
    try:
        return dict(values["known"]["identity"]), float(values["settings"]["lr"])
    except (KeyError, TypeError, ValueError):
        return None


def learned_from(config: TrainConfig) -> dict[str, Any]:
    """The settings that a result depends on, as JSON values."""
    return {name: value for name, value in settings_to_json(config).items() if name not in _CHANGES_NOTHING}


def identity_of(result: FinishedRun) -> dict[str, Any]:
    """The identity of a result; some have there a size and a precision that were left to the machine."""
    return {**result.identity, **{name: getattr(result, name) for name in CHOSEN}}


def budget_of(result: FinishedRun) -> dict[str, Any]:
    """The budget of a result; some have there, as above, what was asked for."""
    return {**result.budget, **{name: getattr(result, name) for name in ("steps", *CHOSEN)}}


def changes(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The settings in which two identities differ, each with both values.

    A setting added after a result was written counts as its default.
    """
    then = {name: value for name, value in completed(found).items() if name in wanted or name in found}
    names = [name for name in {**wanted, **then} if name not in _CHANGES_NOTHING]
    return [line for name in names for line in changed(name, then.get(name), wanted.get(name))]


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None
