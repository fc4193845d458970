"""Where the videos listed by annotations are, found by name below one folder. None is opened."""

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from stadapter.errors import DataError
from stadapter.layouts.reading import ListedClip, letters
from stadapter.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_FLOW_FOLDER = "flow_frames"  # of EPIC-Kitchens: images of motion, not frames


def find_videos_of(clips: Iterable[ListedClip], root: Path) -> dict[ListedClip, Path]:
    """The video of every clip that has one below `root`; the clip's folders decide between several of one name.

    Raises:
        DataError: `root` cannot be listed.
    """
    clips = list(clips)
    paths: dict[str, list[Path]] = {clip.stem: [] for clip in clips}
    _collect(root, paths, ())
    return {clip: _likeliest(clip, paths[clip.stem]) for clip in clips if paths[clip.stem]}


def _collect(folder: Path, paths: dict[str, list[Path]], parents: tuple[str, ...]) -> None:
    """Collect every video below `folder` whose name is wanted; a link back to a parent is not followed."""
    here = os.path.realpath(folder)
    if here in parents:
        return
    try:
        with os.scandir(folder) as items:
            shown = [item for item in items if not item.name.startswith(".")]
            found = sorted((item.name, item.is_dir()) for item in shown if item.is_dir() or item.is_file())
    except OSError as error:
        if parents:  # what it may hold counts as not found
            return
        raise DataError(f"{folder} cannot be listed ({error.strerror}); expected a readable folder") from error
    for name, is_folder in found:
        path = folder / name
        if not is_folder:
            stem, suffix = os.path.splitext(name)
            if stem in paths and suffix.lower() in VIDEO_SUFFIXES:
                paths[stem].append(path)
        elif name in paths and _holds_images(path):
            paths[name].append(path)
        elif name != _FLOW_FOLDER:
            _collect(path, paths, (*parents, here))


def _holds_images(folder: Path) -> bool:
    """Whether a folder starts with images; one of EPIC-Kitchens may hold a hundred thousand."""
    try:
        with os.scandir(folder) as items:
            return any(os.path.splitext(item.name)[1].lower() in IMAGE_SUFFIXES for item in islice(items, 8))
    except OSError:
        return False


def _likeliest(clip: ListedClip, paths: Sequence[Path]) -> Path:
    """Which of several videos of one name is the clip's; there is seldom more than one, and ranking them takes time."""
    return paths[0] if len(paths) == 1 else min(paths, key=lambda path: _rank(clip, path))


def _rank(clip: ListedClip, path: Path) -> tuple[list[bool], str]:
    """A sort key for a path: the smaller, the likelier it is the clip's video."""
    folders = {letters(part) for part in path.parts[:-1]}
    return [letters(name) not in folders for name in clip.folders], path.as_posix()
