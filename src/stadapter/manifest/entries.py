"""Labelled clips, and a data set of them."""

import hashlib
import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stadapter.errors import DataError
from stadapter.labels import LabelSpace, qualified
from stadapter.manifest.paths import file_identity, size_bytes
from stadapter.video.segment import Segment
from stadapter.wording import counted, listed


@dataclass(frozen=True)
class Entry:
    """One labelled clip: a whole video, or a segment of one."""

    path: Path
    """Absolute path of a video file, or of a folder of numbered images."""
    name: str
    """The path relative to the data folder, with forward slashes: the same on every machine."""
    label: str | None
    """Class name; None if a list gives none."""
    start_seconds: float | None = None
    """Start of the segment; None for the start of the video."""
    end_seconds: float | None = None
    """End of the segment; None for the end of the video."""
    frames_per_second: float | None = None
    """Rate of a folder of images, if it is known; None for files, which have their own."""
    by_head: tuple[tuple[str, str], ...] = ()
    """Pairs of head name and class, if a clip has a class for each of several heads; `label` joins these classes."""
    group: str | None = None
    """What it has in common with other clips, such as a person or a session: they are held out together, or trained on
    together. Empty if a list has groups but this clip has none; None if the list has no groups."""

    @property
    def segment(self) -> Segment:
        """Which part of the video it is."""
        return Segment(self.start_seconds, self.end_seconds)

    @property
    def title(self) -> str:
        """Its name, and its segment if it is one."""
        return self.segment.titled(self.name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Its class, or its heads' classes as in `LabelSpace.labels`; empty without a label."""
        if self.by_head:
            return tuple(qualified(head, label) for head, label in self.by_head)
        return () if self.label is None else (self.label,)


@dataclass(frozen=True)
class Manifest:
    """The labelled clips of one data set, and what was left out of it."""

    entries: tuple[Entry, ...]
    """The clips, in the order of the list, or sorted by class and path for folders."""
    labels: tuple[str, ...]
    """The class names: those that occur, sorted, by value if all are whole numbers; or all those of a public data set,
    in its own order."""
    missing: tuple[str, ...] = ()
    """Names that are in the list but not on the disk; they have no entry."""
    ignored: tuple[str, ...] = ()
    """Files in the folders that are not labelled videos; they have no entry."""
    remarks: tuple[str, ...] = ()
    """Sentences on how annotations were understood."""
    num_held_out: int = 0
    """Clips that were taken out of it to validate on."""
    heads: LabelSpace | None = None
    """Classes of each head, if clips have several; `labels` are then the combinations that occur."""
    is_numbered: bool = False
    """Whether a released list gave the classes as numbers; `labels` are then these numbers."""

    def __repr__(self) -> str:
        """Without the clips themselves."""
        return f"Manifest({counted(len(self.entries), 'clip')}, {self.label_space})"

    @property
    def label_space(self) -> LabelSpace:
        """What a classifier trained on it can name."""
        return self.heads if self.heads is not None else LabelSpace.of(self.labels)

    def hash(self) -> str:
        """sha256 hex over the sorted (name, label, start, end, size in bytes) of all clips.

        Another machine with the same files gets the same hash; no video is opened.
        """
        sizes = {path: size_bytes(path) for path in {entry.path for entry in self.entries}}
        rows = sorted(
            json.dumps(
                [entry.name, entry.by_head or entry.label, entry.start_seconds, entry.end_seconds, sizes[entry.path]]
            )
            for entry in self.entries
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Number of clips of every class of every head, in the order of `label_space.labels`."""
        counts = dict.fromkeys(self.label_space.labels, 0)
        for entry in self.entries:
            for label in entry.classes:
                counts[label] += 1
        return counts

    def named(self, labels: Sequence[str]) -> "Manifest":
        """The same clips under the names of a classifier's classes, if a list gave numbers: n becomes labels[n].

        Nothing changes if the manifest has names already, or if all the classifier's classes have numbers as names.

        Raises:
            DataError: a number beyond the classes.
        """
        if not self.is_numbered or all(label.isdecimal() for label in labels):
            return self
        if (highest := int(self.labels[-1])) >= len(labels):
            raise DataError(
                f"class number {highest} in the list; expected 0 to {len(labels) - 1}, as the classifier knows "
                f"{counted(len(labels), 'class')}: is it the list of another data set?"
            )
        remark = f"class numbers are positions among the classifier's classes: 0 is {labels[0]!r}"
        return replace(
            self,
            entries=tuple(replace(entry, label=labels[int(entry.label or 0)]) for entry in self.entries),
            labels=tuple(labels[int(number)] for number in self.labels),
            remarks=(*self.remarks, remark),
            is_numbered=False,
        )

    def shared_with(self, other: "Manifest") -> list[str]:
        """Sorted names of the clips that are also in another data set: the same part of the same file."""

        def places(manifest: Manifest) -> dict[tuple[Hashable, tuple[float, float]], str]:
            files = {path: file_identity(path) for path in {entry.path for entry in manifest.entries}}
            return {(files[e.path], e.segment.bounds): e.name for e in manifest.entries}

        ours = places(self)
        return sorted(ours[place] for place in ours.keys() & places(other).keys())

    def notes(self) -> list[str]:
        """Sentences for the user on how it was read and what was left out; often empty."""
        notes = list(self.remarks)
        if self.missing:
            total = len(self.entries) + self.num_held_out + len(self.missing)
            notes.append(f"{len(self.missing)} of {counted(total, 'listed clip')} not found: {listed(self.missing)}")
        if self.ignored:
            notes.append(
                f"{counted(len(self.ignored), 'file')} ignored, not a video or without a label: {listed(self.ignored)}"
            )
        return notes


NOTHING = Manifest((), ())
"""What is returned for a data set of which nothing could be read."""


def sort_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct class names in order: by value if all are whole numbers, otherwise alphabetically.

    >>> sort_labels(["10", "9", "9"]), sort_labels(["up", "10", "9"])
    (('9', '10'), ('10', '9', 'up'))
    """
    distinct = set(labels)
    if all(re.fullmatch(r"[0-9]+", label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))
