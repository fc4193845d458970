"""Files and folders as found in a data set; nothing is opened."""

import os
import stat
from collections.abc import Hashable
from pathlib import Path

from stadapter.errors import DataError
from stadapter.paths import expanded
from stadapter.video import is_video


def absolute(path: str | os.PathLike[str]) -> Path:
    """The absolute path, with links left unresolved. Raises DataError if it is empty."""
    if not os.fspath(path):
        raise DataError("the path is empty; expected a folder or a list")  # Path("") would be the working directory
    return Path(os.path.abspath(expanded(path)))


def size_bytes(path: Path) -> int:
    """Size of a file, or of the files in a folder of images; -1 if it has gone since it was listed."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            return sum(item.stat().st_size for item in os.scandir(path) if not is_hidden(item.name))
        return found.st_size
    except OSError:
        return -1


def file_identity(path: Path) -> Hashable:
    """A value that is equal for two paths to the same file or folder, whatever links lead there.

    This looks at the disk once, where `Path.resolve` does so for every folder on the way: lists have hundreds of
    thousands of paths.
    """
    try:
        found = path.stat()
    except OSError:  # it has gone since it was listed
        return path
    return (found.st_dev, found.st_ino) if found.st_ino else path  # some file systems number nothing


def looks_like_video(path: Path) -> bool:
    """Whether a path is a video by its name, as in `is_video`; False where we may not look."""
    try:
        return is_video(path)
    except OSError:  # a folder that cannot be listed, which is reported when it is listed
        return False


def is_hidden(name: str) -> bool:
    """Whether a name is skipped in every folder."""
    return name.startswith(".") or name == "__MACOSX"
