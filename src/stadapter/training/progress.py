"""What people and programs see of a training run: a bar on a terminal, lines elsewhere, metrics.jsonl always.

metrics.jsonl is part of what a run leaves: if it cannot be written, the run ends. Lines for people and the curves for
TensorBoard are not: if they cannot be written, the run continues.
"""

import importlib.util
import io
import os
import platform
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from stadapter.errors import TrainingError
from stadapter.records import METRICS_NAME, append_record, read_records, write_records
from stadapter.wording import duration, percent, printable_lines

CURVES_NAME = "tensorboard"
LINES_EVERY_SECONDS = 15.0
_NARROW_COLUMNS = 90


class RunDisplay:
    """Shows the steps of a run and appends every record to `folder`/metrics.jsonl."""

    def __init__(
        self, folder: Path, *, title: str, total: int, console: Console | None, curves: "Curves | None" = None
    ) -> None:
        """`console` None shows nothing and writes nothing: for all processes except the first."""
        self._console = console
        self._curves = curves if console is not None else None
        self._folder = folder
        self._total = total
        self._started, self._last_line = time.monotonic(), 0.0
        self._first: int | None = None
        self._bar = Progress(
            *_bar_columns(console),
            console=console,
            disable=console is None or not shows_bars(console),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self) -> "RunDisplay":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def record(self, kind: str, **values: Any) -> None:
        """Append one JSON line: its kind, the time, and the values.

        Raises:
            TrainingError: it cannot be written.
        """
        if self._console is None:
            return
        try:
            append_record(self._folder, kind, **values)
        except OSError as error:
            path = self._folder / METRICS_NAME
            raise TrainingError(f"cannot write {path}: {error.strerror}; make room, then resume") from error

    def advance(self, done: int) -> None:
        """Move the bar."""
        self._first = done if self._first is None else self._first
        self._bar.update(self._task, completed=done)

    def step(self, step: int, *, loss: float, accuracy: float, clips_per_second: float, **more: float) -> None:
        """Show and record the state after an optimizer step; loss and accuracy since the last call."""
        figures = {"loss": loss, "accuracy": accuracy, "clips_per_second": clips_per_second, **more}
        self.record("train", step=step, **figures)
        self.draw(step, {f"train/{name}": value for name, value in figures.items()})
        if self._console is None:
            return
        text = f"loss {loss:.3f}  accuracy {percent(accuracy, 0)}  {clips_per_second:.1f} clips/s"
        self._bar.update(self._task, description=text)
        now = time.monotonic()
        if not shows_bars(self._console) and (now - self._last_line > LINES_EVERY_SECONDS or step == self._total):
            self._last_line = now
            left = (now - self._started) / max(1, step - (self._first or 0)) * (self._total - step)
            self.say(f"step {step}/{self._total}  {text}  {duration(left)} left")

    def note(self, text: str) -> None:
        """Show next to the bar what is being done, until the next step."""
        self._bar.update(self._task, description=text)

    def draw(self, step: int, figures: Mapping[str, float]) -> None:
        """Add to the curves; when they cannot be written, say so once and continue without."""
        if self._curves is None:
            return
        try:
            self._curves.add(step, figures)
        except OSError as error:
            self.say(f"no more curves for TensorBoard: {error.strerror}; {METRICS_NAME} has them and the run continues")

    def say(self, lines: str | Iterable[str]) -> None:
        """Print above the bar, if there still is somewhere to print to."""
        if self._console is not None:
            for line in [lines] if isinstance(lines, str) else lines:
                with suppress(OSError):
                    self._console.print(printable_lines(line), highlight=False, markup=False, soft_wrap=True)


def shows_bars(console: Console) -> bool:
    """Whether lines can be redrawn there: on any terminal except one that calls itself dumb."""
    return console.is_terminal and not console.is_dumb_terminal


def _bar_columns(console: Console | None) -> list[ProgressColumn]:
    """What stands next to the bar: no figures on a narrow terminal, where they would leave it no room."""
    columns: list[ProgressColumn] = [BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()]
    if console is not None and console.width < _NARROW_COLUMNS:
        return columns
    return [TextColumn("{task.description}"), *columns]


class LastingConsole(Console):
    """A console that falls silent when its reader has gone, instead of ending the run."""

    def on_broken_pipe(self) -> None:
        """Called by rich when a pipe has no reader."""
        self.quiet = True


class Curves:
    """An event file for TensorBoard, if that is installed.

    It is written here and immediately: TensorBoard's own writer does it in a thread, which a full disk ends with a
    traceback.
    """

    def __init__(self, folder: Path) -> None:
        """Write nothing until there is something to add."""
        self._is_on = importlib.util.find_spec("tensorboard") is not None
        self._path = folder / CURVES_NAME / f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Add the value of each curve at a step.

        Raises:
            OSError: they cannot be written; whatever is added later is ignored.
        """
        if not self._is_on:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        values = [Summary.Value(tag=name, simple_value=value) for name, value in figures.items()]
        events = [Event(wall_time=now, step=step, summary=Summary(value=values))]
        if not self._path.exists():
            # A start event makes TensorBoard forget what an interrupted run wrote for this step and later ones.
            start = Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START))
            events = [Event(wall_time=now, file_version="brain.Event:2"), start, *events]
        content = io.BytesIO()
        for event in events:
            RecordWriter(content).write(event.SerializeToString())
        try:
            self._path.parent.mkdir(exist_ok=True)
            with open(self._path, "ab") as file:
                file.write(content.getvalue())
        except OSError:
            self._is_on = False
            raise


def rewind(folder: Path, *, step: int, failures: Collection[str], validates_again: bool) -> None:
    """Drop from `folder`/metrics.jsonl what was recorded after a checkpoint, and any line that was cut off.

    What a resumed run repeats is then recorded only once: the steps after it, and the validation at that point.

    Args:
        folder: the run folder.
        step: optimizer steps done at the checkpoint.
        failures: names of the clips the checkpoint knows to be unreadable.
        validates_again: whether the held-out clips are evaluated again at that step.

    Raises:
        ArtefactError: it cannot be written.
    """

    def is_kept(record: Mapping[str, Any]) -> bool:
        if record.get("kind") == "unreadable":
            return record.get("name") in failures
        done = record.get("step", 0)
        is_repeated = record.get("kind") == "validation" and validates_again
        return bool(done < step if is_repeated else done <= step)

    write_records(folder, filter(is_kept, read_records(folder)))


class MeterReading(NamedTuple):
    """What a meter has measured."""

    loss: float
    """Mean over the clips."""
    accuracy: float
    """Share of the clips classified correctly by every head, 0 to 1."""
    by_head: tuple[float, ...]
    """The same per head."""
    clips_per_second: float


class Meter:
    """Loss and accuracy since the last reading, summed on the device so that a GPU need not wait at every step."""

    def __init__(self, device: torch.device, *, num_heads: int = 1) -> None:
        dtype = torch.float64 if device.type != "mps" else torch.float32
        self._sums = torch.zeros(3 + num_heads, dtype=dtype, device=device)
        self._started = time.monotonic()

    def add(self, loss: Tensor, hits: Tensor) -> None:
        """Add a batch: its mean loss, and whether each head classified each clip correctly, bool (B, K)."""
        count = torch.full_like(loss, len(hits))
        self._sums += torch.stack([loss * len(hits), count, hits.all(-1).sum(), *hits.sum(0)]).to(self._sums.dtype)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent in the block from the clips per second."""
        started = time.monotonic()
        yield
        self._started += time.monotonic() - started

    def read(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> MeterReading:
        """What was added since the last reading; then restart. `reduce` sums over processes that train together."""
        loss, count, right, *by_head = reduce(self._sums).tolist()
        seconds = time.monotonic() - self._started
        self._sums.zero_()
        self._started = time.monotonic()
        clips = max(1.0, count)
        return MeterReading(
            loss / clips, right / clips, tuple(of / clips for of in by_head), count / max(seconds, 1e-9)
        )
