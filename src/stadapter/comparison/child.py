"""One training of a comparison, in its own process: python -m stadapter.comparison.child JOB.

So its peak memory is its own, and if it crashes, only its result fails.
"""

import dataclasses
import json
import shutil
import statistics
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stadapter.allocator import keep_freed_memory
from stadapter.artefact import WEIGHTS_NAME, read_spec
from stadapter.comparison.results import Answer, FailedRun, FinishedRun, Run, run_from_json, write_result
from stadapter.costs import gmacs_per_view
from stadapter.errors import STAdapterError
from stadapter.evaluation.figures import Report
from stadapter.evaluation.timecheck import CHANGED_ORDERS
from stadapter.memory import peak_memory_bytes
from stadapter.provenance import commit, processor
from stadapter.records import read_records, running_seconds
from stadapter.signals import stop_with_parent
from stadapter.training.checkpoint import CHECKPOINT_NAME
from stadapter.training.loop import train
from stadapter.training.preparation import prepare
from stadapter.training.run_folder import refuse_folder_in_use
from stadapter.training.settings import TrainConfig, settings_from_json, settings_to_json
from stadapter.wording import first_line

_SHARES = ("top1", "top1_interval", "top5", "top5_interval")


def main(arguments: list[str]) -> int:
    """Do the job in a file and write its result; 0 done, 1 failed, with the reason in the result, 130 interrupted."""
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    known = run_from_json(Run, job["known"])
    outcome: Run
    try:
        outcome = run(known, take_up(settings_from_json(job["settings"])))
    except KeyboardInterrupt:
        return 130
    except STAdapterError as error:
        outcome = FailedRun(**vars(known), error=str(error))
    except Exception as error:
        traceback.print_exc()
        outcome = FailedRun(**vars(known), error=f"{type(error).__name__}: {first_line(error)}")
    write_result(Path(job["result"]), outcome)
    return 1 if isinstance(outcome, FailedRun) else 0


def run(known: Run, config: TrainConfig) -> FinishedRun:
    """Train, or resume what an interrupted call left, and return all that a comparison needs to know."""
    costs, device = count_costs(config)
    result = train(config)
    assert result.report is not None
    receipt = read_spec(result.folder)["receipt"]
    return FinishedRun(
        **vars(known),
        config=settings_to_json(config),
        commit=commit(),
        versions=receipt["versions"],
        hardware={"device": receipt["hardware"], **processor()},
        precision=receipt["precision"],
        size=receipt["size"],
        **costs,
        artefact_bytes=(result.folder / WEIGHTS_NAME).stat().st_size,
        peak_memory_bytes=peak_memory_bytes(device),
        peak_memory_of="cuda" if device.type == "cuda" else "process",
        steps=result.steps,
        **read_training(result.folder),
        **figures(result.report),
        unreadable_train_clips=receipt["unreadable"],
    )


def count_costs(config: TrainConfig) -> tuple[dict[str, Any], torch.device]:
    """Parameters and GMACs, and the device; counted before training, so that the result is written right after it."""
    prepared = prepare(config)
    count, clip = prepared.model.count_parameters(), prepared.clip_config
    costs = {
        "trained_parameters": count.trained,
        "total_parameters": count.total,
        "gmacs_per_view": gmacs_per_view(prepared.model.eval(), num_frames=clip.num_frames, size=clip.size),
    }
    return costs, prepared.accelerator.device


def read_training(folder: Path) -> dict[str, Any]:
    """Loss, speed and seconds from a run's metrics.jsonl; time in which it was interrupted is left out."""
    records = read_records(folder)
    trained = [record for record in records if record["kind"] == "train"]
    return {
        "train_loss": last_loss(trained),
        "clips_per_second": statistics.median(record["clips_per_second"] for record in trained),
        "training_seconds": running_seconds(record for record in records if record["kind"] != "validation"),
        "wall_seconds": running_seconds(records),
        "interruptions": sum(record["kind"] == "start" for record in records) - 1,
    }


def last_loss(records: Sequence[dict[str, Any]]) -> float:
    """The mean of the training losses recorded in the last quarter of the steps.

    >>> last_loss([{"step": 60, "loss": 9.0}, {"step": 80, "loss": 2.0}, {"step": 90, "loss": 1.0}])
    1.5
    """
    return statistics.fmean(record["loss"] for record in records if record["step"] > 0.75 * records[-1]["step"])


def figures(report: Report) -> dict[str, Any]:
    """What the evaluation said, down to every clip, with shuffled, reversed and single-frame accuracy."""
    plain, check = report.to_json(), report.time_check
    kept = [field.name for field in dataclasses.fields(Answer)]
    return {
        **{name: getattr(report, name) for name in ("num_clips", "num_classes", "mean_class_accuracy", "loss")},
        **{name: getattr(report, name) for name in _SHARES},
        **{order: getattr(check, order, None) for order in CHANGED_ORDERS},
        "heads": {name: {key: head[key] for key in _SHARES} for name, head in plain["heads"].items()},
        "predictions": tuple(Answer(**{name: getattr(row, name) for name in kept}) for row in report.predictions),
        "unreadable_test_clips": tuple(plain["failures"]),
    }


def take_up(config: TrainConfig) -> TrainConfig:
    """The same settings, resuming what is in the run folder if that holds a checkpoint.

    A folder without one was stopped before its first checkpoint, or between its end and the writing of its result: it
    is removed, and the run starts again.

    Raises:
        TrainingError: another process trains in it.
    """
    folder = Path(config.out)
    if (folder / CHECKPOINT_NAME).is_file():
        return dataclasses.replace(config, resume=True)
    if folder.exists():
        refuse_folder_in_use(folder)
        shutil.rmtree(folder)
    return config


if __name__ == "__main__":
    stop_with_parent()
    keep_freed_memory()
    sys.exit(main(sys.argv[1:]))
