"""The files of a comparison: results and jobs, and whether what is there is what is asked for."""

import dataclasses
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from stadapter.durable import write_whole
from stadapter.errors import DataError
from stadapter.training.settings import TrainConfig, settings_to_json
from stadapter.tuning import STRATEGIES
from stadapter.wording import changed

Clip = tuple[str, float | None, float | None]
"""Name, start and end of a test clip."""
FORMAT = 1
"""Of a result file."""
_CHANGES_NOTHING = (
    *("data", "val_data", "video_root", "backbone", "out", "resume", "accept_changes"),
    *("device", "num_workers", "checkpoint_minutes", "view_store_megabytes", "gradient_checkpointing", "compile"),
)
"""Settings in which a result may differ from what is asked for: paths, told by hashes, and what is not learned from."""
RUN_COLUMNS = (
    *("strategy", "name", "seed", "steps", "trained_parameters", "total_parameters", "artefact_bytes"),
    *("gmacs_per_view", "clips_per_second", "peak_memory_bytes", "peak_memory_of", "training_seconds", "wall_seconds"),
    *("num_clips", "top1", "top5", "mean_class_accuracy", "loss", "shuffled", "reversed", "single_frame", "commit"),
)
"""What a result tells of its run as one value each."""
_KNOWN_BEFORE = {"strategy": str, "name": str, "about": str, "seed": int, "identity": dict, "budget": dict}
_MEASURED = {
    **dict.fromkeys(RUN_COLUMNS, (int, float, str, type(None))),
    **dict.fromkeys(("config", "hardware", "versions", "top1_interval", "top5_interval"), dict),
    **dict.fromkeys(("top1", "train_loss"), (int, float)),
    "size": int,
    "predictions": list,
    "lr_search": (dict, type(None)),
}
"""What is read from a result again, and its types: a failed one has only what was known before."""


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all; bytes of a file name that are no text stay escaped."""
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())


def read_result(path: Path) -> dict[str, Any] | None:
    """What a result file holds; None where there is none that is whole."""
    values = _read_object(path)
    if values is None or not _holds(values, _KNOWN_BEFORE) or values["strategy"] not in STRATEGIES:
        return None
    return values if "error" in values or _holds(values, _MEASURED) else None


def read_results(folder: Path, *, but: Container[str] = ()) -> dict[Path, dict[str, Any]]:
    """The results of a folder, sorted by their names, but for those whose files have the names given.

    Raises:
        DataError: a file that is called as one and is none, or not a whole one.
    """
    found = {}
    for path in sorted(folder.glob(result_name("*", "*", "*"))):
        if path.name in but:
            continue
        result = read_result(path)
        if result is None or path.name != result_name(result["strategy"], result["name"], result["seed"]):
            raise DataError(
                f"{path} is no whole result of stadapter compare under the name it was given; delete it, to have it "
                "run again, or move it elsewhere"
            )
        found[path] = result
    return found


def result_name(strategy: str, name: str, seed: int | str) -> str:
    """The name of a result file."""
    return f"{strategy}--{name}--seed{seed}.json"


def right_by_clip(result: Mapping[str, Any]) -> dict[Clip, bool]:
    """Whether a run named each of its test clips right."""
    return {(row["name"], row["start_seconds"], row["end_seconds"]): row["is_correct"] for row in result["predictions"]}


def read_job(path: Path) -> tuple[dict[str, Any], float] | None:
    """The identity and the learning rate of the run that a job file is about; None where there is none to be read."""
    values = _read_object(path) or {}
    try:
        return dict(values["known"]["identity"]), float(values["settings"]["lr"])
    except (KeyError, TypeError, ValueError):
        return None


def learned_from(config: TrainConfig) -> dict[str, Any]:
    """The settings that a result depends on, as JSON values."""
    return {name: value for name, value in settings_to_json(config).items() if name not in _CHANGES_NOTHING}


def changes(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The settings in which two identities differ, each with both values.

    A setting that came after a result was written is the default in it.
    """
    found = {**_defaults(wanted), **found}
    told = []
    for name in {**wanted, **found}:
        before, now = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict) and name in ("tuning", "augmentation"):
            before = {**_defaults(wanted).get(name, {}), **before}
        told += changed(name, before, now)
    return told


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _holds(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> bool:
    return all(name in values and isinstance(values[name], kind) for name, kind in kinds.items())


def _defaults(wanted: dict[str, Any]) -> dict[str, Any]:
    strategy = STRATEGIES.get(wanted.get("tuning", {}).get("name"))
    if strategy is None:
        return {}
    plain = learned_from(dataclasses.replace(TrainConfig(data="-", out="-"), tuning=strategy()))
    return {name: value for name, value in plain.items() if name in wanted}
