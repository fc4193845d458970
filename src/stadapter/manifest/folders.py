"""Data sets that are folders: one per class, or one per split with the class folders inside."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stadapter.layouts import PART_NAMES, PARTS, OnProblem, Part, held_out_part
from stadapter.manifest.entries import NOTHING, Entry, Manifest, sort_labels
from stadapter.manifest.paths import is_hidden, looks_like_video
from stadapter.wording import counted, listed


def split_folders(root: Path, on_problem: OnProblem) -> dict[Part, Path]:
    """The split folders of `root` by part; empty if "train" or "test" is just the name of a class.

    A split folder holds class folders, and has a name such as train, Training, valid or test. A single one is a split
    only if nothing next to it holds videos. Two for one part are reported to `on_problem`; the first is returned.
    """
    folders = [path for path in _children(root, on_problem) if os.path.isdir(path)]
    found: dict[Part, list[Path]] = {}
    for path in folders:
        if (part := PARTS.get(path.name.lower())) and _holds_classes(path, on_problem):
            found.setdefault(part, []).append(path)
    of_splits = [path for paths in found.values() for path in paths]
    if len(found) == 1 and any(path not in of_splits and _holds_videos(path, on_problem) for path in folders):
        return {}
    for part, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(f"{path.name}/" for path in paths)
            on_problem(f"{root}: {names} both mean the split {part}; expected one folder for it: merge or rename them")
    return {part: found[part][0] for part in PART_NAMES if part in found}


def read_split_folders(
    source: Path, splits: dict[Part, Path], on_problem: OnProblem, *, with_val: bool
) -> tuple[Manifest, Manifest | None]:
    """The clips of the folder to train on, and those of the folder to validate on, if present and wanted."""
    train = _read_train_folder(source, splits, on_problem)
    held_out = held_out_part(splits) if with_val else None
    return train, read_class_folders(splits[held_out], source, on_problem) if held_out is not None else None


def _read_train_folder(source: Path, splits: dict[Part, Path], on_problem: OnProblem) -> Manifest:
    """The clips below train/, which must be one of the split folders; those next to it must not be empty."""
    if "train" not in splits:
        on_problem(
            f"{source} holds {', '.join(f'{path.name}/' for path in splits.values())} but no train/ with class "
            f"folders; add one, or name the folder to train on"
        )
        return NOTHING
    for path in _children(source, on_problem):
        if PARTS.get(path.name.lower()) and os.path.isdir(path) and not _holds_classes(path, on_problem):
            on_problem(
                f"{path} holds no class folders with videos, but {splits['train'].name}/ next to it does; "
                f"fill it or remove it"
            )
    return read_class_folders(splits["train"], source, on_problem)


def read_class_folders(folder: Path, root: Path, on_problem: OnProblem) -> Manifest:
    """The clips of the class folders in `folder`, named relative to `root`."""
    entries: list[Entry] = []
    ignored: list[str] = []
    loose: list[str] = []
    empty: list[str] = []
    for path in _children(folder, on_problem):
        if looks_like_video(path):
            loose.append(path.relative_to(root).as_posix())
        elif not os.path.isdir(path):
            ignored.append(path.relative_to(root).as_posix())
        else:
            found = list(walk(path, on_problem, (os.path.realpath(folder),)))
            videos = [inner for inner, video in found if video]
            entries += [Entry(video, video.relative_to(root).as_posix(), path.name) for video in videos]
            ignored += [inner.relative_to(root).as_posix() for inner, video in found if not video]
            if not videos:
                empty.append(f"{path.name}/")
    if not entries:
        on_problem(_nothing_found(folder, loose, ignored))
    elif empty:
        on_problem(
            f"{folder}: {counted(len(empty), 'class folder')} without a video: {listed(empty)}; "
            "add videos or move them elsewhere"
        )
    labels = sort_labels([entry.label for entry in entries if entry.label is not None])
    return Manifest(tuple(entries), labels, ignored=tuple(loose + ignored))


def walk(folder: Path, on_problem: OnProblem, parents: tuple[str, ...] = ()) -> Iterator[tuple[Path, bool]]:
    """Every file or folder of images below `folder`, sorted, each paired with whether it is a video."""
    here = os.path.realpath(folder)
    if here in parents:
        return
    for path in _children(folder, on_problem):
        if looks_like_video(path):
            yield path, True
        elif os.path.isdir(path):
            yield from walk(path, on_problem, (*parents, here))
        else:
            yield path, False


def _holds_videos(folder: Path, on_problem: OnProblem) -> bool:
    return any(video for _, video in walk(folder, on_problem))


def _holds_classes(folder: Path, on_problem: OnProblem) -> bool:
    return any(
        os.path.isdir(inner) and not looks_like_video(inner) and _holds_videos(inner, on_problem)
        for inner in _children(folder, on_problem)
    )


def _nothing_found(folder: Path, loose: Sequence[str], ignored: Sequence[str]) -> str:
    expected = f"expected one folder per class, such as {folder.name}/wave/clip.mp4"
    if loose:
        return (
            f"{folder}: {counted(len(loose), 'video')} not in a class folder ({listed(loose, 3)}); {expected} "
            f"(a folder of numbered images is one video)"
        )
    found = f"no video, only {listed(ignored, 3)}" if ignored else "no files"
    return f"{folder}: found {found}; {expected}"


def _children(folder: Path, on_problem: OnProblem) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder)) if not is_hidden(name)]
    except OSError as error:
        on_problem(f"{folder} cannot be listed ({error.strerror}); expected a readable folder")
        return []
