"""The data doctor: whether training can start on a data set, and what would make its result worse."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from stadapter.check.examine import Clip, examine_all
from stadapter.check.findings import LEVELS, Finding, find_all
from stadapter.errors import DataError, SettingsError
from stadapter.layouts import LabelKind
from stadapter.manifest import (
    NOTHING,
    VAL_FRACTION,
    Entry,
    Manifest,
    find_videos,
    looks_like_video,
    read_splits,
    sort_labels,
)
from stadapter.paths import expanded
from stadapter.video import VIDEO_SUFFIXES
from stadapter.wording import counted, printable

SHOWN_ITEMS, SHOWN_PER_KIND, SHOWN_CLASSES, SHOWN_VALUES = 5, 5, 30, 4
"""How many clips of a finding, findings of a kind, classes, and sizes or codecs the tables show; the JSON has all."""
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
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

    def __rich__(self) -> Group:
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


def tables(report: DataReport) -> Group:
    """The summary, the table by class, the findings and the verdict, to be printed with rich."""
    parts: list[RenderableType] = []
    if report.clips:
        parts.append(summary_table(report))
    if any(clip.label is not None for clip in report.clips):
        parts.append(class_table(report))
    if (num_classes := len(report.per_class())) > SHOWN_CLASSES:
        parts.append(f"the {SHOWN_CLASSES} classes with the fewest clips to train on, of {num_classes}; all in --json")
    if parts:
        parts.append("")
    if report.findings:
        parts.append(findings_list(report))
    return Group(*parts, verdict(report))


def summary_table(report: DataReport) -> Table:
    """Counts, lengths and formats."""
    clips = report.clips
    videos = {clip.video.path: clip.video for clip in clips}.values()
    infos = [video.info for video in videos if video.info is not None]
    num_held_out = sum(clip.held_out for clip in clips)
    seconds = [clip.seconds for clip in clips if clip.seconds is not None]
    frames = [clip.num_frames for clip in clips if clip.error is None]
    table = Table(title="Data", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    rows = {
        "folder or list": printable(report.data),
        "clips": f"{len(clips)}: {len(clips) - num_held_out} to train on, {num_held_out} held out"
        if any(clip.label is not None for clip in clips)
        else f"{len(clips)}, none with a class",
        "videos": f"{len(videos)}, {decimal(sum(max(0, video.size_bytes) for video in videos))}",
        "length": f"{_spread(seconds, 's')}; {sum(seconds) / 60:.1f} min in total" if seconds else "",
        "frames": _spread(frames, "") if frames else "",
        "size": _kinds(f"{info.width}x{info.height}" for info in infos),
        "codec": _kinds(info.codec for info in infos),
        "frames per second": _kinds(f"{info.frames_per_second:.4g}" for info in infos if info.frames_per_second),
        "rotated by a quarter or half turn": str(sum(info.rotation_degrees != 0 for info in infos) or ""),
        "variable frame rate": str(sum(info.has_variable_rate for info in infos) or ""),
    }
    for name, value in rows.items():
        if value:
            table.add_row(name, Text(value))
    return table


def class_table(report: DataReport) -> Table:
    """Clips of every class; with many classes only those with the fewest to train on."""
    counts = report.per_class()
    shown = counts if len(counts) <= SHOWN_CLASSES else sorted(counts, key=lambda count: count.train)[:SHOWN_CLASSES]
    table = Table(title="By class", title_justify="left")
    table.add_column("class", overflow="fold")
    has_bad = any(count.unreadable for count in counts)
    has_length = any(count.median_seconds is not None for count in counts)
    for header in ("train", "held out", *["unreadable"] * has_bad, *["median s"] * has_length):
        table.add_column(header, justify="right")
    for count in shown:
        cells = [str(count.train), str(count.held_out)]
        cells += [str(count.unreadable or "·")] * has_bad
        cells += ["" if count.median_seconds is None else f"{count.median_seconds:.1f}"] * has_length
        table.add_row(Text(printable(count.label)), *cells)
    return table


def findings_list(report: DataReport) -> Group:
    """What was noticed, the first few clips of each, and what to do."""
    of_kind: dict[str, list[Finding]] = {}
    for finding in report.findings:
        of_kind.setdefault(finding.kind, []).append(finding)
    parts: list[RenderableType] = []
    for findings in of_kind.values():
        parts += [part for finding in findings[:SHOWN_PER_KIND] for part in _finding(finding)]
        if len(findings) > SHOWN_PER_KIND:
            parts += [
                _hanging("", Text(f"and {len(findings) - SHOWN_PER_KIND} more like these, all in --json", "dim"), 8),
                "",
            ]
    return Group(*parts)


def _finding(finding: Finding) -> Iterator[RenderableType]:
    yield _hanging(Text(finding.level, STYLES[finding.level]), Text(printable(finding.found), "bold"), 8)
    yield from (_hanging("", Text(printable(item)), 10) for item in finding.items[:SHOWN_ITEMS])
    if len(finding.items) > SHOWN_ITEMS:
        yield _hanging("", Text(f"and {len(finding.items) - SHOWN_ITEMS} more, all in --json", "dim"), 10)
    if finding.advice:
        yield _hanging("→", Text(finding.advice), 10)
    yield ""


def _hanging(mark: Text | str, text: Text, indent: int) -> Table:
    """A paragraph with its lines at `indent`, and a mark before the first."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True, min_width=indent - 1, justify="right" if mark == "→" else "left")
    table.add_column(overflow="fold")
    table.add_row(mark, text)
    return table


def verdict(report: DataReport) -> Text:
    """Whether training can start, in a line."""
    levels = Counter(finding.level for finding in report.findings)
    found = ", ".join(counted(levels[level], level) for level in LEVELS if levels[level]) or "no problems found"
    if report.could_train:
        return Text.assemble(("training can start", "bold green"), f": {found}")
    return Text.assemble(("training cannot start", "bold red"), f": {found}")


def _unlabelled(data: str | os.PathLike[str]) -> list[Entry]:
    """The videos of a folder that has no classes, or the one video that was given."""
    if not os.fspath(data):
        return []
    source = Path(os.path.abspath(expanded(data)))
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
        found = f"{counted(len(others), 'other file')}: {_kinds(Path(name).suffix or 'no suffix' for name in others)}"
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
        "video": asdict(video.info) if video.info is not None else None,
    }


def _spread(values: Sequence[float], unit: str) -> str:
    """Lowest to highest, and the median."""
    form = ".1f" if unit else "g"
    ends = [f"{value:{form}}" for value in (min(values), max(values), median(values))]
    unit = f" {unit}" if unit else ""
    return f"{ends[2]}{unit} each" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}{unit}, median {ends[2]}{unit}"


def _kinds(values: Iterable[str]) -> str:
    """How often each occurs, most frequent first."""
    counts = Counter(values).most_common()
    shown = ", ".join(f"{value} ({count})" for value, count in counts[:SHOWN_VALUES])
    more = sum(count for _, count in counts[SHOWN_VALUES:])
    return f"{shown}, others ({more})" if more else shown
