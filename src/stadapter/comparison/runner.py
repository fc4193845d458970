"""The runs of a comparison, one after the other; existing results are not run again."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from stadapter.artefact import SPEC_NAME
from stadapter.comparison.config import CompareConfig, choose_experiments
from stadapter.comparison.experiments import Experiment
from stadapter.comparison.jobs import Common, Job, experiment_job, find_common, rates_of
from stadapter.comparison.plots import write_figures
from stadapter.comparison.process import fail, identity_there, is_done, run
from stadapter.comparison.results import (
    FinishedRun,
    RateSearch,
    budget_of,
    changes,
    read_result,
    read_results,
    result_name,
)
from stadapter.comparison.search import search
from stadapter.comparison.summary import Comparison, summarise
from stadapter.comparison.tables import write_csv, write_markdown
from stadapter.errors import SettingsError
from stadapter.paths import expanded
from stadapter.records import METRICS_NAME
from stadapter.signals import stopped_by_signals
from stadapter.training.run_folder import locked
from stadapter.wording import changed, duration, listed

MARKDOWN_NAME, CSV_NAME = "comparison.md", "runs.csv"


def compare(config: CompareConfig, *, console: Console | None = None) -> Comparison:
    """Run what has no result yet, and write a table, a CSV file and two figures from all results in the folder.

    A run that fails is recorded with its error, and tried again by the next call; the others continue.

    Args:
        config: what is compared, on what, and on which budget.
        console: where to say which run is in progress; default: standard error.

    Raises:
        SettingsError: experiments cannot be understood, or results were made with other settings.
        STAdapterError: the data or the trunk is not usable, or the folder cannot be written.
        KeyboardInterrupt: asked to stop; the current run has left a checkpoint, from which the next call continues.
    """
    folder = expanded(config.out)
    _run_all(config, choose_experiments(config), folder, console or Console(stderr=True))
    return write_summary(folder, reference=config.reference)


def write_summary(folder: Path, *, reference: str = "st-adapter/default") -> Comparison:
    """The comparison from the result files in a folder; its table, CSV file and figures are written next to them."""
    comparison = summarise(folder, reference=reference)
    write_markdown(folder / MARKDOWN_NAME, comparison, write_figures(folder, comparison))
    write_csv(folder / CSV_NAME, comparison)
    return comparison


def _run_all(config: CompareConfig, experiments: Sequence[Experiment], folder: Path, console: Console) -> None:
    """Run what has no result yet; results made with other settings are refused before anything starts.

    Raises:
        SettingsError, STAdapterError, KeyboardInterrupt: as raised by `compare`.
    """
    if not config.out or any((folder / name).is_file() for name in (SPEC_NAME, METRICS_NAME)):
        raise SettingsError(f"out {config.out!r}: expected a results folder, not a run folder; choose another --out")
    common = find_common(config)
    rates = {item.stem: rates_of(config, item) for item in experiments}
    wanted = [
        (item, experiment_job(config, common, item, seed, folder)) for seed in config.seeds for item in experiments
    ]
    if not config.redo:
        _refuse_other_settings([job for _, job in wanted])
    _refuse_other_budget(folder, common, [job for _, job in wanted], redo=config.redo)
    _note_missing_reference(config, experiments, folder, console)
    with stopped_by_signals(), locked(folder):
        started, num_run = time.monotonic(), 0
        searches: dict[str, RateSearch] = {}
        for number, (item, job) in enumerate(wanted, start=1):
            if is_done(job):
                continue
            left = ""
            if num_run:
                num_left = sum(not is_done(other) for _, other in wanted[number - 1 :])
                left = f", about {duration((time.monotonic() - started) / num_run * num_left)} left"
            console.print(f"\n{job.title} ({number} of {len(wanted)}{left})", style="bold", highlight=False)
            num_run += 1
            if rates[item.stem]:
                if item.stem not in searches:  # once, so that all seeds have the same rate whatever fails
                    searches[item.stem] = search(config, common, item, folder, console)
                found = searches[item.stem]
                job = replace(job, known=replace(job.known, lr_search=found))
                if found.chosen is None:
                    fail(job, f"no learning rate worked: {listed(list(found.errors.values()))}")
                    continue
                job = replace(job, config=replace(job.config, lr=found.chosen))
            run(job, console)


def _note_missing_reference(
    config: CompareConfig, experiments: Sequence[Experiment], folder: Path, console: Console
) -> None:
    """Say before the runs what their table will be missing."""
    strategy, _, name = config.reference.partition("/")
    is_there = any(folder.glob(result_name(strategy, name, "*")))
    if not is_there and all(item.title != config.reference for item in experiments):
        console.print(
            f"no {config.reference} among the experiments or in {folder}: nothing will be compared with it; "
            f"choose another with --reference, such as {experiments[0].title}",
            highlight=False,
            markup=False,
        )


def _refuse_other_settings(jobs: Sequence[Job]) -> None:
    for job in jobs:
        found = identity_there(job)
        if found is not None and (told := changes(found, job.known.identity)):
            raise SettingsError(
                f"{job.result} was made with other settings: {listed(told, 3)}; choose another --out, or run it "
                "again with --redo"
            )


def _refuse_other_budget(folder: Path, common: Common, jobs: Sequence[Job], *, redo: bool) -> None:
    """Results next to ours must have been made on our budget, or the table would compare the incomparable."""
    done_again = {job.result.name for job in jobs if redo or read_result(job.result) is None}
    for path, result in read_results(folder, but=done_again).items():
        if isinstance(result, FinishedRun) and (theirs := budget_of(result)) != common.budget:
            told = [line for name, ours in common.budget.items() for line in changed(name, theirs.get(name), ours)]
            raise SettingsError(
                f"{path} was made with another budget: {listed(told, 3)}; choose another --out, or run all again with "
                "--redo"
            )
