"""The course of a training run, one JSON object per line: metrics.jsonl.

Each has a kind (start, train, checkpoint, validation, unreadable), the time it was written, and that kind's values.
"""

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stadapter.durable import write_whole

METRICS_NAME = "metrics.jsonl"


def append_record(folder: Path, kind: str, **values: Any) -> None:
    """Add a line to `folder`/metrics.jsonl.

    Raises:
        OSError: it cannot be written.
    """
    line = json.dumps({"kind": kind, "time": round(time.time(), 3), **values}) + "\n"
    with open(folder / METRICS_NAME, "a", encoding="utf-8") as file:
        file.write(line)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The lines of `folder`/metrics.jsonl; empty if there is no such file.

    Anything that is not a record, such as a line cut off by a crash, is skipped.
    """
    try:
        lines = (folder / METRICS_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("kind"), str):
                records.append(record)
    return records


def write_records(folder: Path, records: Iterable[dict[str, Any]]) -> None:
    """Replace all lines, or none.

    Raises:
        ArtefactError: it cannot be written.
    """
    write_whole(folder / METRICS_NAME, "".join(f"{json.dumps(record)}\n" for record in records).encode())


def running_seconds(records: Iterable[dict[str, Any]]) -> float:
    """How long a run ran, from its first record to its last, without the time in which it was interrupted."""
    seconds, last = 0.0, None
    for record in records:
        now = record.get("time")
        if not isinstance(now, int | float):
            continue
        if last is not None and record["kind"] != "start":
            seconds += max(0.0, now - last)
        last = now
    return round(seconds, 1)
