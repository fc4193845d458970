"""The course of training as the page's curves, from metrics.jsonl."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from stadapter.labels import ACTION
from stadapter.records import read_records

_MOST_POINTS = 300
_SMOOTHED_FROM = 40
_SMOOTHING = 0.06

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A number on an axis."""

    at: float
    """Distance from the left or from the top, in percent."""
    text: str


@dataclass(frozen=True)
class HeldOut:
    """The same figure on held-out clips."""

    path: str
    """From the first to the last; empty if there is only one."""
    x: float
    """Where the last one is."""
    y: float
    text: str
    """The last, and the best if that is another."""


@dataclass(frozen=True)
class Curve:
    """One curve in a field of 100 x 100, y downwards."""

    title: str
    path: str
    """As it was logged."""
    smooth: str
    """Averaged over neighbouring points; empty if they are few, or without noise."""
    held_out: HeldOut | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    summary: str


def read_curves(folder: Path) -> list[Curve]:
    """Loss, accuracy and learning rate over the steps of a run; empty if nothing is recorded.

    What a resumed run repeated counts once.
    """
    training: dict[float, dict[str, float]] = {}
    held_out: dict[float, dict[str, float]] = {}
    for record in read_records(folder):
        step = record.get("step", math.nan)
        if not _is_number(step):
            continue
        if record["kind"] == "start":
            training = {done: values for done, values in training.items() if done <= step}
            held_out = {done: values for done, values in held_out.items() if done <= step}
        elif record["kind"] in ("train", "validation"):
            (training if record["kind"] == "train" else held_out)[step] = record
    of_heads = dict.fromkeys(key for record in training.values() for key in record if key.endswith("_accuracy"))
    named = [
        ("loss", "Loss", "loss"),
        ("accuracy", f"Accuracy, {ACTION}" if of_heads else "Accuracy", "top1"),
        *((key, f"Accuracy, {head}", f"{head}_top1") for key in of_heads if (head := key.removesuffix("_accuracy"))),
        ("lr", "Learning rate", ""),
    ]
    curves = [
        _curve(title, _points(training, key), _points(held_out, held), is_noisy=key != "lr")
        for key, title, held in named
    ]
    return [curve for curve in curves if curve is not None]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _points(records: dict[float, dict[str, float]], key: str) -> Points:
    return [(step, values[key]) for step, values in sorted(records.items()) if _is_number(values.get(key))]


def _curve(title: str, points: Points, held_out: Points, *, is_noisy: bool) -> Curve | None:
    if not points:
        return None
    highest = max(value for _, value in [*points, *held_out])
    y_values = [0.0, 0.25, 0.5, 0.75, 1.0] if title.startswith("Accuracy") else round_numbers(highest)
    x_values = round_numbers(points[-1][0])
    width, height = max(points[-1][0], 1e-9), max(y_values[-1], 1e-9)

    def place(step: float, value: float) -> tuple[float, float]:
        return 100 * step / width, 100 - 100 * min(value, height) / height

    marks = _held_out(title, held_out, [place(min(step, width), value) for step, value in held_out])
    return Curve(
        title=title,
        path=_path([place(*point) for point in _thinned(points)]),
        smooth=_path([place(*point) for point in _thinned(_smoothed(points))])
        if is_noisy and len(points) >= _SMOOTHED_FROM
        else "",
        held_out=marks,
        x_ticks=tuple(Tick(place(value, 0)[0], f"{value:,g}") for value in x_values if value <= width),
        y_ticks=tuple(Tick(place(0, value)[1], _number(title, value)) for value in y_values),
        summary=f"{title} over {points[-1][0]:g} steps, from {_number(title, points[0][1])} to "
        f"{_number(title, points[-1][1])}" + (f"; held out {marks.text}" if marks is not None else ""),
    )


def _held_out(title: str, points: Points, places: Points) -> HeldOut | None:
    if not points:
        return None
    text = _number(title, points[-1][1])
    choose = max if title.startswith("Accuracy") else min
    step, best = choose(points, key=lambda point: point[1])
    if _number(title, best) != text:
        text += f", best {_number(title, best)} after {step:g} steps"
    return HeldOut(_path(places) if len(points) > 1 else "", *places[-1], text)


def round_numbers(highest: float) -> list[float]:
    """Three to six round numbers from 0 up to the first that is not below `highest`.

    >>> round_numbers(2.3), round_numbers(420)
    ([0.0, 1.0, 2.0, 3.0], [0.0, 200.0, 400.0, 600.0])
    """
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = step / 2 if highest / step <= 2 else step
    return [round(step * number, 12) for number in range(math.ceil(highest / step * 0.999) + 1)]


def _number(title: str, value: float) -> str:
    return f"{100 * value:.0f} %" if title.startswith("Accuracy") else f"{value:.3g}"


def _path(places: Points) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in places) + ("h0" if len(places) == 1 else "")


def _smoothed(points: Points) -> Points:
    """Every value as the mean of the values around it."""
    reach = max(1, round(len(points) * _SMOOTHING))
    sums = [0.0, *accumulate(value for _, value in points)]
    ends = [(max(0, place - reach), min(len(points), place + reach + 1)) for place in range(len(points))]
    return [
        (step, (sums[stop] - sums[start]) / (stop - start))
        for (step, _), (start, stop) in zip(points, ends, strict=True)
    ]


def _thinned(points: Points) -> Points:
    """At most as many points as can be told apart, including the last."""
    stride = math.ceil(len(points) / _MOST_POINTS)
    return [*points[:-1:stride], points[-1]]
