"""What a training run survives: kills, signals, full and read-only disks, data and workers that go. Real processes."""

import dataclasses
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from stadapter.__main__ import BROKEN_PIPE, main
from stadapter.artefact import SPEC_NAME, WEIGHTS_NAME, load_artefact, read_spec, save_artefact
from stadapter.cores import count_cores
from stadapter.errors import ArtefactError, STAdapterError, TrainingError
from stadapter.synthetic import write_clips
from stadapter.training import run_folder
from stadapter.training.checkpoint import CHECKPOINT_NAME, read_checkpoint
from stadapter.training.loop import TrainConfig, train
from stadapter.training.run_folder import claimed
from stadapter.tuning import STAdapter
from trainings import at_step
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

    def arguments(self, *switches: str, **changes: Any) -> list[str]:
        flags = self.flags | {name.replace("_", "-"): value for name, value in changes.items()}
        typed = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        return ["train", *typed, *switches]

    def command(self, *switches: str, **changes: Any) -> list[str]:
        return [sys.executable, "-m", "stadapter", *self.arguments(*switches, **changes)]

    def start(self, *switches: str, prefix: tuple[str, ...] = (), **changes: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*prefix, *self.command(*switches, **changes)], env=self.environment, stderr=subprocess.PIPE, text=True
        )

    def finish(self, *switches: str, prefix: tuple[str, ...] = (), **changes: Any) -> tuple[int, str]:
        """Exit code, and what was said."""
        process = self.start(*switches, prefix=prefix, **changes)
        return ended(process)

    def here(self, *switches: str, **changes: Any) -> tuple[int, str]:
        """As `finish`, in this process: without the seconds that a new one takes to import torch and transformers."""
        with redirect_stderr(io.StringIO()) as said:
            code = main(self.arguments(*switches, **changes))
        return code, said.getvalue()

    def steps(self) -> int:
        """Steps done at the last checkpoint; 0 where there is none, or a newer one takes its place as it is read."""
        try:
            return read_checkpoint(self.out)[0].step if (self.out / CHECKPOINT_NAME).exists() else 0
        except ArtefactError:
            return 0

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
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)  # it may run on for a while
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
    code, said = run.here(out=tmp_path / "whole")
    assert code == 0, said

    first = run.start(num_workers=1)
    kill_after(first, run, checkpoints=4, seconds=0.005)
    check_kill(run, first, 1)
    step = run.steps()
    assert 4 <= step < STEPS_PER_EPOCH * EPOCHS
    second = run.start("--resume", num_workers=0)  # at once: the orphans of the first may still be there
    kill_while_it_writes(second, run.out)
    check_kill(run, second, step)
    code, said = run.here("--resume", num_workers=2)
    assert code == 0, said
    assert "Traceback" not in said, said

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


both_thread_counts = pytest.mark.parametrize("threads", ["1", str(count_cores())], ids=["side by side", "in turns"])


@both_thread_counts
def test_the_workers_of_a_killed_run_go_by_themselves(run: Run, threads: str) -> None:
    run.environment["OMP_NUM_THREADS"] = threads
    process = run.start(num_workers=2, epochs=10_000, view_store_megabytes=0)
    wait_for(lambda: run.steps() > 0)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert len(workers) >= 2
    wait_for(lambda: not any(map(is_alive, workers)), seconds=30)


@both_thread_counts
def test_a_killed_worker_ends_the_run_with_a_sentence_and_it_resumes(
    run: Run, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    run.environment["OMP_NUM_THREADS"] = threads
    process = run.start(num_workers=2, epochs=10_000)
    wait_for(lambda: run.steps() > 3)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    code, said = ended(process)
    assert code == 1
    assert "Traceback" not in said, said
    assert "a process that decodes videos was ended by a signal (Killed); most likely the system ran out of mem" in said
    assert "--num-workers" in said
    assert f"the state after step {run.steps()} is in {run.out}; --resume continues from there" in said
    step = run.steps()
    at_step(monkeypatch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run.here("--resume", num_workers=0, epochs=10_000)[0] == 130
    assert run.steps() == step + 2


def test_full_shared_memory_ends_the_run_with_a_sentence(run: Run) -> None:
    script = 'mount -t tmpfs -o size=300k tmpfs /dev/shm && exec "$@"'
    alone = ("unshare", "--mount", "sh", "-c", script, "sh")
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a filesystem is not allowed here")
    code, said = run.finish(prefix=alone, num_workers=1, size=64, batch_size=8)  # a batch has 400 kB
    assert code == 1
    assert "Traceback" not in said, said
    assert "a process that decodes videos failed; most likely shared memory is full: use --num-workers 0" in said


def test_a_second_training_in_the_same_folder_is_refused_by_the_name_of_the_first(run: Run) -> None:
    process = run.start(epochs=10_000)
    try:
        wait_for(lambda: run.steps() > 0)
        for switches in ([], ["--resume"]):
            code, said = run.here(*switches, epochs=10_000)
            assert code == 1
            assert f"process {process.pid} on " in said
            assert f"is training in {run.out}; wait for it, or choose another --out" in said
            assert "unfinished run" not in said
        step = run.steps()
        wait_for(lambda: run.steps() > step)  # the first goes on, and still owns the folder
        assert f"process {process.pid} on " in run.here("--resume", epochs=10_000)[1]
    finally:
        process.kill()
        process.communicate()


def test_a_lock_that_its_last_holder_took_away_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, taken = run_folder._lock, []

    def take_late(descriptor: int, folder: Path) -> None:
        take(descriptor, folder)
        taken.append(descriptor)
        if len(taken) == 1:
            (folder / run_folder.LOCK_NAME).unlink()

    monkeypatch.setattr(run_folder, "_lock", take_late)
    with run_folder.locked(tmp_path):
        assert (tmp_path / run_folder.LOCK_NAME).read_text().startswith(f"process {os.getpid()} on ")
    assert len(taken) == 2


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


def fill(folder: Path) -> Path:
    """Fill a disk."""
    filler = folder / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def train_here(config: TrainConfig, **changes: Any) -> str:
    """Train in this process, and return what was said."""
    said = io.StringIO()
    train(dataclasses.replace(config, **changes), console=Console(file=said, width=200))
    return said.getvalue()


@pytest.fixture
def config(run: Run, data: Path, trunk: Path) -> TrainConfig:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {name.replace("-", "_"): value for name, value in run.flags.items()}
    return TrainConfig(**{name: value for name, value in settings.items() if name in names}, tuning=STAdapter(width=8))


@pytest.mark.parametrize(("checkpoint_minutes", "name"), [(0, CHECKPOINT_NAME), (60, "metrics.jsonl")])
def test_a_full_disk_ends_the_run_with_a_sentence_and_the_last_good_state(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint_minutes: int, name: str
) -> None:
    train_here(config, out=tmp_path / "whole")
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        out = disk / "run"
        at_step(monkeypatch, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            train_here(config, out=out)
        monkeypatch.undo()
        with open(out / "metrics.jsonl", "a") as file:  # what is appended to a part of a page needs no room
            padding = "x" * ((-file.tell() - 500) % mmap.PAGESIZE)
            file.write(json.dumps({"kind": "start", "step": 0, "padding": padding}) + "\n")
        at_step(monkeypatch, 2, lambda: fill(disk))
        said = io.StringIO()
        resumed = dataclasses.replace(config, out=out, resume=True, checkpoint_minutes=checkpoint_minutes)
        with pytest.raises(STAdapterError, match=f"cannot write {out / name}: No space left on device; make room"):
            train(resumed, console=Console(file=said, width=300))
        step = read_checkpoint(out)[0].step
        assert step == (10 if checkpoint_minutes == 0 else 9)
        assert f"the state after step {step} is in {out}; --resume continues from there" in said.getvalue()
        monkeypatch.undo()
        (disk / "filler").unlink()
        train_here(resumed)
        assert weights(out) == weights(tmp_path / "whole")


def test_an_artefact_that_does_not_fit_on_the_disk_leaves_the_earlier_one(config: TrainConfig, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        out = disk / "run"
        train_here(config, out=out)
        before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
        artefact = load_artefact(out)
        fill(disk)
        with pytest.raises(ArtefactError, match="No space left on device; make room, or choose another folder"):
            save_artefact(out, artefact.model, artefact.clip_config, receipt={})
        assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == before


def test_a_limit_on_the_size_of_files_is_told_like_a_full_disk(run: Run) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, before[1]))
    try:
        code, said = run.here()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    assert "Traceback" not in said, said
    assert said.count("no room for views drawn ahead (File too large): every video is decoded in every epoch") == 1
    assert f"error: cannot write {run.out / CHECKPOINT_NAME}: File too large; make room" in said


def test_a_full_disk_under_the_temporary_folder_only_costs_time(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(config)
    for name, size in (("full", "4k"), ("small", "256k")):
        with mounted(tmp_path / name, "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as disk:
            monkeypatch.setattr(tempfile, "tempdir", str(disk))
            at_step(monkeypatch, 2, lambda disk=disk: fill(disk))  # type: ignore[misc]
            said = train_here(config, out=tmp_path / f"run-{name}")
            monkeypatch.undo()
        assert said.count("no room for views drawn ahead (No space left on device)") == 1
        assert weights(tmp_path / f"run-{name}") == weights(Path(config.out))


def test_curves_that_cannot_be_written_are_missed_in_one_sentence(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    Path(config.out).mkdir()
    (Path(config.out) / "tensorboard").write_text("in the way")
    sentence = "no more curves for TensorBoard: File exists; metrics.jsonl has them and the run continues"
    assert train_here(config).count(sentence) == 1
    load_artefact(config.out)


def test_a_read_only_folder_is_refused_and_one_that_becomes_so_ends_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        out = disk / "run"

        def remount(how: str) -> None:
            subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

        remount("ro")
        with pytest.raises(TrainingError, match=f"cannot write to {out}: Read-only file system; choose another --out"):
            train_here(config, out=out)
        remount("rw")
        cover = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(out)]
        at_step(monkeypatch, 3, lambda: subprocess.run(cover, check=True))
        with pytest.raises(ArtefactError, match=f"cannot write {out / CHECKPOINT_NAME}: Read-only file system"):
            train_here(config, out=out)
        monkeypatch.undo()
        subprocess.run(["umount", str(out)], check=True)
        assert read_checkpoint(out)[0].step == 2
        remount("ro")
        with pytest.raises(TrainingError, match=f"cannot write to {out}: Read-only file system"):
            train_here(config, out=out, resume=True)
        remount("rw")
        train_here(config, out=out, resume=True)
        load_artefact(out)


@contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of root, which no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(("mode", "inside"), [(0o555, ""), (0o555, "run"), (0o000, "run")])
def test_a_folder_that_may_not_be_written_is_refused_with_a_sentence(mode: int, inside: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        Path(parent).chmod(mode)
        out = Path(parent, inside)
        refused = pytest.raises(TrainingError, match=f"cannot (read|write to) {out}: Permission denied; choose another")
        try:
            with nobody(), refused, claimed(out, resume=False):
                pass
        finally:
            Path(parent).chmod(0o755)


@pytest.mark.parametrize(("name", "read"), [(SPEC_NAME, read_spec), (CHECKPOINT_NAME, read_checkpoint)])
def test_a_file_that_may_not_be_read_is_refused_with_that_reason(name: str, read: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        Path(folder, name).touch(mode=0o000)
        with nobody(), pytest.raises(ArtefactError, match=f"^cannot read {Path(folder, name)}: Permission denied$"):
            read(Path(folder))


def test_a_video_that_vanishes_is_named_and_the_run_goes_on(
    config: TrainConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = shutil.copytree(data, tmp_path / "own")
    at_step(monkeypatch, 4, (own / "left" / "left_01.mp4").unlink)
    said = train_here(config, data=own, view_store_megabytes=0)
    assert said.count("skipped left/left_01.mp4: ") == 1
    assert list(load_artefact(config.out).receipt["unreadable"]) == ["left/left_01.mp4"]


def test_data_that_vanishes_ends_the_run_and_it_goes_on_when_the_data_are_back(
    config: TrainConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, view_store_megabytes=0)
    train_here(config, out=tmp_path / "whole")
    own = shutil.copytree(data, tmp_path / "own")
    at_step(monkeypatch, 9, lambda: own.rename(tmp_path / "gone"))
    with pytest.raises(TrainingError, match=f"{own} no longer exists; restore the data, then resume"):
        train_here(config, data=own)
    monkeypatch.undo()
    (tmp_path / "gone").rename(own)
    train_here(config, data=own, resume=True)
    assert weights(Path(config.out)) == weights(tmp_path / "whole")


def test_ctrl_c_in_validation_leaves_a_good_artefact_and_resume_only_validates(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"val_data": data, "epochs": 1}
    evaluation = sys.modules["stadapter.evaluation"]  # the package has the function
    classify = evaluation.scores_in_orders

    def interrupt(*given: Any, **named: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return classify(*given, **named)

    monkeypatch.setattr(evaluation, "scores_in_orders", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        code, said = run.here(**flags)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    assert code == 130
    assert "Traceback" not in said, said
    assert f"trained, but not validated: {run.out} can be used as it is; to validate it, resume" in said
    assert load_artefact(run.out).receipt["metrics"] == {}
    trained = weights(run.out)
    code, said = run.here("--resume", **flags)
    assert code == 0, said
    assert f"resuming after step {STEPS_PER_EPOCH}" in said
    assert weights(run.out) == trained
    assert "top1" in load_artefact(run.out).receipt["metrics"]
    assert len(run.records("train")) == 1
    assert len(run.records("validation")) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_asked_to_stop_saves_the_step_it_is_in(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    at_step(monkeypatch, 5, lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # below nohup, SIGHUP is ignored, and a run leaves it so
    try:
        with pytest.raises(KeyboardInterrupt):
            train_here(config, checkpoint_minutes=60)
    finally:
        signal.signal(number, before)
    assert read_checkpoint(Path(config.out))[0].step == 5


def test_what_a_resumed_run_does_again_is_recorded_once(
    config: TrainConfig, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise KeyError("a defect")

    for step, act in ((9, lambda: os.kill(os.getpid(), signal.SIGTERM)), (6, crash)):  # at step 9, then at 15
        at_step(monkeypatch, step, act)
        with pytest.raises((KeyboardInterrupt, KeyError)):
            train_here(config, checkpoint_minutes=60, resume=run.steps() > 0)
        monkeypatch.undo()
    assert (run.steps(), [record["step"] for record in run.records("train")]) == (9, [10])
    train_here(config, resume=True)
    assert [record["step"] for record in run.records("train")] == [10, 20, 30, 40, 48]


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_good_state(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    calls = 0

    def interrupt(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:  # the checkpoint of this step is written, but has not got its name yet
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        replace(source, target)

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_here(config)
    assert read_checkpoint(Path(config.out))[0].step == 3
    assert {path.name for path in Path(config.out).iterdir()} - {"tensorboard"} == {CHECKPOINT_NAME, "metrics.jsonl"}


def test_a_run_outlives_the_terminal_it_writes_to(run: Run) -> None:
    process = run.start()
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=180) in (0, BROKEN_PIPE)
    assert not (run.out / CHECKPOINT_NAME).exists()
    load_artefact(run.out)
