"""What an evaluation found, as tables to be printed with rich."""

import math

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from stadapter.evaluation.figures import Report, by_head, headline_figures, largest_errors, most_mistaken
from stadapter.evaluation.timecheck import ORDER_NAMES, TimeCheck
from stadapter.uncertainty import CONFIDENCE, Interval
from stadapter.wording import named_once, percent, printable

_MAX_MATRIX_CLASSES = 20
_ANY_WIDTH = 10_000
_SHOWN_FAILURES = 5
_SHOWN_CLASSES = 60


def tables(report: Report) -> Group:
    """The summary, the time check, the table by class and the confusion matrix, to be printed with rich.

    With several heads each has all of these but the summary, which is shared.
    """
    parts: list[RenderableType] = [summary_table(report), *_unreadable(report)]
    for name, part in by_head(report).items():
        suffix = f", {name}" if name else ""
        if part.time_check is not None:
            parts.append(time_table(part.time_check, f" for the {name}" if name else ""))
        if part.confusion:
            parts += [class_table(part, suffix), ConfusionTable(part, suffix)]
    return Group(*parts)


def summary_table(report: Report) -> Table:
    """The figures over all clips."""
    table = Table(title="Evaluation", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column(f"{100 * report.confidence:.0f} % interval", justify="right")
    table.add_row("clips", str(report.num_clips))
    for name, value, interval in headline_figures(report):
        table.add_row(name, percent(value), interval_text(interval))
    table.add_row("loss", f"{report.loss:.4f}")
    table.add_row("calibration error", percent(report.calibration_error))
    table.add_row("clips that could not be read", str(len(report.failures)))
    return table


def _unreadable(report: Report) -> list[Text]:
    """The first clips that could not be read, one line each."""
    told = [named_once(failure.title, failure.error) for failure in report.failures]
    lines = [f"could not be read: {printable(line)}" for line in told[:_SHOWN_FAILURES]]
    if len(told) > _SHOWN_FAILURES:
        lines.append(f"and {len(told) - _SHOWN_FAILURES} more")
    return list(map(Text, lines))


def time_table(check: TimeCheck, suffix: str = "") -> Group:
    """The accuracies with the frames in order and in other orders, and a sentence on what they mean."""
    table = Table()
    table.add_column("frames")
    for header in ("accuracy", f"{100 * CONFIDENCE:.0f} % interval"):
        table.add_column(header, justify="right")
    for order, name in ORDER_NAMES.items():
        table.add_row(name, percent(getattr(check, order)), interval_text(check.intervals[order]))
    return Group(_titled(f"Does time matter{suffix}?", table), Text(check.verdict()))


def class_table(report: Report, suffix: str = "") -> Group:
    """Clips, accuracy and precision of every class, and the class it is most often mistaken for.

    With many classes only those with the lowest accuracy: hundreds of lines would push everything else off the screen.
    """
    table = Table()
    table.add_column("class", overflow="fold")
    for header in ("clips", "accuracy", "precision"):
        table.add_column(header, justify="right", overflow="fold")
    table.add_column("most often mistaken for", overflow="fold")
    shown, num_classes = list(enumerate(report.per_class)), len(report.per_class)
    title = f"By class{suffix}"
    if num_classes > _SHOWN_CLASSES:
        shown.sort(key=lambda row: math.inf if row[1].accuracy is None else row[1].accuracy)
        del shown[_SHOWN_CLASSES:]
        title += f": the {_SHOWN_CLASSES} of {num_classes} with the lowest accuracy; all are in report.html and --json"
    for position, result in shown:
        count, other = most_mistaken(report, position)
        mistaken = f"{other} ({count})" if count else ""
        table.add_row(
            Text(printable(result.label)),
            str(result.num_clips),
            percent(result.accuracy),
            percent(result.precision),
            Text(printable(mistaken)),
        )
    return _titled(title, table)


class ConfusionTable:
    """Rows are the true classes, columns the predicted ones; the largest errors instead if that is too wide to read."""

    def __init__(self, report: Report, suffix: str = "") -> None:
        self._report, self._suffix = report, suffix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if len(self._report.labels) <= _MAX_MATRIX_CLASSES:
            matrix = _matrix(self._report)
            if console.measure(matrix, options=options.update(width=_ANY_WIDTH)).minimum <= options.max_width:
                yield _titled(f"Confusion{self._suffix}: rows true, columns predicted", matrix)
                return
        yield _error_table(self._report, self._suffix)


def _matrix(report: Report) -> Table:
    table = Table()
    table.add_column("true")
    for label in report.labels:
        table.add_column(Text(printable(label)), justify="right")
    for label, row in zip(report.labels, report.confusion, strict=True):
        table.add_row(Text(printable(label)), *(str(count) if count else "·" for count in row))
    return table


def _titled(title: str, table: Table) -> Group:
    """A table below its title, which may be wider; rich would wrap it."""
    return Group(Text(title, "table.title"), table)


def interval_text(interval: Interval) -> str:
    """An interval of shares of 1, as people read it."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def _error_table(report: Report, suffix: str) -> Group:
    errors = largest_errors(report)
    shown = errors[:_MAX_MATRIX_CLASSES]
    table = Table()
    table.add_column("true")
    table.add_column("predicted")
    table.add_column("clips", justify="right")
    for count, true, predicted in shown:
        table.add_row(Text(printable(true)), Text(printable(predicted)), str(count))
    return _titled(f"Largest errors{suffix}, {len(shown)} of {len(errors)}", table)
