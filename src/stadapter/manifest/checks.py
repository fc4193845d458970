"""What must be true of a data set before anything is trained or measured on it."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stadapter.errors import DataError, SettingsError
from stadapter.labels import LABEL_KINDS, LabelKind
from stadapter.layouts import EPIC, HMDB, NUM_SPLITS, UCF, OnProblem, recognise
from stadapter.manifest.entries import Entry, Manifest
from stadapter.manifest.paths import absolute
from stadapter.wording import counted, listed


def check_settings(label_kind: LabelKind, split_number: int) -> None:
    """Refuse settings that no data set has.

    Raises:
        SettingsError: an unknown kind of label, or a split number that does not exist.
    """
    if label_kind not in LABEL_KINDS:
        raise SettingsError(f"label_kind {label_kind!r}: expected one of {', '.join(LABEL_KINDS)}")
    if not 1 <= split_number <= NUM_SPLITS:
        raise SettingsError(f"split_number {split_number}: expected 1 to {NUM_SPLITS}")


def unused_settings(
    *data: str | os.PathLike[str],
    video_root: str | os.PathLike[str] | None,
    label_kind: LabelKind,
    split_number: int,
) -> tuple[str, ...]:
    """A remark on each setting that was given but means nothing for these kinds of data."""
    if video_root is None and label_kind == "action" and split_number == 1:
        return ()
    used = used_settings(*data, split_number=split_number)
    remarks = []
    if video_root is not None and "video_root" not in used:
        remarks.append("--video-root is not used here: class folders hold their own videos")
    if label_kind != "action" and "label_kind" not in used:
        remarks.append(f"--label-kind {label_kind} is not used here: it applies to the annotations of EPIC-Kitchens")
    if split_number != 1 and "split_number" not in used:
        remarks.append(f"--split-number {split_number} is not used here: it applies to a folder of UCF101 or HMDB51")
    return tuple(remarks)


def used_settings(*data: str | os.PathLike[str], split_number: int) -> set[str]:
    """Which of video_root, label_kind and split_number mean something for these kinds of data."""
    return set().union(*(_used_settings(absolute(source), split_number) for source in data))


def _used_settings(source: Path, split_number: int) -> set[str]:
    try:
        annotations = recognise(source, split_number=split_number)
    except DataError:  # reported when it is read
        return {"video_root", "label_kind", "split_number"}
    layout = annotations.layout if annotations else None
    means = {
        "video_root": annotations is not None or source.is_file(),
        "label_kind": layout == EPIC,
        "split_number": layout in (UCF, HMDB) and source.is_dir(),
    }
    return {name for name, is_used in means.items() if is_used}


def check_one_label(source: Path, entries: Sequence[Entry], on_problem: OnProblem) -> None:
    """Report clips that are listed with two labels."""
    labels: dict[tuple[Path, tuple[float, float]], str | None] = {}
    twice: list[str] = []
    for entry in entries:
        known = labels.setdefault((entry.path, entry.segment.bounds), entry.label)
        if known != entry.label:
            twice.append(f"{entry.title} is listed as {known!r} and as {entry.label!r}")
    if twice:
        on_problem(f"{source}: {listed(twice)}; expected one label per clip")


def check_trainable(manifest: Manifest, data: str | os.PathLike[str], on_problem: OnProblem) -> None:
    """Report clips without a label, and heads with only one class."""
    check_labelled(manifest, data, on_problem)
    counts = manifest.counts()
    for classes in manifest.label_space.labels_by_head:
        present = [label for label in classes if counts[label]]
        if len(present) == 1:
            within = _folders_within(manifest, data, present[0])
            on_problem(f"{data}: found only one class, {present[0]!r}; expected at least two to tell apart{within}")


def _folders_within(manifest: Manifest, data: str | os.PathLike[str], label: str) -> str:
    """What to add if the folder of the only class holds folders of videos: those may be the classes."""
    paths = [PurePosixPath(entry.name).parts for entry in manifest.entries]
    inner = sorted({parts[1] for parts in paths if parts[0] == label and len(parts) > 2})
    if not absolute(data).is_dir() or len(inner) < 2:
        return ""
    found = f"{label}/ holds {counted(len(inner), 'folder')} of videos ({listed(inner)})"
    return f". {found}: if these are classes or splits, name {os.path.join(data, label)}"


def check_labelled(manifest: Manifest, data: str | os.PathLike[str], on_problem: OnProblem) -> None:
    """Report clips without a label."""
    unlabelled = [entry.name for entry in manifest.entries if entry.label is None]
    if unlabelled:
        found = f"{counted(len(unlabelled), 'clip')} without a label ({listed(unlabelled, 3)})"
        on_problem(f"{data}: {found}; expected one for each")


def check_held_out(manifest: Manifest, train: Manifest, data: str | os.PathLike[str], on_problem: OnProblem) -> None:
    """Report validation clips that have no label, or one that is not trained."""
    check_labelled(manifest, data, on_problem)
    if train.labels and (unknown := sorted(train.label_space.unknown(manifest.label_space))):
        on_problem(
            f"{counted(len(unknown), 'validation class')} not in the training data: {listed(unknown)}; "
            f"training has {listed(train.label_space.labels)}"
        )
