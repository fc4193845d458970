"""What was found in a data set as tables, to be printed with rich."""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from stadapter.check import DataReport
from stadapter.check.findings import LEVELS, Finding
from stadapter.wording import counted, printable, tallied

SHOWN_ITEMS, SHOWN_PER_KIND, SHOWN_CLASSES = 5, 5, 30
"""How many clips of a finding, findings of a kind, and classes are shown; the JSON has all."""
_LONGEST_ITEM = 300
"""How many characters of an item are shown: it may name hundreds of clips that are all the same."""
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


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
        "size": tallied(f"{info.width}x{info.height}" for info in infos),
        "codec": tallied(info.codec for info in infos),
        "frames per second": tallied(f"{info.frames_per_second:.4g}" for info in infos if info.frames_per_second),
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
    yield from (_hanging("", Text(printable(_cut(item))), 10) for item in finding.items[:SHOWN_ITEMS])
    if len(finding.items) > SHOWN_ITEMS:
        yield _hanging("", Text(f"and {len(finding.items) - SHOWN_ITEMS} more, all in --json", "dim"), 10)
    if finding.advice:
        yield _hanging("→", Text(finding.advice), 10)
    yield ""


def _cut(item: str) -> str:
    return item if len(item) <= _LONGEST_ITEM else f"{item[:_LONGEST_ITEM]} … (the rest in --json)"


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


def _spread(values: Sequence[float], unit: str) -> str:
    """Lowest to highest, and the median."""
    form = ".1f" if unit else "g"
    ends = [f"{value:{form}}" for value in (min(values), max(values), median(values))]
    unit = f" {unit}" if unit else ""
    return f"{ends[2]}{unit} each" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}{unit}, median {ends[2]}{unit}"
