"""The runs of a comparison, one after the other; what is there already is not run again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stadapter.comparison.config import CompareConfig
from stadapter.comparison.experiments import Experiment
from stadapter.comparison.jobs import Common, Job, experiment_job, find_common, rates_of
from stadapter.comparison.process import fail, identity_there, is_done, run
from stadapter.comparison.results import changes, read_result, read_results
from stadapter.comparison.search import search
from stadapter.errors import SettingsError
from stadapter.signals import stopped_by_signals
from stadapter.training.run_folder import locked
from stadapter.wording import changed, listed


def run_all(config: CompareConfig, experiments: Sequence[Experiment], folder: Path, console: Console) -> None:
    """Run what has no result yet; results that are there with other settings are refused before anything starts.

    Raises:
        SettingsError, STAdapterError, KeyboardInterrupt: as `compare`.
    """
    common = find_common(config)
    rates = {item.stem: rates_of(config, item) for item in experiments}
    wanted = [
        (item, experiment_job(config, common, item, seed, folder)) for seed in config.seeds for item in experiments
    ]
    if not config.redo:
        _refuse_other_settings([job for _, job in wanted])
    _refuse_other_budget(folder, common, [job for _, job in wanted], redo=config.redo)
    with stopped_by_signals(), locked(folder):
        for number, (item, job) in enumerate(wanted, start=1):
            if is_done(job):
                continue
            console.print(f"\n{job.title} ({number} of {len(wanted)})", style="bold", highlight=False)
            if rates[item.stem]:
                found = search(config, common, item, folder, console)
                if found.chosen is None:
                    fail(job, f"no learning rate worked: {listed(list(found.errors.values()))}", found)
                    continue
                job = replace(
                    job, config=replace(job.config, lr=found.chosen), known=replace(job.known, lr_search=found)
                )
            run(job, console)


def _refuse_other_settings(jobs: Sequence[Job]) -> None:
    for job in jobs:
        found = identity_there(job)
        if found is not None and (told := changes(found, job.known.identity)):
            raise SettingsError(
                f"{job.result} was made with other settings: {listed(told, 3)}; choose another --out, or do it "
                "again with --redo"
            )


def _refuse_other_budget(folder: Path, common: Common, jobs: Sequence[Job], *, redo: bool) -> None:
    """Results beside ours must have been made with our budget, or their table would compare what cannot be."""
    done_again = {job.result.name for job in jobs if redo or read_result(job.result) is None}
    for path, result in read_results(folder, but=done_again).items():
        if result.budget != common.budget:
            told = [
                line for name, ours in common.budget.items() for line in changed(name, result.budget.get(name), ours)
            ]
            raise SettingsError(
                f"{path} was made with another budget: {listed(told, 3)}; choose another --out, or do all again with "
                "--redo"
            )
