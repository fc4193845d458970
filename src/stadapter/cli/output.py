"""What verbs show and write: messages, tables, progress bars, JSON."""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stadapter.durable import write_where_told
from stadapter.errors import SettingsError
from stadapter.paths import expanded
from stadapter.wording import printable_lines

_PIPE_COLUMNS = 10_000
"""Width of tables that are not shown on a terminal: wide enough that nothing is cut off."""


def say(lines: str | Iterable[str]) -> None:
    """Messages for people, on standard error."""
    for line in [lines] if isinstance(lines, str) else lines:
        print(printable_lines(line), file=sys.stderr)


def output_console(stream: IO[str]) -> Console:
    """The console for tables: as wide as the terminal, or as wide as the table where there is none."""
    return Console(file=stream, width=None if stream.isatty() else _PIPE_COLUMNS)


@contextmanager
def progress_bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that moves a bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shown and console.is_terminal) or console.is_dumb_terminal
    # What is printed meanwhile is meant for standard output, but would be redirected to the bar's console.
    with Progress(*columns, console=console, transient=True, disable=hidden, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def check_writable(target: str, flag: str) -> None:
    """Refuse a file that could not be written, given with `flag`, before there is anything to lose.

    Raises:
        SettingsError: it is itself a folder, or its folder does not exist or is not writable.
    """
    path = expanded(target)
    if os.access(path, os.W_OK) and not path.is_dir():
        return
    if path.exists() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise SettingsError(f"cannot write {target!r}; expected {flag} to name a file in an existing, writable folder")


def write_json(target: str, content: dict[str, Any]) -> None:
    """Write JSON to a file, or to standard output for "-"."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    # For bytes of a file name that are not text: \udce9 is valid JSON too.
    write_where_told(expanded(target), f"{text}\n".encode(errors="backslashreplace"))


def next_step(folder: Path) -> str:
    """What to type after a run folder has been made."""
    return f"next: stadapter predict {shlex.quote(str(folder))} clip.mp4"
