"""Which of several learning rates to take, after a short training with each."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from stadapter.comparison.config import CompareConfig
from stadapter.comparison.experiments import Experiment
from stadapter.comparison.jobs import Common, rates_of, search_job
from stadapter.comparison.process import is_done, run
from stadapter.comparison.results import right_by_clip
from stadapter.uncertainty import paired_difference

_FIGURES = ("top1", "loss", "train_loss")
"""What is told of every rate."""


def search(
    config: CompareConfig, common: Common, experiment: Experiment, folder: Path, console: Console
) -> dict[str, Any]:
    """Try every learning rate on clips held out of the training data; what is there already is not tried again.

    Returns:
        JSON values: the rates, their figures or errors, and the one chosen; None where none worked.
    """
    assert common.search_sets is not None
    _, held_out = common.search_sets
    found: dict[str, Any] = {"values": list(rates_of(config, experiment)), "chosen": None, "errors": {}}
    found |= {"num_held_out_clips": len(held_out.entries), "held_out_sha256": held_out.hash()}
    found |= {name: {} for name in _FIGURES}
    tried: dict[float, dict[str, Any]] = {}
    for rate in found["values"]:
        job = search_job(config, common, experiment, rate, folder)
        if not is_done(job):
            console.print(job.title, highlight=False)
            run(job, console)
        result = json.loads(job.result.read_text(encoding="utf-8"))
        if "error" in result:
            found["errors"][f"{rate:g}"] = result["error"]
        else:
            tried[rate] = result
            found["steps"] = result["steps"]
            for name in _FIGURES:
                found[name][f"{rate:g}"] = result[name]
    found["chosen"] = choose_rate(tried) if tried else None
    return found


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
    ours, theirs = right_by_clip(result), right_by_clip(best)
    both = [clip for clip in ours if clip in theirs]
    return bool(both) and paired_difference([theirs[c] for c in both], [ours[c] for c in both]).interval.low > 0
