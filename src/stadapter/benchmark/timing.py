"""Verify, then measure in turns: A B C, C A B …, so that whatever else the machine does affects all sides alike."""

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
    """Whether two sides gave the same result."""

    what: str
    """What was compared."""
    error: float
    """How far apart they are."""
    limit: float
    """How far apart they may be."""
    side: str | None = None
    """The one of the case's others that it is about; None if it is about ours."""

    @property
    def holds(self) -> bool:
        """Whether they are equal except for rounding; an error of NaN does not hold."""
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
    """Other ways to do the same, by name; how many times as fast ours is gets reported."""
    floors: Mapping[str, Call] = field(default_factory=dict)
    """The least that has to be done, by name; how many times as long ours takes gets reported."""
    checks: Callable[[], list[Check]] = list
    """Compares the sides; called before anything is timed."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known about it, as JSON values."""
    flops: float | None = None
    """Floating-point operations of the matrix products that have to be done."""
    clock: Clock = "wall"
    """wall: elapsed time. processor: computing time of the process, summed over its threads; for work on one core."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often a call does the work, by side, if not once; times are reported for one."""
    notes: tuple[str, ...] = ()
    """What was not measured, and why."""


def measure(case: Case, *, repeats: int, synchronise: Callable[[], None]) -> dict[str, Any]:
    """Check a case, then time its sides in turns.

    The speed of a wrong answer is worthless: a side that is not equal is not timed, and if ours is not, none is.

    Returns:
        JSON values: the checks, for every side the median, quartiles and all samples in seconds, the ratios.
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
    """Seconds per call, `repeats` samples of each side, the sides taking turns.

    Their order is shuffled for every round, from the same seed each time: what one leaves in the caches helps or
    hinders whichever comes next (docs/log.md). An uncounted first call of each warms up and shows how many calls a
    sample needs.
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
    """The median over rounds of the ratio within a round: whatever slows down a whole round cancels out."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def synchroniser(device: torch.device) -> Callable[[], None]:
    """A function that waits until a device has finished all its work."""
    if device.type == "cpu":
        return lambda: None  # a CPU has finished its work when a call returns
    return torch.accelerator.synchronize


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖ours - theirs‖ / ‖theirs‖, or ‖ours‖ if theirs is zero."""
    ours, theirs = ours.detach().double(), theirs.detach().double()
    norm, distance = float(theirs.norm()), float((ours - theirs).norm())
    return distance / norm if norm else distance


def relative_errors(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """The same for each of several tensors, by name; both sides have the same names."""
    assert ours.keys() == theirs.keys()
    return {name: relative_error(ours[name], theirs[name]) for name in ours}


def badness(error: float) -> float:
    """A sort key for errors: NaN is the worst."""
    return error if error == error else math.inf
