"""How far a figure from a few clips can be trusted: bootstrap intervals, and differences on the same clips."""

# n clips, r resamples, g groups, k kinds of clips, s seeds

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stadapter.errors import SettingsError

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
_TAIL = (1 - CONFIDENCE) / 2
_DRAWS_AT_ONCE = 1 << 22

Values = Sequence[float] | Sequence[bool] | npt.NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """Where a figure would probably lie if it were measured on all clips of this kind."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How far one mean is above another that was measured on the same clips."""

    mean: float
    """First minus second."""
    interval: Interval


def bootstrap_interval(
    values: Values,
    *,
    groups: Sequence[int] | npt.NDArray[np.int64] | None = None,
    lowest: float = 0.0,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The 95 % percentile bootstrap interval of a mean (Efron & Tibshirani 1993, chapter 13), over resampled clips.

    If all values are the same, resampling says nothing. Then the interval allows for the largest share
    of other clips that could well have gone unseen, 1 - 0.025 ** (1 / n): the exact binomial bound.

    Args:
        values: one for each of n clips, such as whether it was named correctly.
        groups: the group of each clip from 0 up, such as its class: the figure is then the mean of the groups'
            means, over the groups in a resample.
        lowest: the lowest possible value; the highest is 1.
        num_resamples: how many times n clips are drawn.
        seed: for the draws; the same seed gives the same interval.

    Raises:
        SettingsError: no values, not one group per value, or less than one resample.

    >>> bootstrap_interval([1, 1, 1, 0])
    Interval(low=0.25, high=1.0)
    """
    sample = np.asarray(values, dtype=np.float64)
    members = None if groups is None else np.asarray(groups, dtype=np.int64)
    if sample.ndim != 1 or not len(sample) or (members is not None and members.shape != sample.shape):
        found = f"values {sample.shape}" + (f", groups {members.shape}" if members is not None else "")
        raise SettingsError(f"{found}: expected one value, and one group if any, for each of at least one clip")
    if num_resamples < 1:
        raise SettingsError(f"num_resamples {num_resamples}: expected at least 1")
    first = float(sample[0])
    if (sample == first).all():
        unseen = 1 - _TAIL ** (1 / len(sample))
        return Interval(first - unseen * (first - lowest), first + unseen * (1 - first))
    groups_from_0 = np.zeros(len(sample), np.int64) if members is None else np.unique(members, return_inverse=True)[1]
    return _central(_resampled(sample, groups_from_0, num_resamples, seed))


def paired_difference(first: Values, second: Values, *, num_resamples: int = NUM_RESAMPLES) -> Difference:
    """The difference of two means of values from 0 to 1 on the same clips, in the same order, with its interval.

    Clips that are hard for both do not widen it, as they would if two separate intervals were compared.

    Raises:
        SettingsError: different numbers of values, or none.

    >>> paired_difference([1, 1, 1, 1], [0, 0, 1, 0])
    Difference(mean=0.75, interval=Interval(low=0.25, high=1.0))
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape:
        raise SettingsError(f"values {one.shape} and {other.shape}: expected both for the same clips")
    interval = bootstrap_interval(one - other, lowest=-1.0, num_resamples=num_resamples)
    return Difference(float((one - other).mean()), interval)


def interval_over_seeds(values: npt.NDArray[Any]) -> Interval:
    """The interval of a mean over clips and over trainings with different seeds: both are drawn with replacement.

    The pigeonhole bootstrap of Owen (Annals of Applied Statistics 2007). It cannot be narrower than the interval over
    clips only, of each clip's mean over the seeds; for a single seed it is that interval, as no others are known.

    Args:
        values: from 0 to 1, (s, n): each of n clips in each of s trainings, such as whether it was named correctly.
    """
    known = bootstrap_interval(values.mean(0))
    if len(values) == 1:
        return known
    (drawn,) = _drawn_over_seeds([values], NUM_RESAMPLES)
    return _widened(known, drawn)


def difference_over_seeds(
    first: npt.NDArray[Any], second: npt.NDArray[Any], *, num_resamples: int = NUM_RESAMPLES
) -> Difference:
    """The difference of two means of values from 0 to 1 on the same clips, (s, n) and (s', n): as above.

    Raises:
        SettingsError: different numbers of clips, or none.
    """
    known = paired_difference(first.mean(0), second.mean(0), num_resamples=num_resamples)
    if len(first) == len(second) == 1:
        return known
    one, other = _drawn_over_seeds([first, second], num_resamples)
    return Difference(known.mean, _widened(known.interval, one - other))


def _drawn_over_seeds(sides: Sequence[npt.NDArray[Any]], num_resamples: int) -> list[npt.NDArray[np.float64]]:
    """The mean (r,) of every resample, for each side (s, n): each has its own seeds, all share the same clips."""
    stacked = np.concatenate(sides).astype(np.float64)
    kinds, numbers = np.unique(stacked, axis=1, return_counts=True)  # (all s, k), (k,)
    generator = np.random.default_rng(0)
    clips = generator.multinomial(stacked.shape[1], numbers / stacked.shape[1], size=num_resamples)  # (r, k)
    drawn, ends = [], np.cumsum([len(side) for side in sides])
    for side in np.split(kinds, ends[:-1]):
        seeds = generator.multinomial(len(side), np.full(len(side), 1 / len(side)), size=num_resamples)  # (r, s)
        drawn.append((seeds @ side * clips).sum(1) / (len(side) * stacked.shape[1]))
    return drawn


def _widened(known: Interval, drawn: npt.NDArray[np.float64]) -> Interval:
    own = _central(drawn)
    return Interval(min(known.low, own.low), max(known.high, own.high))


def _central(drawn: npt.NDArray[np.float64]) -> Interval:
    """What lies between the tails of the resamples' figures (r,)."""
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return Interval(float(low), float(high))


def _resampled(
    sample: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], num_resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """The figure (r,) of every resample.

    Clips of the same group and value are interchangeable: drawing how many of them are in a resample is enough.
    """
    kinds, numbers = np.unique(np.stack([groups, sample], 1), axis=0, return_counts=True)  # (k, 2), (k,)
    starts = np.flatnonzero(np.diff(kinds[:, 0], prepend=-1))  # (g,), the first kind of each group: they are sorted
    generator = np.random.default_rng(seed)
    figures, at_once = [], max(1, _DRAWS_AT_ONCE // len(kinds))
    for start in range(0, num_resamples, at_once):
        size = min(at_once, num_resamples - start)
        drawn = generator.multinomial(len(sample), numbers / len(sample), size=size).astype(np.float64)  # (r, k)
        counts, sums = (np.add.reduceat(of, starts, axis=1) for of in (drawn, drawn * kinds[:, 1]))  # (r, g)
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        figures.append(means.sum(1) / (counts > 0).sum(1))
    return np.concatenate(figures)
