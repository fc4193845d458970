"""Files that are there whole or not at all, whatever happens while they are written."""

import os
from contextlib import suppress
from pathlib import Path

from stadapter.errors import ArtefactError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that after a crash either the old content or the new is there, never a part.

    The content goes to the disk under another name first, and so does the folder after the renaming.

    Raises:
        ArtefactError: the disk is full, or the folder cannot be written; the old content is there then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ArtefactError(f"cannot write {path}: {error.strerror}; make room, or choose another folder") from error
    finally:
        with suppress(OSError):  # on a read-only disk even removing nothing is an error
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_where_told(path: Path, content: bytes) -> None:
    """Write a file that a user named: a link stays one, and a pipe or a device is written into.

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
    """Remove what writers of `path` left that were killed in the middle; only while no other process writes it."""
    for part in path.parent.glob(f".{path.name}.*"):
        with suppress(OSError):
            part.unlink()


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the filesystem can do that."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
