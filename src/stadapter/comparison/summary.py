"""What the results of a comparison say as a whole: means over seeds, and differences clip by clip."""

# n clips, s seeds

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stadapter.comparison.results import ClipKey, FailedRun, FinishedRun, read_results
from stadapter.tuning import STRATEGIES
from stadapter.uncertainty import Difference, Interval, difference_over_seeds, interval_over_seeds
from stadapter.wording import counted, listed

if TYPE_CHECKING:
    from rich.console import Group

RightBySeed = Mapping[ClipKey, tuple[bool, ...]]
"""Whether each of the seeds classified a clip correctly."""


@dataclass(frozen=True)
class Row:
    """One experiment, over its seeds. Costs are medians, accuracies means."""

    title: str
    """strategy/name."""
    about: str
    runs: tuple[FinishedRun, ...]
    """Its results, by seed."""
    correct: RightBySeed
    """Whether each of the seeds classified a clip correctly, for the clips that all of them read."""
    top1: float
    """Mean over the seeds."""
    interval: Interval
    """Interval of the mean over the seeds, with test clips and seeds resampled; with one seed, over the clips only."""
    lowest: float
    """The lowest of the seeds."""
    highest: float
    difference: Difference | None
    """Top-1 above the reference, clip by clip; None for the reference, or if there is none."""
    verdict: str
    """The comparison with the reference, in words."""

    def median(self, key: str) -> float | None:
        """Median of a figure over the seeds; None if one has none."""
        values = [getattr(run, key) for run in self.runs]
        return None if any(value is None for value in values) else statistics.median(values)

    def mean(self, key: str) -> float | None:
        """Mean of a figure over the seeds; None if one has none."""
        values = [getattr(run, key) for run in self.runs]
        return None if any(value is None for value in values) else statistics.fmean(values)


@dataclass(frozen=True)
class Comparison:
    """All results of a folder."""

    folder: Path
    rows: tuple[Row, ...]
    """One per experiment with a result, in the order of `STRATEGIES`."""
    failures: tuple[FailedRun, ...]
    reference: str
    """strategy/name of the experiment the others are compared with."""
    num_clips: int
    """Test clips, the most that any run read."""
    sentences: tuple[str, ...]
    """What can be said and what cannot."""

    def __repr__(self) -> str:
        """A summary, without the results themselves; rich.print shows them as a table."""
        counts = f"{counted(len(self.rows), 'experiment')}, {counted(len(self.failures), 'failed run')}"
        return f"Comparison({self.folder}: {counts}, {counted(self.num_clips, 'test clip')})"

    def __rich__(self) -> "Group":
        from stadapter.comparison.tables import tables

        return tables(self)


def summarise(folder: Path, *, reference: str = "st-adapter/default") -> Comparison:
    """Put the result files of a folder together; nothing else is read.

    Raises:
        DataError: a result file is incomplete.
    """
    grouped: dict[str, list[FinishedRun]] = {}
    failures = []
    for result in read_results(folder).values():
        if isinstance(result, FailedRun):
            failures.append(result)
        else:
            grouped.setdefault(result.title, []).append(result)
    order = list(STRATEGIES)
    titles = sorted(
        grouped, key=lambda title: (order.index(title.split("/")[0]), not title.endswith("/default"), title)
    )
    correct = {title: _correct(grouped[title]) for title in titles}
    rows = [_row(title, grouped[title], correct, reference) for title in titles]
    num_clips = max((run.num_clips for row in rows for run in row.runs), default=0)
    sentences = [*_on_heads(rows), *_on_unreadable(rows), *_sentences(rows, reference, num_clips)]
    return Comparison(folder, tuple(rows), tuple(failures), reference, num_clips, tuple(sentences))


def _correct(runs: Sequence[FinishedRun]) -> RightBySeed:
    """Whether each of the runs classified a clip correctly, for the clips that all of them read."""
    tables = [run.right_by_clip() for run in runs]
    shared = [clip for clip in tables[0] if all(clip in table for table in tables)]
    return {clip: tuple(table[clip] for table in tables) for clip in shared}


def difference(ours: RightBySeed, theirs: RightBySeed) -> Difference | None:
    """How far the mean of one is above that of the other, on clips that both read; None if there are none."""
    both = [clip for clip in ours if clip in theirs]
    if not both:
        return None
    return difference_over_seeds(_by_seed(ours, both), _by_seed(theirs, both))


def _by_seed(answers: RightBySeed, clips: Sequence[ClipKey]) -> npt.NDArray[np.bool_]:
    """(s, n): whether each seed classified each of these clips correctly."""
    return np.array([answers[clip] for clip in clips], dtype=bool).T


def _row(title: str, runs: Sequence[FinishedRun], correct: dict[str, RightBySeed], reference: str) -> Row:
    ordered = tuple(sorted(runs, key=lambda run: run.seed))
    found, verdict = None, ""
    if title == reference:
        verdict = "the reference"
    elif reference in correct:
        found = difference(correct[title], correct[reference])
        verdict = _verdict(found, reference)
    top1 = [run.top1 for run in ordered]
    return Row(
        title=title,
        about=ordered[0].about,
        runs=ordered,
        correct=correct[title],
        top1=statistics.fmean(top1),
        interval=interval_over_seeds(_by_seed(correct[title], list(correct[title]))),
        lowest=min(top1),
        highest=max(top1),
        difference=found,
        verdict=verdict,
    )


def _verdict(found: Difference | None, reference: str) -> str:
    """What a difference from the reference says."""
    if found is None:
        return "no test clip in common"
    if found.interval.low > 0:
        return f"better than {reference}"
    return f"worse than {reference}" if found.interval.high < 0 else "cannot tell"


def _on_heads(rows: Sequence[Row]) -> list[str]:
    """What counts as correct if a clip has a class for each of several heads."""
    heads = list(dict.fromkeys(head for row in rows for run in row.runs for head in run.heads))
    return [f"A clip is correct if its {' and its '.join(heads)} are; the result files have each."] if heads else []


def _on_unreadable(rows: Sequence[Row]) -> list[str]:
    """Which clips could not be trained on."""
    names = dict.fromkeys(name for row in rows for run in row.runs for name in run.unreadable_train_clips)
    if not names:
        return []
    return [f"{counted(len(names), 'clip')} to train on could not be read: {listed(sorted(names))}."]


def _sentences(rows: Sequence[Row], reference: str, num_clips: int) -> list[str]:
    others = [row for row in rows if row.difference is not None]
    if not others:
        return [] if any(row.title == reference for row in rows) else [f"No result of {reference} to compare with."]
    sentences = []
    for verdict in ("better", "worse"):
        if named := [row.title for row in others if row.verdict.startswith(verdict)]:
            sentences.append(f"{verdict.capitalize()} than {reference}: {', '.join(named)}.")
    if unclear := [row.title for row in others if row.verdict.startswith("cannot")]:
        sentences.append(
            f"Cannot tell from {counted(num_clips, 'clip')} and these seeds whether better or worse than {reference}: "
            f"{', '.join(unclear)}."
        )
    if single := [row.title for row in rows if len(row.runs) == 1]:
        which = "each" if len(single) == len(rows) else f"for {', '.join(single)}"
        sentences.append(f"One seed {which}: the intervals do not include what another would give.")
    if len(others) > 1:
        sentences.append(
            f"These are {len(others)} comparisons at 95 % each: about one in twenty differs by chance alone."
        )
    return sentences
