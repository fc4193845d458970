"""Files that exist whole or not at all, whatever happens while they are written."""

import os
from contextlib import suppress
from pathlib import Path

from stadapter.errors import ArtefactError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that after a crash either the old or the new content is there, never a part.

    The content is first written to disk under another name, and the folder is synced after the renaming.

    Raises:
        ArtefactError: the disk is full, or the folder cannot be written to; the old content is then still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        move_whole(temporary, path)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}; make room, or choose another folder") from error
    finally:
        with suppress(OSError):  # on a read-only disk even removing nothing is an error
            temporary.unlink(missing_ok=True)


def move_whole(written: Path, path: Path) -> None:
    """Give a file on the same disk its name: after a crash, the old or the new content has it, never a part.

    Raises:
        OSError: it cannot be written to disk or renamed; the old content is then still there.
    """
    descriptor = os.open(written, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(written, path)
    _sync_folder(path.parent)


def write_where_told(path: Path, content: bytes) -> None:
    """Write a file that a user named: a link stays a link, and a pipe or a device is written to.

    Raises:
        ArtefactError, OSError: it cannot be written.
    """
    real = Path(os.path.realpath(path))
    is_special = path.exists() and (not path.is_file() or path.is_relative_to("/dev"))
    if is_special or (path.exists() and not os.access(real.parent, os.W_OK)):
        path.write_bytes(content)
    else:
        write_whole(real, content)


def remove_parts(path: Path) -> None:
    """Remove what writers of `path` left if they were killed midway; only while no other process writes it."""
    for part in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    """Write a folder's names to disk, if the filesystem can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
