"""What a training run survives: kills, signals, full and read-only disks, data and workers that go. Real processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stadapter.artefact import WEIGHTS_NAME
from stadapter.checkpoint import CHECKPOINT_NAME, read_checkpoint
from stadapter.synthetic import write_clips
from trunks import save_trunk

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")

NUM_CLIPS, STEPS_PER_EPOCH, EPOCHS = 12, 6, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, classes=("left", "right"), clips_per_class=NUM_CLIPS // 2, size=32, num_frames=8)
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunk"), "dinov2")


class Run:
    """The command line of a small training, and its processes."""

    def __init__(self, folder: Path, data: Path, trunk: Path) -> None:
        self.out, self.temporary = folder / "run", folder / "tmp"
        self.temporary.mkdir()
        self.flags: dict[str, Any] = {
            "data": data,
            "backbone": trunk,
            "out": self.out,
            "val-fraction": 0,
            "num-frames": 4,
            "size": 16,
            "epochs": EPOCHS,
            "batch-size": NUM_CLIPS // STEPS_PER_EPOCH,
            "tuning.width": 8,
            "dropout": 0.2,
            "device": "cpu",
            "precision": "fp32",
            "num-workers": 0,
            "checkpoint-minutes": 0,
        }
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary)}

    def command(self, *switches: str, **changes: Any) -> list[str]:
        flags = self.flags | {name.replace("_", "-"): value for name, value in changes.items()}
        typed = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        return [sys.executable, "-m", "stadapter", "train", *typed, *switches]

    def start(self, *switches: str, prefix: tuple[str, ...] = (), **changes: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*prefix, *self.command(*switches, **changes)], env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def finish(self, *switches: str, prefix: tuple[str, ...] = (), **changes: Any) -> tuple[int, str]:
        """Exit code, and what was said."""
        process = self.start(*switches, prefix=prefix, **changes)
        return ended(process)

    def steps(self) -> int:
        """Steps done at the last checkpoint; 0 where there is none."""
        return read_checkpoint(self.out)[0].step if (self.out / CHECKPOINT_NAME).exists() else 0

    def records(self, kind: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]


@pytest.fixture
def run(tmp_path: Path, data: Path, trunk: Path) -> Run:
    return Run(tmp_path, data, trunk)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=180)
    finally:
        process.kill()
    return process.returncode, said


def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """The decoding processes of a training."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def weights(out: Path) -> bytes:
    return (out / WEIGHTS_NAME).read_bytes()


def kill_while_it_writes(process: "subprocess.Popen[str]", out: Path) -> None:
    """SIGKILL a training in the middle of writing a checkpoint."""
    part = out / f".{CHECKPOINT_NAME}.{process.pid}"
    for _ in range(100_000):
        wait_for(part.exists)
        process.send_signal(signal.SIGSTOP)
        if part.exists():
            break
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.communicate()
    assert part.exists()


def kill_after(process: "subprocess.Popen[str]", run: Run, *, checkpoints: int, seconds: float) -> None:
    """SIGKILL a training some time after it has written so many checkpoints."""
    seen: set[int] = set()
    path = run.out / CHECKPOINT_NAME
    before = path.stat().st_mtime_ns if path.exists() else 0

    def counted() -> bool:
        if path.exists() and path.stat().st_mtime_ns > before:
            seen.add(path.stat().st_mtime_ns)
        return len(seen) >= checkpoints or process.poll() is not None

    wait_for(counted)
    time.sleep(seconds)
    process.kill()
    process.communicate()


def left_in_temporary_folder(run: Run) -> list[Path]:
    return [path for path in run.temporary.rglob("*") if path.is_file() and path.stat().st_size]


def check_kill(run: Run, process: "subprocess.Popen[str]", step_before: int) -> None:
    assert process.returncode == -signal.SIGKILL, "it was over before it could be killed"
    assert run.steps() >= step_before
    assert not (run.out / WEIGHTS_NAME).exists()
    assert left_in_temporary_folder(run) == []


def test_a_killed_run_resumes_to_the_same_bytes_whatever_the_number_of_workers(run: Run, tmp_path: Path) -> None:
    code, said = run.finish(out=tmp_path / "whole")
    assert code == 0, said

    first = run.start(num_workers=1)
    kill_after(first, run, checkpoints=4, seconds=0.005)
    check_kill(run, first, 1)
    step = run.steps()
    assert 4 <= step < STEPS_PER_EPOCH * EPOCHS
    second = run.start("--resume", num_workers=0)  # at once: the orphans of the first may still be there
    kill_while_it_writes(second, run.out)
    check_kill(run, second, step)
    code, said = run.finish("--resume", num_workers=2)
    assert code == 0, said
    assert "Traceback" not in said

    assert weights(run.out) == weights(tmp_path / "whole")
    names = {path.name for path in run.out.iterdir()} - {"tensorboard"}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()} - {"tensorboard"}
    steps = [record["step"] for record in run.records("train")]
    assert steps == [*range(10, STEPS_PER_EPOCH * EPOCHS, 10), STEPS_PER_EPOCH * EPOCHS]  # each of them once


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_resumes_to_the_same_bytes(run: Run, tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    code, said = run.finish(out=tmp_path / "whole")
    assert code == 0, said
    kills = 0
    while run.steps() < STEPS_PER_EPOCH * EPOCHS - 12 and kills < 12:
        step = run.steps()
        process = run.start(*(["--resume"] if step else []), num_workers=generator.choice((0, 1, 2)))
        if generator.random() < 0.4:
            kill_while_it_writes(process, run.out)
        else:
            kill_after(process, run, checkpoints=generator.randint(1, 4), seconds=generator.uniform(0, 0.03))
        check_kill(run, process, step)
        kills += 1
    assert kills >= 3
    code, said = run.finish("--resume", num_workers=generator.choice((0, 1, 2)))
    assert code == 0, said
    assert weights(run.out) == weights(tmp_path / "whole")


def test_the_workers_of_a_killed_run_go_by_themselves(run: Run) -> None:
    process = run.start(num_workers=2, epochs=10_000)
    wait_for(lambda: run.steps() > 0)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    wait_for(lambda: not any(map(is_alive, workers)), seconds=30)


def test_a_killed_worker_ends_the_run_with_a_sentence_and_it_resumes(run: Run) -> None:
    process = run.start(num_workers=2, epochs=10_000)
    wait_for(lambda: run.steps() > 3)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    code, said = ended(process)
    assert code == 1
    assert "Traceback" not in said
    assert "a process that decodes videos was ended by a signal (Killed); most likely the system ran out of mem" in said
    assert "--num-workers" in said
    assert f"the state after step {run.steps()} is in {run.out}; --resume goes on from there" in said
    process = run.start("--resume", num_workers=0, epochs=10_000)
    step = run.steps()
    wait_for(lambda: run.steps() > step)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 130


def test_a_second_training_in_the_same_folder_is_refused_by_the_name_of_the_first(run: Run) -> None:
    process = run.start(epochs=10_000)
    try:
        wait_for(lambda: run.steps() > 0)
        for switches in ([], ["--resume"]):
            code, said = run.finish(*switches, epochs=10_000)
            assert code == 1
            assert f"process {process.pid} on " in said
            assert f"is training in {run.out}; wait for it, or choose another --out" in said
        step = run.steps()
        wait_for(lambda: run.steps() > step)  # the first goes on, and still owns the folder
        assert f"process {process.pid} on " in run.finish("--resume", epochs=10_000)[1]
    finally:
        process.kill()
        process.communicate()


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A folder with a filesystem mounted on it, as `mount` is told; skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", *options, str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a filesystem is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Fill a disk up to `leave` bytes."""
    filler = folder / "filler"
    with open(filler, "wb") as file:
        size = max(0, shutil.disk_usage(folder).free - leave)
        file.write(bytes(size))
    return filler
