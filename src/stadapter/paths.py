"""Paths as people type them."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user at its start replaced by home folders; a name that merely starts with ~ stays as it is.

    `Path.expanduser` raises if there is no such user, for example for a file ~clip.mp4.
    """
    return Path(os.path.expanduser(path))
