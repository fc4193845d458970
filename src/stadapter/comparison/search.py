"""Which of several learning rates to take, after a short training with each."""

from collections.abc import Mapping
from typing import Any

from stadapter.uncertainty import paired_difference


def choose_rate(results: Mapping[float, dict[str, Any]]) -> float:
    """The rate that is best on the held-out clips, as far as these can tell; among equals the one that learned most.

    After a third of the steps many are still near chance on few held-out clips. Those that are not certainly worse
    than the best of them, by the paired 95 % interval, count as equal; of them the one with the lowest loss on its
    training clips is taken. So a rate with which nothing is learned is not chosen for being wrong with less certainty.

    Args:
        results: by rate, at least one, what a training gave: its predictions, top1 and train_loss.
    """
    best = max(results, key=lambda rate: (results[rate]["top1"], -results[rate]["train_loss"]))
    equals = [rate for rate in results if not _is_worse(results[rate], results[best])]
    return min(equals, key=lambda rate: results[rate]["train_loss"])


def _is_worse(result: dict[str, Any], best: dict[str, Any]) -> bool:
    ours, theirs = _correct(result), _correct(best)
    both = [clip for clip in ours if clip in theirs]
    return bool(both) and paired_difference([theirs[c] for c in both], [ours[c] for c in both]).interval.low > 0


def _correct(result: dict[str, Any]) -> dict[Any, bool]:
    return {(row["name"], row["start_seconds"], row["end_seconds"]): row["is_correct"] for row in result["predictions"]}
