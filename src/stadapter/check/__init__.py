"""The data doctor: whether training can start on a data set, and what would make its result worse."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from stadapter.check.examine import Clip, examine_all
from stadapter.check.findings import LEVELS, Finding, find_all
from stadapter.errors import DataError, SettingsError
from stadapter.labels import LabelKind
from stadapter.manifest import (
    NOTHING,
    VAL_FRACTION,
    Entry,
    Manifest,
    absolute,
    find_videos,
    looks_like_video,
    read_splits,
    sort_labels,
)
from stadapter.paths import expanded
from stadapter.video import VIDEO_SUFFIXES
from stadapter.wording import counted, tallied

if TYPE_CHECKING:
    from rich.console import Group

_OF_A_LINE = re.compile(r"(?P<source>.+), line (?P<line>\d+): (?P<found>.+?)(?:; (?P<advice>[^;]+))?", re.DOTALL)


@dataclass(frozen=True)
class ClassCount:
    """One line of the table by class."""

    label: str
    train: int
    """Clips to train on, readable or not."""
    held_out: int
    """Clips to validate on, readable or not."""
    unreadable: int
    """How many of both cannot be read."""
    median_seconds: float | None
    """Median over the readable ones; None if no length is known."""


@dataclass(frozen=True)
class DataReport:
    """What was found in a data set."""

    data: str
    deep: bool
    """Whether every frame was decoded."""
    clips: tuple[Clip, ...]
    """All labelled clips, those to train on first."""
    findings: tuple[Finding, ...]
    """Errors first, then warnings, then notes."""

    def __repr__(self) -> str:
        """A summary, without the clips and findings themselves; rich.print shows them as tables."""
        counts = f"{counted(len(self.clips), 'clip')}, {counted(len(self.findings), 'finding')}"
        return f"DataReport({self.data}: {counts}, could_train={self.could_train})"

    def __rich__(self) -> "Group":
        from stadapter.check.tables import tables

        return tables(self)

    @property
    def could_train(self) -> bool:
        """Whether `train` can start, and will not stop for unreadable clips."""
        return not any(finding.level == "error" for finding in self.findings)

    def per_class(self) -> tuple[ClassCount, ...]:
        """Counts of every class of every head, in the order of the labels."""
        of: dict[str, list[Clip]] = {}
        for clip in self.clips:
            for label in clip.classes:
                of.setdefault(label, []).append(clip)
        return tuple(_count(label, of[label]) for label in sort_labels(list(of)))

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types: dicts, lists, strings, numbers and None; with every clip and every finding."""
        return {
            "data": self.data,
            "deep": self.deep,
            "could_train": self.could_train,
            "num_train": sum(not clip.held_out for clip in self.clips),
            "num_held_out": sum(clip.held_out for clip in self.clips),
            "findings": [{**asdict(finding), "items": list(finding.items)} for finding in self.findings],
            "classes": [asdict(count) for count in self.per_class()],
            "clips": [_clip_to_json(clip) for clip in self.clips],
        }


def check_data(
    data: str | os.PathLike[str],
    *,
    val_data: str | os.PathLike[str] | None = None,
    val_fraction: float = VAL_FRACTION,
    video_root: str | os.PathLike[str] | None = None,
    label_kind: LabelKind = "action",
    split_number: int = 1,
    num_frames: int = 8,
    max_bad_fraction: float = 0.1,
    deep: bool = False,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Inspect every clip of a data set as training would, and report everything that is wrong with it.

    Args:
        data: whatever `read_splits` takes; clips are held out in the same way.
        val_data: clips to validate on.
        val_fraction: share of each class that is held out if there are no validation clips.
        video_root: folder that the paths of a list start from, or that holds the videos of a public data set.
        label_kind: which labels of EPIC-Kitchens clips to use.
        split_number: which of the splits of UCF101 or HMDB51.
        num_frames: frames per training clip; videos with fewer are reported.
        max_bad_fraction: with a larger share of unreadable clips a training run stops.
        deep: decode every frame, which finds damage inside files; otherwise only the first frame of each is decoded.
        num_workers: threads that read videos; 0 and 1 read in this one.
        progress: called with the number of videos done and the total.

    Raises:
        SettingsError: a number is out of range. Problems with the data are never raised.
    """
    if num_frames < 1:
        raise SettingsError(f"num_frames {num_frames}: expected at least 1")
    if num_workers < 0:
        raise SettingsError(f"num_workers {num_workers}: expected at least 0")
    if not 0 <= max_bad_fraction <= 1:
        raise SettingsError(f"max_bad_fraction {max_bad_fraction}: expected 0 to 1")
    problems: list[str] = []
    train, val = NOTHING, None
    try:
        train, val = read_splits(
            data,
            val_fraction=val_fraction,
            val_data=val_data,
            video_root=video_root,
            label_kind=label_kind,
            split_number=split_number,
            on_problem=problems.append,
        )
    except (DataError, OSError) as error:
        problems.append(str(error))
    entries = [(entry, False) for entry in train.entries or ([] if val else _unlabelled(data))]
    if val is not None:
        entries += [(_named_from(val_data, entry), True) for entry in val.entries]
    clips = examine_all(entries, deep=deep, num_workers=num_workers, progress=progress)
    findings = [
        *_problems(problems),
        *find_all(clips, num_frames=num_frames, max_bad_fraction=max_bad_fraction),
        *_left_out(expanded(data), train),
        *(_left_out(expanded(val_data or data), val) if val is not None else ()),
    ]
    return DataReport(
        os.fspath(data), deep, clips, tuple(sorted(findings, key=lambda found: LEVELS.index(found.level)))
    )


def _problems(problems: Iterable[str]) -> Iterator[Finding]:
    """What was wrong with the data as a whole; lines of a list refused for the same reason are reported together."""
    together: dict[tuple[str, str], list[re.Match[str]]] = {}
    alone: list[str] = []
    for problem in dict.fromkeys(problems):
        if match := _OF_A_LINE.fullmatch(problem):
            together.setdefault((match["source"], match["advice"] or match["found"]), []).append(match)
        else:
            alone.append(problem)
    for (source, _), matches in together.items():
        if len(matches) == 1:
            yield Finding("data", "error", matches[0][0], "")
            continue
        items = tuple(f"line {match['line']}: {match['found']}" for match in matches)
        found = f"{source}: {counted(len(matches), 'line')} that cannot be used"
        yield Finding("data", "error", found, matches[0]["advice"] or "", items)
    yield from (Finding("data", "error", problem, "") for problem in alone)


def _unlabelled(data: str | os.PathLike[str]) -> list[Entry]:
    """The videos of a folder that has no classes, or the one video that was given."""
    if not os.fspath(data):
        return []
    source = absolute(data)
    if looks_like_video(source):
        return [Entry(source, source.name, None)]
    if not os.path.isdir(source):
        return []
    videos, _ = find_videos(source, on_problem=lambda problem: None)
    return [Entry(video, video.relative_to(source).as_posix(), None) for video in videos]


def _named_from(val_data: str | os.PathLike[str] | None, entry: Entry) -> Entry:
    """A validation entry, named so that it cannot be mistaken for one to train on."""
    if val_data is None:
        return entry
    folder = Path(val_data) if os.path.isdir(expanded(val_data)) else Path(val_data).parent
    return replace(entry, name=(folder / entry.name).as_posix())


def _left_out(root: Path, manifest: Manifest) -> Iterator[Finding]:
    """How annotations were understood; files that are listed but missing, or present but not used."""
    for remark in manifest.remarks:
        yield Finding("layout", "note", remark, "")
    if manifest.missing:
        total = len(manifest.entries) + manifest.num_held_out + len(manifest.missing)
        found = f"{len(manifest.missing)} of {counted(total, 'listed clip')} missing"
        yield Finding("not found", "warning", found, "training leaves them out: correct the list", manifest.missing)
    loose = tuple(name for name in manifest.ignored if looks_like_video(root / name))
    named = {name for name in manifest.ignored if Path(name).suffix.lower() in VIDEO_SUFFIXES}
    broken = tuple(name for name in manifest.ignored if name in named and name not in loose)
    others = tuple(name for name in manifest.ignored if name not in {*loose, *broken})
    if loose and manifest.entries:
        found = f"{counted(len(loose), 'video')} outside the class folders"
        yield Finding("outside", "warning", found, "training leaves them out: move each to its class", loose)
    if broken:
        found = f"{counted(len(broken), 'name')} of a video with no file behind it: broken links, pipes or devices"
        yield Finding("no file", "warning", found, "training leaves them out: restore or remove them", broken)
    if others:
        found = f"{counted(len(others), 'other file')}: {tallied(Path(name).suffix or 'no suffix' for name in others)}"
        yield Finding("other files", "note", found, "nothing to do: training leaves them out", others)


def _count(label: str, clips: Sequence[Clip]) -> ClassCount:
    seconds = [clip.seconds for clip in clips if clip.seconds is not None]
    held_out = sum(clip.held_out for clip in clips)
    unreadable = sum(clip.error is not None for clip in clips)
    return ClassCount(label, len(clips) - held_out, held_out, unreadable, median(seconds) if seconds else None)


def _clip_to_json(clip: Clip) -> dict[str, Any]:
    video = clip.video
    return {
        "name": clip.name,
        "label": clip.label,
        "classes": list(clip.classes),
        "held_out": clip.held_out,
        "start_seconds": clip.segment.start_seconds,
        "end_seconds": clip.segment.end_seconds,
        "num_frames": clip.num_frames,
        "seconds": clip.seconds,
        "error": clip.error,
        "size_bytes": video.size_bytes,
        "sha256": video.content,
        "num_decoded": video.num_decoded,
        "num_damaged": video.num_damaged,
        "video": asdict(video.info) if video.info is not None else None,
    }
