"""Trainings that are no plain ones: in two processes that compute as one, and stopped on the way."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stadapter.training.progress import Meter
from stadapter.training.settings import TrainConfig, settings_to_json

_SCRIPT = """
import json, sys
from pathlib import Path
from stadapter.errors import SettingsError
from stadapter.training.loop import train
from stadapter.training.preparation import make_accelerator
from stadapter.training.settings import settings_from_json

if __name__ == "__main__":
    config = settings_from_json(json.loads(sys.argv[1]))
    train(config)
    try:
        make_accelerator(config)
    except SettingsError as error:
        assert "cannot be connected again" in str(error)
    else:
        raise AssertionError("a second training would hang")
    threads = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in threads if "gloo" in name]
    assert not left, f"{left} may abort this process at its end"
"""


def train_in_two_processes(config: TrainConfig, folder: Path, **changes: Any) -> str:
    """Train with the settings changed, by gloo on this machine's CPU; what the processes said."""
    done = run_in_two_processes(_SCRIPT, dataclasses.replace(config, **changes), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def run_in_two_processes(code: str, config: TrainConfig, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script with the settings, as JSON, as its argument."""
    script = folder / "two.py"
    script.write_text(code)
    settings = json.dumps(settings_to_json(config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", str(_free_port())]
    return subprocess.run(
        [*launch, str(script), settings],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something to a training of this process, after the last batch of a step and before what is written of it."""
    original = Meter.add
    calls = 0

    def add(self: Meter, *args: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, *args)
        if calls == step:
            act()

    monkeypatch.setattr(Meter, "add", add)


def stop_after(monkeypatch: pytest.MonkeyPatch, *, steps: int) -> None:
    """Send this process a real SIGTERM at the end of a step."""
    at_step(monkeypatch, steps, lambda: os.kill(os.getpid(), signal.SIGTERM))
