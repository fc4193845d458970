"""Data sets given by the annotations of a public one, with its videos somewhere nearby."""

import os
from collections.abc import Sequence
from pathlib import Path

from stadapter.errors import DataError
from stadapter.labels import LabelKind
from stadapter.layouts import (
    EPIC,
    Annotations,
    ListedClip,
    OnProblem,
    Part,
    find_videos_of,
    read_listing,
)
from stadapter.manifest.checks import check_one_label
from stadapter.manifest.entries import NOTHING, Entry, Manifest, sort_labels
from stadapter.manifest.paths import absolute
from stadapter.wording import counted


def read_parts(
    annotations: Annotations,
    source: Path,
    video_root: str | os.PathLike[str] | None,
    label_kind: LabelKind,
    on_problem: OnProblem,
    *,
    with_val: bool,
) -> tuple[Manifest, Manifest | None]:
    """The clips to train on that annotations list, and those to validate on if they are listed and wanted."""

    def read(part: Part) -> Manifest:
        return read_annotations(annotations, part, source, video_root, label_kind, on_problem)

    if not annotations.is_folder:
        return read(next(iter(annotations.files))), None
    if "train" not in annotations.files:
        names = ", ".join(file.name for files in annotations.files.values() for file in files[:1])
        on_problem(f"{source}: read as {annotations.layout}, found {names} but no list of clips to train on; add it")
        return NOTHING, None
    held_out = annotations.held_out if with_val else None
    return read("train"), read(held_out) if held_out is not None else None


def read_annotations(
    annotations: Annotations,
    part: Part,
    source: Path,
    video_root: str | os.PathLike[str] | None,
    label_kind: LabelKind,
    on_problem: OnProblem,
) -> Manifest:
    """The clips of one part of the annotations, except those whose videos are not found."""
    try:
        listing = read_listing(annotations, part, label_kind=label_kind, on_problem=on_problem)
        root, paths = _find_listed(annotations, listing.clips, source, video_root)
    except DataError as error:
        on_problem(str(error))
        return NOTHING
    clips = list(dict.fromkeys(listing.clips))
    entries = tuple(_annotated_entry(clip, paths[clip], root) for clip in clips if clip in paths)
    if annotations.layout != EPIC:  # whose narrators may describe one segment twice
        check_one_label(source, entries, on_problem)
    files = annotations.files[part]
    told = [files[0].name] if len(files) == 1 else [part]
    told += [annotations.remark] if annotations.remark else []
    remarks = [f"read as {annotations.layout} ({', '.join(told)}), videos below {root}"]
    if repeated := len(listing.clips) - len(clips):
        remarks.append(f"{counted(repeated, 'line')} listed twice and counted once")
    labels = listing.labels
    if labels is None:
        labels = sort_labels([clip.label for clip in clips if clip.label is not None])
    missing = tuple(clip.title for clip in clips if clip not in paths)
    return Manifest(entries, labels, missing=missing, remarks=tuple(remarks), heads=listing.heads)


def _find_listed(
    annotations: Annotations, clips: Sequence[ListedClip], source: Path, video_root: str | os.PathLike[str] | None
) -> tuple[Path, dict[ListedClip, Path]]:
    """The folder that holds the videos, and the video of every clip that has one.

    Raises:
        DataError: no videos are found, or no clips are listed.
    """
    where = f"{source}: read as {annotations.layout}"
    if not clips:
        raise DataError(f"{where}, but it lists no clips; expected one per line")
    folder = annotations.folder
    roots = [absolute(video_root)] if video_root is not None else [source, folder, folder.parent]
    for root in dict.fromkeys(root for root in roots if root.is_dir() and root != root.parent):
        if paths := find_videos_of(clips, root):
            return root, paths
    looked = " or ".join(map(str, dict.fromkeys(root for root in roots if not root.is_file())))
    raise DataError(
        f"{where}, but none of its {counted(len({clip.stem for clip in clips}), 'video')} was found below "
        f"{looked}, the first being {clips[0].stem} with a video's suffix; give their folder with --video-root"
    )


def _annotated_entry(clip: ListedClip, path: Path, root: Path) -> Entry:
    name = path.relative_to(root).as_posix()
    rate = clip.frames_per_second if clip.frames_per_second is not None and path.is_dir() else None
    return Entry(path, name, clip.label, clip.start_seconds, clip.end_seconds, rate, clip.by_head)
