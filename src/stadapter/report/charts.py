"""The geometry of the page's figures: bars, and the confusion matrix as an image. The template draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

from stadapter.evaluation.figures import Report, most_mistaken
from stadapter.evaluation.timecheck import ORDER_NAMES, TimeCheck
from stadapter.uncertainty import Interval
from stadapter.wording import counted

MAX_NUMBERED_CLASSES = 30
_NUM_SHADES = 8
_FEW_CLASSES = 12
_LEGIBLE = 0.65
_PICTURE_SIDE = 600.0
_LETTER = 8.4
_LONGEST_LABEL = 18


@dataclass(frozen=True)
class Bar:
    """A share of 1 with its name, and what is known about it."""

    name: str
    value: float | None
    """0 to 1; None if there is nothing to take a share of."""
    note: str
    interval: Interval | None = None


@dataclass(frozen=True)
class Cell:
    """Clips of one class that got one prediction."""

    x: float
    y: float
    count: int
    share: float
    """Share of the clips of the true class, from above 0 to 1."""
    is_right: bool
    title: str


@dataclass(frozen=True)
class Shade:
    """All cells of one colour in a matrix of many classes, as one path."""

    opacity: float
    is_right: bool
    path: str


@dataclass(frozen=True)
class AxisLabel:
    """A class at its row or column."""

    text: str
    full: str
    at: float


@dataclass(frozen=True)
class HeatMap:
    """A confusion matrix, rows true, columns predicted, in units of about a pixel."""

    cell: float
    side: float
    margin: float
    """Room for the labels, on the left and at the top."""
    smallest: float
    """Width below which it is no longer legible."""
    labels: tuple[AxisLabel, ...]
    cells: tuple[Cell, ...]
    shades: tuple[Shade, ...]
    """Used instead of cells and labels when there are many classes."""
    summary: str


def class_bars(report: Report) -> list[Bar]:
    """The accuracy of every class, worst first, classes without clips last."""
    bars = []
    for position, result in enumerate(report.per_class):
        count, other = most_mistaken(report, position)
        taken = f", {count} mistaken for {other}" if count else ""
        right = report.confusion[position][position]
        note = f"{right} of {counted(result.num_clips, 'clip')}{taken}" if result.num_clips else "no clips"
        bars.append((result.accuracy is None, result.accuracy or 0.0, -result.num_clips, result.label, note))
    return [
        Bar(name=label, value=None if is_empty else accuracy, note=note)
        for is_empty, accuracy, _, label, note in sorted(bars)
    ]


def time_bars(check: TimeCheck) -> list[Bar]:
    """The four accuracies of the time check."""
    return [
        Bar(name=name, value=getattr(check, order), note="", interval=check.intervals[order])
        for order, name in ORDER_NAMES.items()
    ]


def heat_map(report: Report) -> HeatMap:
    """The confusion matrix, every row divided by its clips; with many classes it is small and without numbers."""
    is_numbered = len(report.labels) <= MAX_NUMBERED_CLASSES
    cell = _cell_size(len(report.labels))
    cells = _cells(report, cell)
    labels = [_shortened(label) for label in report.labels] if is_numbered else []
    side = cell * len(report.labels)
    margin = 12 + _LETTER * max(map(len, labels)) if labels else 0.0
    return HeatMap(
        cell=cell,
        side=side,
        margin=margin,
        smallest=_LEGIBLE * (side + margin) if is_numbered else min(side, _PICTURE_SIDE),
        labels=tuple(
            AxisLabel(text=text, full=full, at=cell * (place + 0.5))
            for place, (text, full) in enumerate(zip(labels, report.labels, strict=False))
        ),
        cells=tuple(cells) if is_numbered else (),
        shades=() if is_numbered else _shades(cells, cell),
        summary=f"Confusion matrix of {counted(len(report.labels), 'class')}, rows true, columns predicted: "
        f"{sum(c.count for c in cells if c.is_right)} of {counted(report.num_clips, 'clip')} on the diagonal.",
    )


def _cell_size(num_classes: int) -> float:
    if num_classes > MAX_NUMBERED_CLASSES:
        return max(2.0, round(_PICTURE_SIDE / num_classes))
    return 40.0 if num_classes <= _FEW_CLASSES else 30.0


def _cells(report: Report, size: float) -> list[Cell]:
    cells = []
    for row, counts in enumerate(report.confusion):
        total = sum(counts)
        for column, count in enumerate(counts):
            if count:
                told = f"{report.labels[row]}, predicted {report.labels[column]}: {count} of {counted(total, 'clip')}"
                cells.append(Cell(size * column, size * row, count, count / total, row == column, told))
    return cells


def _shades(cells: Sequence[Cell], size: float) -> tuple[Shade, ...]:
    paths: dict[tuple[bool, int], list[str]] = {}
    for cell in cells:
        step = min(_NUM_SHADES, 1 + int(cell.share * _NUM_SHADES))
        paths.setdefault((cell.is_right, step), []).append(f"M{cell.x:g} {cell.y:g}h{size:g}v{size:g}h-{size:g}z")
    return tuple(
        Shade(opacity=0.4 + 0.6 * step / _NUM_SHADES, is_right=is_right, path="".join(parts))
        for (is_right, step), parts in sorted(paths.items())
    )


def _shortened(label: str) -> str:
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
