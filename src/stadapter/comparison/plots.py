"""The figures of a comparison, as SVG: accuracy against what it costs, with intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from stadapter.comparison.summary import Comparison, Row
from stadapter.durable import write_whole
from stadapter.wording import counted, duration

_LEFT, _TOP, _WIDTH, _HEIGHT, _LEGEND = 70.0, 44.0, 520.0, 340.0, 300.0
_LINE = 20.0
_CIRCLE = 19.0
_MOST_TICKS = 7
_DECADES = [10.0**exponent for exponent in range(12)]
_ROUND_COUNTS = [[factor * decade for decade in _DECADES for factor in (1, 2, 5)], _DECADES]
_HOURS = [3600 * count for count in _ROUND_COUNTS[0]]
_ROUND_SECONDS = [
    [1, 2, 5, 10, 20, 30, *(60 * count for count in (1, 2, 5, 10, 20, 30)), *_HOURS],
    [1, 10, 60, 600, 3600, *(86400 * day for day in _DECADES)],
]
_COLOURS = ("#0b63a5", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#0f766e", "#4b5563")


@dataclass(frozen=True)
class Axis:
    """Numbers above 0 on a logarithmic scale, along the picture's width."""

    low: float
    high: float
    """The ends of the scale, as exponents of ten."""

    def at(self, value: float) -> float:
        """Where a number is, in units of the picture."""
        return _LEFT + _WIDTH * (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self, round_ones: Sequence[Sequence[float]]) -> list[float]:
        """The numbers to write below it: those within it from the finest of several series that yields few enough."""
        found = [[value for value in series if self.low <= math.log10(value) <= self.high] for series in round_ones]
        return next((values for values in found if len(values) <= _MOST_TICKS), found[-1])


def write_figures(folder: Path, comparison: Comparison) -> list[Path]:
    """Write top-1 against trained parameters and against training time; nothing if there is no result."""
    if not comparison.rows:
        return []
    parameters, time = folder / "top1-by-parameters.svg", folder / "top1-by-time.svg"
    write_whole(
        parameters, _draw(comparison, "trained_parameters", "trained parameters", _short_count, _ROUND_COUNTS).encode()
    )
    write_whole(time, _draw(comparison, "training_seconds", "training time", duration, _ROUND_SECONDS).encode())
    return [parameters, time]


def _draw(
    comparison: Comparison,
    key: str,
    axis_title: str,
    shown: Callable[[float], str],
    round_ones: Sequence[Sequence[float]],
) -> str:
    rows = comparison.rows
    values = [max(row.median(key) or 0.0, 0.1) for row in rows]
    axis = _axis(values)
    places = _side_by_side([(axis.at(value), _y(row.top1)) for row, value in zip(rows, values, strict=True)])
    height = max(_TOP + _HEIGHT + 64, _TOP + _LINE * (len(rows) + 1))
    title = f"Top-1 against {axis_title}, {counted(comparison.num_clips, 'test clip')}"
    width = _LEFT + _WIDTH + _LEGEND + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="13" fill="#1f2328">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT:g}" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
        *_grid(axis.ticks(round_ones), axis, shown, axis_title),
        *(_point(number, row, x) for number, (row, x) in enumerate(zip(rows, places, strict=True))),
        *_legend(rows, values, shown),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axis(values: Sequence[float]) -> Axis:
    low, high = math.log10(min(values)), math.log10(max(values))
    margin = max(0.06 * (high - low), 0.15)
    return Axis(low - margin, high + margin)


def _y(share: float) -> float:
    return _TOP + _HEIGHT * (1 - share)


def _side_by_side(points: Sequence[tuple[float, float]]) -> list[float]:
    """The x of each point (x, y), moved just enough that no circle overlaps those before it.

    >>> _side_by_side([(100.0, 50.0), (100.0, 60.0), (100.0, 90.0)])
    [100.0, 119.0, 100.0]
    """
    placed: list[tuple[float, float]] = []
    for x, y in points:
        taken = [other for other, height in placed if abs(height - y) < _CIRCLE]
        free = [x, *(other + side * _CIRCLE for other in taken for side in (1, -1))]
        fitting = [place for place in free if all(abs(place - other) >= _CIRCLE for other in taken)]
        placed.append((min(fitting, key=lambda place: abs(place - x)), y))
    return [x for x, _ in placed]


def _grid(ticks: Sequence[float], axis: Axis, shown: Callable[[float], str], axis_title: str) -> list[str]:
    right, bottom = _LEFT + _WIDTH, _TOP + _HEIGHT
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<path d="M{_LEFT:g} {_y(share):g}H{right:g}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{_LEFT - 8:g}" y="{_y(share) + 4:g}" text-anchor="end">{100 * share:g} %</text>')
    for value in ticks:
        x = axis.at(value)
        parts.append(f'<path d="M{x:.1f} {_TOP:g}V{bottom + 5:g}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 20:g}" text-anchor="middle">{escape(shown(value))}</text>')
    middle = _LEFT + _WIDTH / 2
    told = f"{escape(axis_title)} (logarithmic); bars: 95 % intervals; equal values side by side"
    parts.append(f'<text x="{middle:g}" y="{bottom + 44:g}" text-anchor="middle">{told}</text>')
    return parts


def _point(number: int, row: Row, x: float) -> str:
    colour = _COLOURS[number % len(_COLOURS)]
    low, high, y = _y(row.interval.low), _y(row.interval.high), _y(row.top1)
    told = escape(f"{row.title}: {100 * row.top1:.1f} %")
    return (
        f'<g stroke="{colour}"><title>{told}</title>'
        f'<path d="M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="#fff" stroke-width="2"/>'
        f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" font-size="11" stroke="none" fill="{colour}">'
        f"{number + 1}</text></g>"
    )


def _legend(rows: Sequence[Row], values: Sequence[float], shown: Callable[[float], str]) -> list[str]:
    x = _LEFT + _WIDTH + 24
    return [
        f'<text x="{x:g}" y="{_TOP + 8 + _LINE * number:g}" fill="{_COLOURS[number % len(_COLOURS)]}">{number + 1}  '
        f"{escape(row.title)}, {100 * row.top1:.1f} %, {escape(shown(value))}</text>"
        for number, (row, value) in enumerate(zip(rows, values, strict=True))
    ]


def _short_count(value: float) -> str:
    """A number of parameters, abbreviated.

    >>> _short_count(1544), _short_count(320264), _short_count(1e6)
    ('1.54 k', '320 k', '1 M')
    """
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"
