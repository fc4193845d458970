"""The files of a comparison: results and jobs, and whether what is there is what is asked for."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from stadapter.durable import write_whole
from stadapter.settings import TrainConfig, settings_to_json
from stadapter.tuning import STRATEGIES

FORMAT = 1
"""Of a result file."""
_CHANGES_NOTHING = (
    *("data", "val_data", "video_root", "backbone", "out", "resume", "accept_changes"),
    *("device", "num_workers", "checkpoint_minutes", "view_store_megabytes"),
)
"""Settings in which a result may differ from what is asked for: paths, told by hashes, and what is not learned from."""


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all; bytes of a file name that are no text stay escaped."""
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())


def read_result(path: Path) -> dict[str, Any] | None:
    """What a result or a job file holds; None where there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


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
        if before != now:
            told.append(f"{name} {before!r}, now {now!r}")
    return told


def _defaults(wanted: dict[str, Any]) -> dict[str, Any]:
    strategy = STRATEGIES.get(wanted.get("tuning", {}).get("name"))
    if strategy is None:
        return {}
    plain = learned_from(dataclasses.replace(TrainConfig(data="-", out="-"), tuning=strategy()))
    return {name: value for name, value in plain.items() if name in wanted}
