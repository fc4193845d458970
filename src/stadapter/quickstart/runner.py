"""Clips, the two trainings, and the predictions, one after the other; what an earlier call left is reused."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from stadapter import __version__
from stadapter.artefact import read_spec
from stadapter.augmentation import Augmentation
from stadapter.backbones import EMBEDDED_BACKBONE
from stadapter.durable import write_whole
from stadapter.errors import SettingsError
from stadapter.evaluation.figures import Report
from stadapter.evaluation.timecheck import CHANGED_ORDERS
from stadapter.hands import CLASSES, write_hand_clips
from stadapter.paths import expanded
from stadapter.predict import Classifier, Prediction
from stadapter.quickstart.config import QuickstartConfig
from stadapter.quickstart.tables import TITLES
from stadapter.records import read_records, running_seconds
from stadapter.training.checkpoint import CHECKPOINT_NAME
from stadapter.training.loop import train
from stadapter.training.run_folder import LOCK_NAME, locked
from stadapter.training.settings import TrainConfig
from stadapter.tuning import LinearProbe, STAdapter, Tuning
from stadapter.wording import changed

RESULT_NAME = "result.json"
CONTESTANTS: dict[str, Tuning] = {"linear-probe": LinearProbe(), "st-adapter": STAdapter(kernel_size=(3, 3, 3))}
"""What is compared. With patches of an eighth of the picture, a kernel that also sees neighbours learns motion sooner
than the default (3, 1, 1): 384 steps gave 100 % against 74 % (docs/log.md)."""
_AUGMENTATION = Augmentation(scale=(0.7, 1.0))
"""Crops that keep most of a movement's path."""
_DRAWINGS = ("train", "test", "unseen")
"""Sets of clips, each drawn from its own seed."""


def quickstart(config: QuickstartConfig | None = None, *, console: Console | None = None) -> dict[str, Any]:
    """Write clips, train and test a linear probe and ST-Adapter, and let ST-Adapter classify clips nobody has seen.

    What an interrupted call left in the folder is reused: the next call continues from there.

    Args:
        config: where, and how much.
        console: where to show progress; default: standard error.

    Returns:
        What `result.json` in the folder holds: settings, a summary of each run, the predictions, seconds.

    Raises:
        SettingsError: a number is too small, or the folder holds a finished quickstart, one with other settings,
            or something else.
        STAdapterError: as for `train`; or another process works in the folder.
    """
    config, console = config or QuickstartConfig(), console or Console(stderr=True)
    folder = expanded(config.out)
    _so_far(folder, config)
    with locked(folder):
        return _run_all(folder, config, console)


def _run_all(folder: Path, config: QuickstartConfig, console: Console) -> dict[str, Any]:
    result = _so_far(folder, config)  # again: another process may just have finished here
    _write(folder, result)
    console.print(f"drawing clips of a hand into {folder / 'clips'}", highlight=False)
    for drawing in _DRAWINGS:
        count = {"train": config.train_clips_per_class, "test": config.test_clips_per_class}.get(drawing, 1)
        seed = len(_DRAWINGS) * config.seed + _DRAWINGS.index(drawing)
        write_hand_clips(folder / "clips" / drawing, clips_per_class=count, seed=seed)
    for name in CONTESTANTS:
        if name not in result["runs"]:
            console.print(f"\n{TITLES[name]}", style="bold")
            result["runs"][name] = _run(name, folder, config, console)
            _write(folder, result)
    result["unseen"] = _predict_unseen(folder)
    result["seconds"] = round(sum(run["seconds"] for run in result["runs"].values()), 1)
    _write(folder, result)
    return result


def _so_far(folder: Path, config: QuickstartConfig) -> dict[str, Any]:
    """The result so far: a new one for a new folder, or what an unfinished quickstart left; writes nothing."""
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    if not folder.is_dir() or all(item.name == LOCK_NAME for item in folder.iterdir()):
        return {
            "version": __version__,
            "settings": settings,
            "num_test_clips": config.test_clips_per_class * len(CLASSES),
            "runs": {},
        }
    try:
        result: dict[str, Any] = json.loads((folder / RESULT_NAME).read_text(encoding="utf-8"))
        then, is_finished = dict(result["settings"]), "unseen" in result
        result["runs"] = dict(result["runs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{folder} was not made by quickstart; choose another folder with --out") from error
    if is_finished:
        raise SettingsError(
            f"{folder} holds a finished quickstart: look at {folder / RESULT_NAME}, or choose another folder with --out"
        )
    if told := [line for name, now in settings.items() for line in changed(name, then.get(name), now)]:
        raise SettingsError(
            f"{folder} holds an unfinished quickstart that was started with other settings: {'; '.join(told)}. "
            "Continue it as it was started, or choose another folder with --out"
        )
    return result


def _write(folder: Path, result: dict[str, Any]) -> None:
    write_whole(folder / RESULT_NAME, (json.dumps(result, indent=2) + "\n").encode())


def _run(name: str, folder: Path, config: QuickstartConfig, console: Console) -> dict[str, Any]:
    """Train and test one of the two, or resume it; returns a summary as JSON values."""
    out = folder / name
    resume = (out / CHECKPOINT_NAME).is_file()
    if out.exists() and not resume:
        shutil.rmtree(out)  # stopped before its first checkpoint, or between its end and our record of it
    result = train(
        TrainConfig(
            data=folder / "clips" / "train",
            val_data=folder / "clips" / "test",
            out=out,
            backbone=EMBEDDED_BACKBONE,
            tuning=CONTESTANTS[name],
            augmentation=_AUGMENTATION,
            epochs=config.epochs,
            num_spatial_views=1,
            seed=config.seed,
            resume=resume,
        ),
        console=console,
    )
    assert result.report is not None
    parameters = read_spec(out)["parameters"]
    return {
        **_figures(result.report),
        "steps": result.steps,
        "trained_parameters": parameters["trained"],
        "total_parameters": parameters["total"],
        "seconds": running_seconds(read_records(out)),
    }


def _figures(report: Report) -> dict[str, Any]:
    return {
        "top1": report.top1,
        "top1_interval": asdict(report.top1_interval),
        **{order: getattr(report.time_check, order, None) for order in CHANGED_ORDERS},
    }


def _predict_unseen(folder: Path) -> list[dict[str, Any]]:
    """What ST-Adapter predicts for a clip of each class from the third seed."""
    clips = [folder / "clips" / "unseen" / label / f"{label}_000.mp4" for label in CLASSES]
    answers = Classifier.load(folder / "st-adapter").predict_many(clips)
    return [
        {
            "clip": clip.relative_to(folder).as_posix(),
            "label": label,
            "predicted": answer.label,
            "score": answer.score,
        }
        for clip, label, answer in zip(clips, CLASSES, answers, strict=True)
        if isinstance(answer, Prediction)
    ]
