"""A comparison as a table to look at, as Markdown, and as CSV with one line per run."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from stadapter.comparison.summary import Comparison, Row
from stadapter.costs import COUNTED
from stadapter.durable import write_whole
from stadapter.evaluation.tables import interval_text
from stadapter.evaluation.timecheck import CHANGED_ORDERS
from stadapter.uncertainty import Difference, Interval
from stadapter.wording import counted, percent

_INTERVAL = "95 % interval"
_DISPENSABLE = ("top-5", "lowest to\nhighest seed", "reversed", "shuffled", "seeds", "one frame", "verdict", _INTERVAL)
"""Headers of columns dropped on a narrow terminal, in this order."""
_RUN_COLUMNS = (
    *("strategy", "name", "seed", "steps", "trained_parameters", "total_parameters", "artefact_bytes"),
    *("gmacs_per_view", "clips_per_second", "peak_memory_bytes", "peak_memory_of", "training_seconds", "wall_seconds"),
    *("num_clips", "top1", "top5", "mean_class_accuracy", "loss", "shuffled", "reversed", "single_frame", "commit"),
)
"""The fields of a run that the CSV holds as one value each."""


@dataclass(frozen=True)
class _FittingTable:
    """A table with as many of its columns as fit; no name is cut off to show another figure."""

    title: str
    headers: Sequence[str]
    lines: Sequence[Sequence[str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left_out: list[str] = []
        for header in filter(self.headers.__contains__, _DISPENSABLE):
            if (
                console.measure(self._table(left_out), options=options.update_width(10_000)).maximum
                <= options.max_width
            ):
                break
            left_out.append(header)
        yield self._table(left_out)
        if left_out:
            names = ", ".join(header.replace("\n", " ") for header in reversed(left_out))
            yield Text(f"No room for {names}: comparison.md has them.")

    def _table(self, left_out: Sequence[str]) -> Table:
        table = Table(title=self.title, title_justify="left")
        columns = zip(self.headers, _columns(self.headers, self.lines), strict=True)
        kept = [(header, column) for header, column in columns if header not in left_out]
        for header, column in kept:
            table.add_column(header, justify="right" if all(map(_is_number, column)) else "left", overflow="fold")
        for line in zip(*(column for _, column in kept), strict=True):
            table.add_row(*map(Text, line))
        return table


def tables(comparison: Comparison) -> Group:
    """What was measured, what it means, and what failed, to be printed with rich."""
    title = f"Comparison on {counted(comparison.num_clips, 'test clip')}"
    table: list[RenderableType] = [_FittingTable(title, *_accuracy_lines(comparison))] if comparison.rows else []
    failures = [Text(f"failed: {item.title}, seed {item.seed}: {item.error}") for item in comparison.failures]
    return Group(*table, *map(Text, comparison.sentences), *failures)


def write_markdown(path: Path, comparison: Comparison, figures: Sequence[Path] = ()) -> None:
    """Write the tables, the sentences, and how everything was measured."""
    head = "<!-- Written by stadapter compare from the result files next to it; do not edit by hand. -->"
    text = f"{head}\n\n{markdown(comparison, [figure.name for figure in figures])}\n"
    write_whole(path, text.encode("utf-8", "backslashreplace"))


def markdown(comparison: Comparison, figures: Sequence[str] = ()) -> str:
    """The tables, the sentences, and how everything was measured; figures are named as the page links to them."""
    parts = ["\n".join(comparison.sentences)]
    if comparison.rows:
        parts = [
            markdown_table(*_accuracy_lines(comparison)),
            *parts,
            *(f"![{Path(figure).stem.replace('-', ' ')}]({figure})" for figure in figures),
            "What each costs:",
            markdown_table(*_cost_lines(comparison)),
            _notes(comparison),
        ]
    if comparison.failures:
        lines = [f"- {item.title}, seed {item.seed}: {_cell(item.error)}" for item in comparison.failures]
        parts.append("Runs that failed:\n\n" + "\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def markdown_table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown: number columns right-aligned, others left-aligned."""
    marks = ["---:" if all(map(_is_number, column)) else "---" for column in _columns(headers, lines)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in (headers, marks, *lines))


def _columns(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return list(zip(*lines, strict=True)) or [()] * len(headers)


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "+-0123456789"


def write_csv(path: Path, comparison: Comparison) -> None:
    """Write one line for every run with a result."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    interval = ("top1_low", "top1_high", "top5_low", "top5_high")
    writer.writerow([*_RUN_COLUMNS, "lr", *interval])
    for row in comparison.rows:
        for run in row.runs:
            ends = [end for of in (run.top1_interval, run.top5_interval) for end in (of.low, of.high)]
            writer.writerow([*(getattr(run, name) for name in _RUN_COLUMNS), run.config["lr"], *ends])
    write_whole(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _accuracy_lines(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and lines, without columns that are empty in every line, as with one seed or no reference."""
    has_top5 = any(run.num_classes is None or run.num_classes > 5 for row in comparison.rows for run in row.runs)
    headers = ["experiment", "seeds", "trained\nparameters", "top-1", _INTERVAL, "lowest to\nhighest seed", "top-5"]
    headers += ["shuffled", "reversed", "one frame", f"above\n{comparison.reference},\npoints", "verdict"]
    lines = [
        [
            row.title,
            str(len(row.runs)),
            f"{row.median('trained_parameters'):,.0f}",
            percent(row.top1),
            interval_text(row.interval),
            interval_text(Interval(row.lowest, row.highest)) if len(row.runs) > 1 else "",
            percent(row.mean("top5")) if has_top5 else "",  # with five classes or fewer it says nothing
            *(percent(row.mean(order)) for order in CHANGED_ORDERS),
            _difference(row.difference),
            row.verdict,
        ]
        for row in comparison.rows
    ]
    kept = [place for place in range(len(headers)) if any(line[place] for line in lines)]
    return [headers[place] for place in kept], [[line[place] for place in kept] for line in lines]


def _cost_lines(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    headers = ["experiment", "steps", "frames", "learning rate", "total parameters", "artefact", "GMACs per view"]
    headers += ["clips/s", "peak memory", "training"]
    return headers, [_cost_line(row) for row in comparison.rows]


def _cost_line(row: Row) -> list[str]:
    def shown(key: str, text: Callable[[float], str]) -> str:
        value = row.median(key)
        return "" if value is None else text(value)

    first = row.runs[0]
    return [
        row.title,
        str(first.steps),
        str(first.config["num_frames"]),
        f"{first.config['lr']:g}" + (", searched" if first.lr_search else ""),
        shown("total_parameters", "{:,.0f}".format),
        shown("artefact_bytes", lambda size: f"{_in_three_digits(size / 1e6)} MB"),
        shown("gmacs_per_view", "{:,.2f}".format),
        shown("clips_per_second", "{:,.1f}".format),
        shown("peak_memory_bytes", lambda size: f"{size / 2**20:,.0f} MiB"),
        shown("training_seconds", lambda seconds: f"{_in_three_digits(seconds / 60)} min"),
    ]


def _in_three_digits(value: float) -> str:
    """A figure in a column whose figures may be far apart.

    >>> _in_three_digits(0.0156789), _in_three_digits(7.1659), _in_three_digits(12345.6)
    ('0.0157', '7.17', '12,300')
    """
    return f"{float(f'{value:.3g}'):,.10g}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    low, high = difference.interval.low, difference.interval.high
    return f"{100 * difference.mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _notes(comparison: Comparison) -> str:
    runs = [run for row in comparison.rows for run in row.runs]
    budget = runs[0].budget
    hardware = sorted({f"{run.hardware['device']}, {run.hardware['processor']}" for run in runs})
    versions = sorted({", ".join(f"{name} {value}" for name, value in run.versions.items()) for run in runs})
    commits = sorted({run.commit or "no checkout" for run in runs})
    searches = [run.lr_search for run in runs if run.lr_search is not None]
    notes = [
        f"Budget, the same for all: {runs[0].steps} steps of {budget['batch_size']} clips, {budget['num_frames']} "
        f"frames of {runs[0].size} pixels unless the experiment is about frames.",
        f"Test clips: {comparison.num_clips}; data {budget['train_sha256'][:12]}, test {budget['test_sha256'][:12]}, "
        f"trunk {budget['backbone_sha256'][:12]} (sha256).",
        "Accuracies are means over the seeds; intervals are 95 % bootstrap intervals that resample both test clips and "
        "seeds (Owen 2007), or only the clips where there is one seed. Differences are taken on the same clips.",
        f"GMACs: {COUNTED}. Clips/s: median during training. Peak memory: "
        f"{' and '.join(sorted({run.peak_memory_of for run in runs}))}, decoding processes not counted.",
        f"Hardware: {'; '.join(hardware)}. Versions: {'; '.join(versions)}. Commit: {', '.join(commits)}.",
    ]
    if searches:
        search, which = searches[0], "each" if len(searches) == len(runs) else "those marked as searched"
        notes.append(
            f"The learning rate of {which} is the best of {len(search.values)}, tried with one seed and "
            f"{search.steps or 'a third of the'} steps on {search.num_held_out_clips} clips held out of the training "
            "data: among the rates that these clips cannot tell from the best, the one with the lowest training loss. "
            "The search did not look at the test clips."
        )
    return "\n".join(f"- {note}" for note in notes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
