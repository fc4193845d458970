"""Files and folders as they are met in a data set; nothing is opened."""

import os
from collections.abc import Hashable
from pathlib import Path

from stadapter.errors import DataError
from stadapter.paths import expanded
from stadapter.video import is_video


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path from the root on, its links as they are. Raises DataError where it is empty."""
    if not os.fspath(path):
        raise DataError("an empty path; expected a folder or a list")  # Path("") would be the working directory
    return Path(os.path.abspath(expanded(path)))


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of the files in a folder of images; -1 if it has gone since it was listed."""
    try:
        if path.is_dir():
            return sum(item.stat().st_size for item in os.scandir(path) if not is_hidden(item.name))
        return path.stat().st_size
    except OSError:
        return -1


def file_identity(path: Path) -> Hashable:
    """The same for two paths of one file, or of one folder, whatever links lead there.

    One look at the disk, where `Path.resolve` takes one for every folder on the way: lists have hundred thousands.
    """
    try:
        found = path.stat()
    except OSError:  # it has gone since it was listed
        return path
    return (found.st_dev, found.st_ino) if found.st_ino else path  # some file systems number nothing


def looks_like_video(path: Path) -> bool:
    """Whether a path is a video by its name, as `is_video`; not so where nobody may look."""
    try:
        return is_video(path)
    except OSError:  # a folder that cannot be listed; listing it says so
        return False


def is_hidden(name: str) -> bool:
    """Whether a name is passed over in every folder."""
    return name.startswith(".") or name == "__MACOSX"
