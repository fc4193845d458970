"""The folder of a training run: which may be started in, or gone on with."""

from pathlib import Path

from stadapter.artefact import SPEC_NAME
from stadapter.checkpoint import CHECKPOINT_NAME, read_progress
from stadapter.errors import TrainingError
from stadapter.progress import METRICS_NAME

_LEFT_BY_A_FAILED_START = {METRICS_NAME, "tensorboard"}


def refuse_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a run folder that holds something already, or nothing to resume.

    Raises:
        TrainingError: it exists and `resume` is not set, or is finished.
        ArtefactError: there is no checkpoint to resume from, or it is damaged.
    """
    if resume:
        if (folder / SPEC_NAME).is_file() and not (folder / CHECKPOINT_NAME).is_file():
            raise TrainingError(f"{folder} is a finished run: nothing to resume; use it, or choose another --out")
        read_progress(folder)
        return
    if not folder.exists():
        return
    if not folder.is_dir():
        raise TrainingError(f"{folder} is a file; choose another --out")
    if (folder / CHECKPOINT_NAME).is_file():
        raise TrainingError(f"{folder} holds an unfinished run; go on with --resume, or choose another --out")
    if {item.name for item in folder.iterdir()} - _LEFT_BY_A_FAILED_START:
        raise TrainingError(f"{folder} exists already; choose another --out, or delete it")


def make_folder(folder: Path) -> None:
    """Make the run folder and see that it can be written.

    Raises:
        TrainingError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS_NAME).touch()
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
