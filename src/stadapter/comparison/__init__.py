"""Strategies compared under one budget: the paper's question as one command.

experiments/<strategy>/<name>.json  ──►  OUT/<strategy>--<name>--seed<k>.json  ──►  OUT/comparison.md, .csv, two .svg

Every run is a training in a process of its own, in a run folder under OUT/runs. A result that is there is passed over.
"""

from pathlib import Path

from rich.console import Console

from stadapter.comparison.config import CompareConfig, choose_experiments
from stadapter.comparison.plots import write_figures
from stadapter.comparison.runner import run_all
from stadapter.comparison.summary import Comparison, summarise
from stadapter.comparison.tables import write_csv, write_markdown
from stadapter.paths import expanded

__all__ = ["CompareConfig", "Comparison", "compare"]
MARKDOWN_NAME, CSV_NAME = "comparison.md", "runs.csv"


def compare(config: CompareConfig, *, console: Console | None = None) -> Comparison:
    """Run what has no result yet, and write a table, a CSV file and two figures from all results in the folder.

    A run that fails is recorded with its error, and tried again by the next call; the others go on.

    Args:
        config: what is compared, on what, and with which budget.
        console: where to say which run is under way; default standard error.

    Raises:
        SettingsError: experiments that cannot be understood, or results that were made with other settings.
        STAdapterError: the data or the trunk is not usable, or the folder cannot be written.
        KeyboardInterrupt: asked to stop; the run under way has left a checkpoint, from which the next call goes on.
    """
    folder = expanded(config.out)
    run_all(config, choose_experiments(config), folder, console or Console(stderr=True))
    return write_summary(folder, reference=config.reference)


def write_summary(folder: Path, *, reference: str = "st-adapter/default") -> Comparison:
    """The comparison from the result files in a folder; its table, CSV file and figures are written beside them."""
    comparison = summarise(folder, reference=reference)
    write_markdown(folder / MARKDOWN_NAME, comparison, write_figures(folder, comparison))
    write_csv(folder / CSV_NAME, comparison)
    return comparison
