"""What a person and a program see of a training run: a bar on a terminal, lines elsewhere, metrics.jsonl always."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

METRICS_NAME = "metrics.jsonl"
LINES_EVERY_SECONDS = 15.0


class RunDisplay:
    """Shows the steps of a run and appends every record to `folder`/metrics.jsonl."""

    def __init__(self, folder: Path, *, title: str, total: int, console: Console | None) -> None:
        """`console` None shows nothing and writes nothing: for all processes but the first."""
        self._console = console
        self._metrics = folder / METRICS_NAME
        self._total = total
        self._started, self._first, self._last_line = time.monotonic(), 0, 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=console is None or not console.is_terminal,
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
        """Append one JSON line: its kind, the time, and the values."""
        if self._console is not None:
            with open(self._metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": kind, "time": round(time.time(), 3), **values}) + "\n")

    def advance(self, done: int) -> None:
        """Move the bar."""
        self._first = self._first or done
        self._bar.update(self._task, completed=done)

    def step(self, step: int, *, loss: float, accuracy: float, clips_per_second: float, **more: float) -> None:
        """Show and record the state after an optimizer step; loss and accuracy since the last call."""
        self.record("train", step=step, loss=loss, accuracy=accuracy, clips_per_second=clips_per_second, **more)
        if self._console is None:
            return
        text = f"loss {loss:.3f}  accuracy {accuracy:.0%}  {clips_per_second:.1f} clips/s"
        self._bar.update(self._task, description=text)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line > LINES_EVERY_SECONDS or step == self._total):
            self._last_line = now
            left = (now - self._started) / max(1, step - self._first) * (self._total - step)
            self._console.print(f"step {step}/{self._total}  {text}  {left / 60:.1f} min left", highlight=False)

    def say(self, lines: str | Iterable[str]) -> None:
        """Print above the bar."""
        if self._console is not None:
            for line in [lines] if isinstance(lines, str) else lines:
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class Meter:
    """Loss and accuracy since the last reading, summed on the device so that a GPU need not wait every step."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self._started = time.monotonic()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (B, C), labels (B,)."""
        right = (logits.argmax(-1) == labels).sum()
        count = torch.full_like(right, len(labels))
        self._sums += torch.stack([loss * len(labels), right, count]).to(self._sums.dtype)

    def read(self) -> tuple[float, float, float]:
        """Mean loss, accuracy from 0 to 1, clips a second; then start anew."""
        loss, right, count = self._sums.tolist()
        seconds = time.monotonic() - self._started
        self._sums.zero_()
        self._started = time.monotonic()
        return loss / max(1.0, count), right / max(1.0, count), count / max(seconds, 1e-9)
