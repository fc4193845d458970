"""Which of several learning rates to use, after a short training with each."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from stadapter.comparison.config import CompareConfig
from stadapter.comparison.experiments import Experiment
from stadapter.comparison.jobs import Common, Job, rates_of, search_job
from stadapter.comparison.process import is_done, run
from stadapter.comparison.results import CHOSEN, FailedRun, FinishedRun, RateSearch, read_result
from stadapter.errors import SettingsError
from stadapter.uncertainty import paired_difference
from stadapter.wording import changed, listed


def search(config: CompareConfig, common: Common, experiment: Experiment, folder: Path, console: Console) -> RateSearch:
    """Try every learning rate on clips held out of the training data; existing results are not tried again."""
    assert common.search_sets is not None
    _, held_out = common.search_sets
    rates = rates_of(config, experiment)
    tried: dict[float, FinishedRun] = {}
    errors: dict[str, str] = {}
    for rate in rates:
        job = search_job(config, common, experiment, rate, folder)
        if not config.redo:
            _refuse_other_machine(job, common)
        if not is_done(job):
            console.print(job.title, highlight=False)
            run(job, console)
        result = read_result(job.result)
        if isinstance(result, FailedRun):
            errors[f"{rate:g}"] = result.error
        elif result is not None:
            tried[rate] = result
    return RateSearch(
        values=rates,
        chosen=choose_rate(tried) if tried else None,
        num_held_out_clips=len(held_out.entries),
        held_out_sha256=held_out.hash(),
        errors=errors,
        top1={f"{rate:g}": result.top1 for rate, result in tried.items()},
        loss={f"{rate:g}": result.loss for rate, result in tried.items()},
        train_loss={f"{rate:g}": result.train_loss for rate, result in tried.items()},
        steps=next((result.steps for result in tried.values()), None),
    )


def choose_rate(results: Mapping[float, FinishedRun]) -> float:
    """The rate that is best on the held-out clips, as far as they can tell; among equals, the one that learned most.

    After a third of the steps many are still near chance on few held-out clips. Those that are not certainly worse
    than the best of them, by the paired 95 % interval, count as equal; of these, the one with the lowest loss on its
    training clips is taken. So a rate at which nothing is learned is not chosen for being wrong with less certainty.

    Args:
        results: the result of a training by rate, at least one.
    """
    best = max(results, key=lambda rate: (results[rate].top1, -results[rate].train_loss))
    equals = [rate for rate in results if not _is_worse(results[rate], results[best])]
    return min(equals, key=lambda rate: results[rate].train_loss)


def _is_worse(result: FinishedRun, best: FinishedRun) -> bool:
    ours, theirs = result.right_by_clip(), best.right_by_clip()
    both = [clip for clip in ours if clip in theirs]
    return bool(both) and paired_difference([theirs[c] for c in both], [ours[c] for c in both]).interval.low > 0


def _refuse_other_machine(job: Job, common: Common) -> None:
    """A rate that was tried with another size or precision, chosen by another machine, says nothing about ours."""
    result = read_result(job.result)
    if not isinstance(result, FinishedRun):
        return
    if told := [line for name in CHOSEN for line in changed(name, getattr(result, name), common.budget[name])]:
        raise SettingsError(
            f"{job.result} was made with another budget: {listed(told)}; choose another --out, or try it again with "
            "--redo"
        )
