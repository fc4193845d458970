"""Which videos there are and what each one shows: read from folders or lists, split and checked. No video is opened.

folder per class        gestures/left/a.mp4, gestures/up/subject1/b.mp4, gestures/up/c/0001.jpg, 0002.jpg …
folders per split       gestures/train/left/a.mp4, gestures/val/left/b.mp4     (train or training; val, valid or
                        validation; test or testing; in any case)
CSV                     path,label  or  path,label,start,end  (seconds); two columns need no header
                        path,label,split  (train, val or test)  or  path,label,group  (held out together)
                        path,label:verb,label:noun  for one class per head
released list           <path> <class number>                 paths may contain spaces
public data sets        the annotations of Kinetics, Something-Something-v2 and others: see `layouts`
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stadapter.errors import DataError, SettingsError
from stadapter.labels import LabelKind
from stadapter.layouts import OnProblem, Part, held_out_part, recognise
from stadapter.manifest.annotations import read_annotations, read_parts
from stadapter.manifest.checks import check_held_out, check_settings, check_trainable, unused_settings, used_settings
from stadapter.manifest.entries import NOTHING, Entry, Manifest, sort_labels
from stadapter.manifest.folders import read_class_folders, read_split_folders, split_folders, walk
from stadapter.manifest.holdout import VAL_FRACTION, find_held_out_up_to, hold_out
from stadapter.manifest.lists import is_list, read_list, read_unlabelled
from stadapter.manifest.paths import absolute, looks_like_video, size_bytes

__all__ = [
    "NOTHING",
    "VAL_FRACTION",
    "Entry",
    "Manifest",
    "absolute",
    "class_folder_roots",
    "find_held_out_up_to",
    "find_videos",
    "is_list",
    "looks_like_video",
    "read_manifest",
    "read_splits",
    "read_unlabelled",
    "size_bytes",
    "sort_labels",
    "unused_settings",
    "used_settings",
]


def refuse(problem: str) -> None:
    """Raise a problem as an error.

    Raises:
        DataError: always.
    """
    raise DataError(problem)


def read_manifest(
    data: str | os.PathLike[str],
    *,
    video_root: str | os.PathLike[str] | None = None,
    label_kind: LabelKind = "action",
    split_number: int = 1,
    on_problem: OnProblem = refuse,
) -> Manifest:
    """Read the videos and labels of a folder per class, a CSV, a released list or a public data set's annotations.

    For a folder of annotations or of splits, or a list with a column split, this is the validation part, or else the
    test part. Every problem is reported to `on_problem`; if that does not raise, whatever could be read is returned.

    Args:
        data: the folder or list.
        video_root: the folder that the paths in a list are relative to, by default the list's own; with the
            annotations of a public data set, a folder that holds its videos at any depth, by default that of the
            annotations or the one above it.
        label_kind: what EPIC-Kitchens clips are labelled with: an action is a verb and a noun as one class; with
            verb+noun every clip has one class for each of two heads.
        split_number: which split of UCF101 or HMDB51 to use, where a folder holds several.

    Raises:
        SettingsError: an unknown kind of label, or a split that does not exist.
        DataError: nothing there, no videos, a class folder without videos, or a list that cannot be understood
            or whose files do not exist.
    """
    check_settings(label_kind, split_number)
    source = absolute(data)
    if not _exists(source, data, on_problem):
        return NOTHING
    try:
        if annotations := recognise(source, split_number=split_number):
            return read_annotations(
                annotations, annotations.held_out or "train", source, video_root, label_kind, on_problem
            )
    except DataError as error:
        on_problem(str(error))
        return NOTHING
    return _read_held_out(source, video_root, on_problem)


def _exists(source: Path, data: str | os.PathLike[str], on_problem: OnProblem) -> bool:
    if os.path.exists(source):
        return True
    on_problem(f"{data}: no such file or folder; expected a folder of class folders, a CSV or a list")
    return False


def _read_held_out(source: Path, video_root: str | os.PathLike[str] | None, on_problem: OnProblem) -> Manifest:
    """The part of folders or of a list to validate on; all clips if there are no parts."""
    if source.is_file():
        parts = _read_list(source, video_root, on_problem)
        chosen = held_out_part(parts) or "train"
        return _chosen(parts[chosen], chosen, {part: part for part in parts})
    splits = split_folders(source, on_problem)
    if not splits:
        return read_class_folders(source, source, on_problem)
    chosen = held_out_part(splits) or "train"
    manifest = read_class_folders(splits[chosen], source, on_problem)
    return _chosen(manifest, chosen, {part: f"{path.name}/" for part, path in splits.items()})


def _read_list(source: Path, video_root: str | os.PathLike[str] | None, on_problem: OnProblem) -> dict[Part, Manifest]:
    return read_list(source, absolute(video_root) if video_root is not None else source.parent, on_problem)


def _chosen(manifest: Manifest, chosen: Part, names: Mapping[Part, str]) -> Manifest:
    """One part of a data set, with a remark on what else there is."""
    others = " and ".join(name for part, name in names.items() if part != chosen)
    if not others:
        return manifest
    remark = f"these are the clips of {names[chosen]}; there is also {others}"
    return replace(manifest, remarks=(*manifest.remarks, remark))


def class_folder_roots(data: str | os.PathLike[str], *, split_number: int = 1) -> list[Path]:
    """The folders of a data set whose sub-folders are its classes; empty if it is a list or has annotations.

    Raises:
        DataError: a folder that cannot be listed.
    """
    source = absolute(data)
    if not source.is_dir() or recognise(source, split_number=split_number):
        return []
    return list(split_folders(source, refuse).values()) or [source]


def read_splits(
    data: str | os.PathLike[str],
    *,
    val_fraction: float = VAL_FRACTION,
    val_data: str | os.PathLike[str] | None = None,
    video_root: str | os.PathLike[str] | None = None,
    label_kind: LabelKind = "action",
    split_number: int = 1,
    held_out_up_to: Mapping[str, str] | None = None,
    on_problem: OnProblem = refuse,
) -> tuple[Manifest, Manifest | None]:
    """Read a data set to train on, and the clips to validate on.

    Validation clips are the first of these that exist: `val_data`; the folder val/ or else test/ next to train/, or the
    validation or test part of a folder of annotations or of a list with a column split; about `val_fraction` of the
    videos of each class, at least one, chosen by a hash of the name. Within a class, all segments cut from one file
    stay on the same side. With several heads, "class" means a combination of their classes, and one with a single video
    is trained on. If a list has a column group, whole groups are chosen, across all classes, so that the fraction is
    one of all clips. With `val_fraction` 0 and none of these there are no validation clips (None). Every problem is
    reported to `on_problem`; if that does not raise, whatever could be read is returned.

    `video_root`, `label_kind` and `split_number` are as in `read_manifest`; they apply to both. `held_out_up_to`, from
    the receipt of an earlier run, keeps that run's clips on their sides when clips were held out by name or group,
    whatever has been added or removed since.

    Raises:
        SettingsError: `val_fraction` is not in [0, 1), an unknown kind of label, or a split that does not exist.
        DataError: as `read_manifest`; only one class; clips without a label; a class with one video, or clips of
            one group, where one is to be held out; validation clips without a label or with one that training lacks.
    """
    if not 0 <= val_fraction < 1:
        raise SettingsError(f"val_fraction is {val_fraction}; expected at least 0 and less than 1")
    check_settings(label_kind, split_number)
    source = absolute(data)
    try:
        annotations = recognise(source, split_number=split_number)
    except DataError as error:
        on_problem(str(error))
        return NOTHING, None
    if annotations:
        train, val = read_parts(annotations, source, video_root, label_kind, on_problem, with_val=val_data is None)
    else:
        train, val = _read_own_parts(data, video_root, on_problem, with_val=val_data is None)
    both = (data,) if val_data is None else (data, val_data)
    unused = unused_settings(*both, video_root=video_root, label_kind=label_kind, split_number=split_number)
    train = replace(train, remarks=(*train.remarks, *unused))
    check_trainable(train, data, on_problem)
    if val_data is not None:
        val = read_manifest(
            val_data, video_root=video_root, label_kind=label_kind, split_number=split_number, on_problem=on_problem
        )
    elif val is None:
        if not val_fraction or not train.labels:
            return train, None
        train, val = hold_out(train, val_fraction, on_problem, up_to=held_out_up_to)
        return train, val if val.entries else None
    if val_fraction not in (0, VAL_FRACTION):
        remark = f"--val-fraction {val_fraction:g} is not used here: there are clips to validate on"
        train = replace(train, remarks=(*train.remarks, remark))
    check_held_out(val, train, val_data or data, on_problem)
    return train, val


def _read_own_parts(
    data: str | os.PathLike[str],
    video_root: str | os.PathLike[str] | None,
    on_problem: OnProblem,
    *,
    with_val: bool,
) -> tuple[Manifest, Manifest | None]:
    """The clips of folders or of a list to train on, and those to validate on if there are any and they are wanted."""
    source = absolute(data)
    if not _exists(source, data, on_problem):
        return NOTHING, None
    if not source.is_file():
        if splits := split_folders(source, on_problem):
            return read_split_folders(source, splits, on_problem, with_val=with_val)
        return read_class_folders(source, source, on_problem), None
    parts = _read_list(source, video_root, on_problem)
    if "train" not in parts:
        on_problem(
            f"{source}: the column split holds {' and '.join(parts)} but no train; add clips to train on, or name "
            "a list of them"
        )
    held_out = held_out_part(parts) if with_val else None
    # The remarks are about the list as a whole, and reported once.
    return parts.get("train", NOTHING), replace(parts[held_out], remarks=()) if held_out is not None else None


def find_videos(folder: str | os.PathLike[str], *, on_problem: OnProblem = refuse) -> tuple[list[Path], list[Path]]:
    """All videos below a folder, sorted, and the files that are not videos; hidden ones are skipped.

    A folder of numbered images is one video. A link back to a parent folder is not followed. A folder that
    cannot be listed is reported to `on_problem`.

    Raises:
        DataError: the folder cannot be listed.
    """
    videos: list[Path] = []
    others: list[Path] = []
    for path, video in walk(absolute(folder), on_problem):
        (videos if video else others).append(path)
    return videos, others
