"""Paths as people type them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user at its start replaced by home folders; a name that only begins so stays as it is.

    `Path.expanduser` raises where there is no such user, as for a file ~clip.mp4.
    """
    return Path(os.path.expanduser(path))
