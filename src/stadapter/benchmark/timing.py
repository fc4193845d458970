"""Verify, then measure in turns: A B C, C A B …, so that whatever else the machine does meets all sides alike."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Call = Callable[[], object]
Clock = Literal["wall", "processor"]
_CLOCKS: Mapping[Clock, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}

_SAMPLE_SECONDS = 0.02
"""A sample lasts at least this long: shorter calls are repeated within it."""
_MAX_CALLS = 1000
_ORDER_SEED = 0


@dataclass(frozen=True)
class Check:
    """Whether two sides gave the same."""

    what: str
    """What was compared."""
    error: float
    """How far apart they are."""
    limit: float
    """How far apart they may be."""
    side: str | None = None
    """The one of a case's others that it is about; None: about ours."""

    @property
    def holds(self) -> bool:
        """Whether they are equal, but for rounding; an error that is no number does not hold."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Case:
    """One measurement: the same work done by several sides."""

    part: str
    """Which part of the benchmark it belongs to."""
    name: str
    """What is done."""
    ours: Call
    """This program."""
    others: Mapping[str, Call] = field(default_factory=dict)
    """Other ways to the same, by name: how many times as fast ours is, is told."""
    floors: Mapping[str, Call] = field(default_factory=dict)
    """The least that has to be done, by name: how many times that ours takes, is told."""
    checks: Callable[[], list[Check]] = list
    """Compares the sides; called before anything is timed."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, as JSON values."""
    flops: float | None = None
    """Floating-point operations of the matrix products that have to be done."""
    clock: Clock = "wall"
    """wall: time that passes. processor: what the process computes, all its threads added up; for work of one core."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often a call does the work, by side, where that is not once: times are told for one."""
    notes: tuple[str, ...] = ()
    """What was not measured, and why."""


def measure(case: Case, *, repeats: int, synchronise: Callable[[], None]) -> dict[str, Any]:
    """Check a case, then time its sides in turns.

    The speed of a wrong answer is worth nothing: a side that is not equal is not timed, and none is where ours is not.

    Returns:
        JSON values: the checks, for each side the median, quartiles and all samples in seconds, the ratios.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # convolutions would differ in the third digit
        checks = case.checks()
    wrong = {each.side for each in checks if not each.holds}
    result: dict[str, Any] = {
        "part": case.part,
        "name": case.name,
        "clock": case.clock,
        "checks": [{"what": each.what, "error": each.error, "limit": each.limit} for each in checks],
        "equal": not wrong,
        **({"flops": case.flops} if case.flops is not None else {}),
        **({"facts": dict(case.facts)} if case.facts else {}),
        **({"notes": list(case.notes)} if case.notes else {}),
    }
    if None in wrong:
        return result
    others = {name: call for name, call in case.others.items() if name not in wrong}
    calls = {"ours": case.ours, **others, **case.floors}
    samples = take_turns(calls, repeats=repeats, synchronise=synchronise, clock=case.clock)
    samples = {name: [value / case.counts.get(name, 1) for value in values] for name, values in samples.items()}
    result["seconds"] = {name: _summary(values) for name, values in samples.items()}
    result["times_as_fast_as"] = {name: _ratio(samples[name], samples["ours"]) for name in others}
    result["times_the_floor"] = {name: _ratio(samples["ours"], samples[name]) for name in case.floors}
    return result


def take_turns(
    calls: Mapping[str, Call], *, repeats: int, synchronise: Callable[[], None], clock: Clock = "wall"
) -> dict[str, list[float]]:
    """Seconds a call, `repeats` samples of each side, the sides taking turns.

    Their order is drawn anew for every round, from the same seed each time: what one leaves behind in the caches helps
    or hinders whoever comes next (docs/log.md). A first call of each, which is not counted, warms up and tells how many
    calls a sample needs.
    """
    counts = {}
    now = _CLOCKS[clock]
    for name, call in calls.items():
        first = _sample(call, 1, synchronise, now)
        if first < _SAMPLE_SECONDS:  # a first call is often slower than the others
            first = _sample(call, 1, synchronise, now)
        counts[name] = min(_MAX_CALLS, max(1, math.ceil(_SAMPLE_SECONDS / max(first, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    generator = random.Random(_ORDER_SEED)
    for _ in range(repeats):
        for name in generator.sample(list(calls), len(calls)):
            samples[name].append(_sample(calls[name], counts[name], synchronise, now))
    return samples


def _sample(call: Call, count: int, synchronise: Callable[[], None], now: Callable[[], float]) -> float:
    synchronise()
    started = now()
    for _ in range(count):
        call()
    synchronise()
    return (now() - started) / count


def _summary(values: list[float]) -> dict[str, Any]:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "quartiles": [low, high], "samples": values}


def _ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds of the ratio within a round: what slows a whole round down does not count."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def synchroniser(device: torch.device) -> Callable[[], None]:
    """What waits until a device has done all that it was asked for."""
    if device.type == "cpu":
        return _nothing_to_wait_for
    return torch.accelerator.synchronize


def _nothing_to_wait_for() -> None:
    """A CPU has done its work when a call returns."""


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖, or ‖ours‖ where theirs is zero."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    norm, distance = float(theirs.norm()), float((ours - theirs).norm())
    return distance / norm if norm else distance
