"""The folder of a training run: which ones may be started in or resumed, and only by one training at a time."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stadapter.artefact import CARD_NAME, SPEC_NAME, WEIGHTS_NAME
from stadapter.durable import remove_parts
from stadapter.errors import TrainingError
from stadapter.records import METRICS_NAME
from stadapter.training.checkpoint import CHECKPOINT_NAME, read_checkpoint
from stadapter.training.progress import CURVES_NAME

LOCK_NAME = ".training"
_WRITTEN_WHOLE = (METRICS_NAME, CHECKPOINT_NAME, WEIGHTS_NAME, SPEC_NAME, CARD_NAME)
_LEFT_BY_A_FAILED_START = {METRICS_NAME, LOCK_NAME, CURVES_NAME}


def refuse_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a run folder that is in use, already holds something, or holds nothing to resume; writes nothing.

    Raises:
        TrainingError: another process trains in it, it exists and `resume` is not set, or it is finished.
        ArtefactError: there is no checkpoint to resume from, or it is damaged.
    """
    try:
        refuse_folder_in_use(folder)
        _refuse_content(folder, resume=resume)
    except OSError as error:
        raise TrainingError(f"cannot read {folder}: {error.strerror}; choose another --out") from error


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Create the run folder, and keep other trainings out of it while in the block.

    Raises:
        TrainingError: the folder cannot be written, another process trains in it, or as raised by `refuse_folder`.
    """
    with locked(folder):
        _refuse_content(folder, resume=resume)  # again: another process may just have finished here
        _clear(folder, resume=resume)
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder, and keep out other processes that ask for it while in the block.

    The lock ends with this process, however it ends. On a filesystem without locks there is none.

    Raises:
        TrainingError: the folder is a file, cannot be written, or another process holds it.
    """
    try:
        _refuse_file(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(folder)
    except OSError as error:
        raise _not_writable(folder, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK_NAME).unlink()
        os.close(lock)


def _refuse_content(folder: Path, *, resume: bool) -> None:
    if resume:
        if (folder / SPEC_NAME).is_file() and not (folder / CHECKPOINT_NAME).is_file():
            raise TrainingError(f"{folder} is a finished run: nothing to resume; use it, or choose another --out")
        read_checkpoint(folder)
        return
    if not folder.exists():
        return
    _refuse_file(folder)
    if (folder / CHECKPOINT_NAME).is_file():
        raise TrainingError(f"{folder} holds an unfinished run; resume it with --resume, or choose another --out")
    parts = tuple(f".{name}." for name in _WRITTEN_WHOLE)
    if any(item.name not in _LEFT_BY_A_FAILED_START and not item.name.startswith(parts) for item in folder.iterdir()):
        raise TrainingError(f"{folder} already exists; choose another --out, or delete it")


def _refuse_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is a file; choose another --out")


def _clear(folder: Path, *, resume: bool) -> None:
    """Remove what a killed run left half-written, and make sure the folder can be written."""
    for name in _WRITTEN_WHOLE:
        remove_parts(folder / name)
    try:
        with open(folder / METRICS_NAME, "a" if resume else "w"):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> TrainingError:
    return TrainingError(f"cannot write to {folder}: {error.strerror}; choose another --out")


def refuse_folder_in_use(folder: Path) -> None:
    """Refuse a run folder that another process trains in.

    Raises:
        TrainingError: there is one.
    """
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR)
    except OSError:
        return  # nothing has started here, or it is not ours to write
    try:
        _lock(descriptor, folder)
    finally:
        os.close(descriptor)


def _take_lock(folder: Path) -> int:
    """The descriptor of the lock file, with this process's name in it; closing it releases the lock."""
    while True:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, folder)
            if _is_still_there(descriptor, folder):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_still_there(descriptor: int, folder: Path) -> bool:
    """Whether an open lock file is the one in the folder; a training that just ended may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK_NAME))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, folder: Path) -> None:
    """Lock an open file against other processes, on this machine and, on a network disk, on others.

    A record lock: processes forked from this one do not hold it, so it goes when this one is killed.

    Raises:
        TrainingError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        raise TrainingError(f"{holder} is training in {folder}; wait for it, or choose another --out") from error
    except OSError:
        return  # a filesystem without locks
