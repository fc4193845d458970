"""What the results of a comparison say together: means over seeds, and differences clip by clip."""

# n clips

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stadapter.compare.results import read_results
from stadapter.errors import counted
from stadapter.tuning import STRATEGIES
from stadapter.uncertainty import Difference, Interval, bootstrap_interval, paired_difference

Clip = tuple[str, float | None, float | None]
"""Name, start and end of a test clip."""


@dataclass(frozen=True)
class Row:
    """One experiment, over its seeds. Costs are medians, accuracies means."""

    title: str
    """strategy/name."""
    about: str
    runs: tuple[dict[str, Any], ...]
    """Its results, as their files hold them."""
    correct: dict[Clip, float]
    """Share of the seeds that named a clip right, for the clips that all of them read."""
    top1: float
    """Mean over the seeds."""
    interval: Interval
    """Of the mean over the seeds, test clips drawn with replacement. What other seeds would give is not in it."""
    lowest: float
    """Of the seeds."""
    highest: float
    difference: Difference | None
    """Top-1 above the reference, clip by clip; None for the reference, or where there is none."""
    verdict: str
    """Against the reference, in words."""

    def median(self, key: str) -> float | None:
        """Of a figure over the seeds; None where one has none."""
        values = [run[key] for run in self.runs]
        return None if any(value is None for value in values) else statistics.median(values)

    def mean(self, key: str) -> float | None:
        """Of a figure over the seeds; None where one has none."""
        values = [run[key] for run in self.runs]
        return None if any(value is None for value in values) else statistics.fmean(values)


@dataclass(frozen=True)
class Failure:
    """A run that gave nothing."""

    title: str
    seed: int
    error: str


@dataclass(frozen=True)
class Comparison:
    """All results of a folder."""

    folder: Path
    rows: tuple[Row, ...]
    """One for every experiment with a result, in the order of `STRATEGIES`."""
    failures: tuple[Failure, ...]
    reference: str
    """strategy/name of the one that the others are compared with."""
    num_clips: int
    """Test clips, the most that a run read."""
    sentences: tuple[str, ...]
    """What can be said and what cannot."""


def summarise(folder: Path, *, reference: str = "st-adapter/default") -> Comparison:
    """Put the result files of a folder together; nothing but them is read.

    Raises:
        DataError: a result file that is not whole.
    """
    grouped: dict[str, list[dict[str, Any]]] = {}
    failures = []
    for result in read_results(folder).values():
        title = f"{result['strategy']}/{result['name']}"
        if "error" in result:
            failures.append(Failure(title, result["seed"], result["error"]))
        else:
            grouped.setdefault(title, []).append(result)
    order = list(STRATEGIES)
    titles = sorted(grouped, key=lambda title: (order.index(title.split("/")[0]), "/default" not in title, title))
    correct = {title: _correct(grouped[title]) for title in titles}
    rows = [_row(title, grouped[title], correct, reference) for title in titles]
    num_clips = max((run["num_clips"] for row in rows for run in row.runs), default=0)
    sentences = [*_on_heads(rows), *_sentences(rows, reference, num_clips)]
    return Comparison(folder, tuple(rows), tuple(failures), reference, num_clips, tuple(sentences))


def _correct(runs: Sequence[dict[str, Any]]) -> dict[Clip, float]:
    """Share of the runs that named a clip right, for the clips that all of them read."""
    tables = [
        {(row["name"], row["start_seconds"], row["end_seconds"]): row["is_correct"] for row in run["predictions"]}
        for run in runs
    ]
    shared = [clip for clip in tables[0] if all(clip in table for table in tables)]
    return {clip: statistics.fmean(table[clip] for table in tables) for clip in shared}


def _row(title: str, runs: Sequence[dict[str, Any]], correct: dict[str, dict[Clip, float]], reference: str) -> Row:
    ordered = tuple(sorted(runs, key=lambda run: run["seed"]))
    difference, verdict = None, ""
    if title == reference:
        verdict = "the reference"
    elif reference in correct:
        difference, verdict = _against(correct[title], correct[reference], reference)
    top1 = [run["top1"] for run in ordered]
    return Row(
        title=title,
        about=ordered[0]["about"],
        runs=ordered,
        correct=correct[title],
        top1=statistics.fmean(top1),
        interval=bootstrap_interval(list(correct[title].values())),
        lowest=min(top1),
        highest=max(top1),
        difference=difference,
        verdict=verdict,
    )


def _against(ours: dict[Clip, float], theirs: dict[Clip, float], reference: str) -> tuple[Difference | None, str]:
    """By how much we are above a reference on the clips that both read, and what that says."""
    both = [clip for clip in ours if clip in theirs]
    if not both:
        return None, "no test clip in common"
    difference = paired_difference([ours[clip] for clip in both], [theirs[clip] for clip in both])
    if difference.interval.low > 0:
        return difference, f"better than {reference}"
    if difference.interval.high < 0:
        return difference, f"worse than {reference}"
    return difference, f"cannot tell with {counted(len(both), 'clip')}"


def _on_heads(rows: Sequence[Row]) -> list[str]:
    """What is right where a clip has a class of each of several heads."""
    heads = list(dict.fromkeys(head for row in rows for run in row.runs for head in run.get("heads", {})))
    return [f"A clip is right where its {' and its '.join(heads)} are; the result files have each."] if heads else []


def _sentences(rows: Sequence[Row], reference: str, num_clips: int) -> list[str]:
    others = [row for row in rows if row.difference is not None]
    if not others:
        return [] if any(row.title == reference for row in rows) else [f"No result of {reference} to compare with."]
    better = [row.title for row in others if row.verdict.startswith("better")]
    worse = [row.title for row in others if row.verdict.startswith("worse")]
    open_ = [row.title for row in others if row.verdict.startswith("cannot")]
    sentences = []
    if better:
        sentences.append(f"Better than {reference}: {', '.join(better)}.")
    if worse:
        sentences.append(f"Worse than {reference}: {', '.join(worse)}.")
    if open_:
        sentences.append(
            f"Cannot tell with {counted(num_clips, 'clip')} whether better or worse than {reference}: "
            f"{', '.join(open_)}."
        )
    if len(others) > 1:
        sentences.append(
            f"These are {len(others)} comparisons at 95 % each: about one in twenty differs by chance alone."
        )
    return sentences
