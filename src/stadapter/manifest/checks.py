"""What must hold of a data set before anything is trained or measured on it."""

import os
from collections.abc import Sequence
from pathlib import Path

from stadapter.layouts import EPIC, HMDB, UCF, Annotations, LabelKind, OnProblem
from stadapter.manifest.entries import Entry, Manifest
from stadapter.video.segment import Segment
from stadapter.wording import counted, listed


def unused_settings(
    source: Path,
    annotations: Annotations | None,
    *,
    video_root: str | os.PathLike[str] | None,
    label_kind: LabelKind,
    split_number: int,
) -> tuple[str, ...]:
    """A remark on each setting that was given, and that means nothing for data of this kind."""
    layout = annotations.layout if annotations else None
    remarks = []
    if video_root is not None and layout is None and source.is_dir():
        remarks.append("--video-root is not used here: folders of classes hold their videos")
    if label_kind != "action" and layout != EPIC:
        remarks.append(f"--label-kind {label_kind} is not used here: it is for the annotations of EPIC-Kitchens")
    if split_number != 1 and layout not in (UCF, HMDB):
        remarks.append(f"--split-number {split_number} is not used here: it is for the splits of UCF101 and HMDB51")
    return tuple(remarks)


def check_one_label(source: Path, entries: Sequence[Entry], on_problem: OnProblem) -> None:
    """Tell of clips that are listed with two labels."""
    labels: dict[tuple[Path, Segment], str | None] = {}
    for entry in entries:
        known = labels.setdefault((entry.path, entry.segment), entry.label)
        if known != entry.label:
            on_problem(
                f"{source}: {entry.name} is listed as {known!r} and as {entry.label!r}; expected one label a clip"
            )


def check_trainable(manifest: Manifest, data: str | os.PathLike[str], on_problem: OnProblem) -> None:
    """Tell of clips without a label, and of heads with one class to tell apart."""
    check_labelled(manifest, data, on_problem)
    counts = manifest.counts()
    for classes in manifest.label_space.labels_by_head:
        present = [label for label in classes if counts[label]]
        if len(present) == 1:
            on_problem(f"{data}: found one class only, {present[0]!r}; expected at least two to tell apart")


def check_labelled(manifest: Manifest, data: str | os.PathLike[str], on_problem: OnProblem) -> None:
    """Tell of clips without a label."""
    unlabelled = [entry.name for entry in manifest.entries if entry.label is None]
    if unlabelled:
        found = f"{counted(len(unlabelled), 'clip')} without a label ({listed(unlabelled, 3)})"
        on_problem(f"{data}: {found}; expected one for each")
