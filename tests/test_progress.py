"""What is shown and recorded of a run."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from stadapter.records import METRICS_NAME
from stadapter.training.progress import Meter, RunDisplay


def test_lines_are_printed_where_there_is_no_terminal_and_records_are_kept(tmp_path: Path) -> None:
    shown = io.StringIO()
    with RunDisplay(tmp_path, title="training", total=10, console=Console(file=shown)) as display:
        display.advance(10)
        display.step(10, loss=0.5, accuracy=0.75, clips_per_second=8.0, lr=1e-3)
    assert "step 10/10" in shown.getvalue()
    assert "loss 0.500  accuracy 75 %  8.0 clips/s" in shown.getvalue()
    record = json.loads((tmp_path / METRICS_NAME).read_text())
    assert (record["kind"], record["step"], record["loss"], record["lr"]) == ("train", 10, 0.5, 1e-3)


def test_a_terminal_that_can_draw_nothing_sees_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True)
    with RunDisplay(tmp_path, title="training", total=10, console=console) as display:
        display.step(10, loss=0.5, accuracy=0.75, clips_per_second=8.0)
    assert shown.getvalue() == "step 10/10  loss 0.500  accuracy 75 %  8.0 clips/s  0 s left\n"


def test_a_terminal_sees_a_bar_with_the_time_left(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    with RunDisplay(tmp_path, title="training", total=4, console=console) as display:
        for step in range(1, 4):
            display.advance(step)
        display.step(3, loss=0.5, accuracy=0.75, clips_per_second=8.0)
        display.say("skipped a.mp4")
    assert "3/4" in shown.getvalue()
    assert "0:00:0" in shown.getvalue()
    assert "skipped a.mp4" in shown.getvalue()


def test_other_processes_show_and_record_nothing(tmp_path: Path) -> None:
    with RunDisplay(tmp_path, title="training", total=4, console=None) as display:
        display.advance(1)
        display.step(1, loss=0.5, accuracy=0.75, clips_per_second=8.0)
        display.say("nobody hears")
    assert not (tmp_path / METRICS_NAME).exists()


def test_the_meter_weighs_batches_by_their_clips_and_starts_anew() -> None:
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor(1.0), torch.tensor([[True], [True], [False]]))
    meter.add(torch.tensor(5.0), torch.tensor([[True]]))
    reading = meter.read()
    assert reading.loss == pytest.approx((3 * 1.0 + 5.0) / 4)
    assert reading.accuracy == pytest.approx(3 / 4)
    assert reading.clips_per_second > 0
    assert meter.read()[:2] == (0.0, 0.0)


def test_the_meter_counts_a_clip_as_right_where_every_head_is() -> None:
    meter = Meter(torch.device("cpu"), num_heads=2)
    meter.add(torch.tensor(1.0), torch.tensor([[True, True], [True, False], [True, False], [False, True]]))
    reading = meter.read()
    assert (reading.accuracy, reading.by_head) == (1 / 4, (3 / 4, 2 / 4))


def test_a_pause_is_not_counted_as_time_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("stadapter.training.progress.time.monotonic", lambda: now)
    meter = Meter(torch.device("cpu"))
    meter.add(torch.tensor(1.0), torch.ones(8, 1, dtype=torch.bool))
    now = 102.0
    with meter.paused():
        now = 150.0
    now = 152.0
    assert meter.read().clips_per_second == pytest.approx(2.0)
