"""Decoding and computing in turns, in real decoding processes."""

import errno
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stadapter.errors import SettingsError, TrainingError
from stadapter.processes import Turns, quiet_worker, refuse_in_started_process, workers_of

NUM_WORKERS, NUM_ITEMS = 2, 240


class Counting(Dataset[int]):
    """Counts what was read, in memory that all processes share."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.num_read: Tensor = torch.zeros(NUM_WORKERS + 1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return NUM_ITEMS

    def __getitem__(self, index: int) -> int:
        self.turns.wait()
        time.sleep(0.002)
        info = torch.utils.data.get_worker_info()
        self.num_read[info.id if info is not None else NUM_WORKERS] += 1
        return index


def make_loader(turns: Turns, *, num_workers: int = NUM_WORKERS) -> "DataLoader[Tensor]":
    return DataLoader(
        Counting(turns),
        batch_size=4,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=20 if num_workers else None,
        worker_init_fn=quiet_worker,
    )


def num_read(loader: "DataLoader[Tensor]") -> int:
    dataset = loader.dataset
    assert isinstance(dataset, Counting)
    return int(dataset.num_read.sum())


@pytest.fixture(params=[True, False], ids=["in turns", "side by side"])
def turns(request: pytest.FixtureRequest) -> Turns:
    return Turns(are_taken=request.param)


def test_decoding_rests_while_a_batch_is_used_where_turns_are_taken(turns: Turns) -> None:
    loader, seen = make_loader(turns), []
    with workers_of(loader, turns):
        for number, batch in enumerate(turns.over(loader)):
            seen += batch.tolist()
            if number == 2:
                before = standing_still(loader)
    assert seen == list(range(NUM_ITEMS))
    assert num_read(loader) == NUM_ITEMS
    # Side by side they read ahead as far as they may: 2 processes, 20 batches of 4 each.
    assert before < 160 if turns._are_taken else before >= 160


def standing_still(loader: "DataLoader[Tensor]") -> int:
    """How much was read when no more is."""
    before = -1
    while before < (before := num_read(loader)):
        time.sleep(0.5)
    return before


def test_batches_arrive_where_the_path_of_the_temporary_folder_is_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    turns = Turns(are_taken=False)
    loader = make_loader(turns)
    loader.timeout = 20
    with workers_of(loader, turns):
        assert sum(len(batch) for batch in turns.over(loader)) == NUM_ITEMS


def leave_early(loader: "DataLoader[Tensor]", turns: Turns, error: Exception) -> None:
    with workers_of(loader, turns):
        for _ in turns.over(loader):
            raise error


def test_a_signal_that_asks_a_run_to_stop_ends_no_decoding_process(turns: Turns) -> None:
    loader = make_loader(turns)
    with workers_of(loader, turns):
        for num_batches, _ in enumerate(turns.over(loader), start=1):
            if num_batches == NUM_WORKERS:  # one of each, so that all are set up
                for worker in loader._iterator._workers:  # type: ignore[union-attr]  # with workers it is no other kind
                    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                        os.kill(worker.pid, number)
    assert num_read(loader) == NUM_ITEMS


def test_batches_that_are_left_early_leave_nobody_waiting(turns: Turns) -> None:
    loader = make_loader(turns)
    started = time.monotonic()
    with pytest.raises(KeyError):
        leave_early(loader, turns, KeyError())
    assert time.monotonic() - started < 4  # torch waits five seconds for a process that does not end
    iterator = loader._iterator
    assert iterator is not None
    assert not any(worker.is_alive() for worker in iterator._workers)  # type: ignore[attr-defined]


@pytest.mark.parametrize("milliseconds", [0, 0.1, 0.3, 1, 5])
@pytest.mark.parametrize("error", [ConnectionResetError, EOFError], ids=["reset", "eof"])
def test_a_death_is_told_however_it_shows_first(error: type[Exception], milliseconds: float) -> None:
    turns = Turns(are_taken=True)
    loader = make_loader(turns)

    def break_in_the_middle() -> None:
        with workers_of(loader, turns):
            for _ in turns.over(loader):
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
                until = time.perf_counter() + milliseconds / 1000
                while time.perf_counter() < until:
                    pass
                raise error  # as where a batch is being fetched from the one that died

    with pytest.raises(TrainingError, match=r"was ended by a signal \(Killed\)"):
        break_in_the_middle()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [OSError, EOFError, RuntimeError])
def test_other_errors_stay_what_they_are(error: type[Exception]) -> None:
    turns = Turns(are_taken=True)
    loader = make_loader(turns)
    with pytest.raises(error, match="as it was"):
        leave_early(loader, turns, error("as it was"))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), RuntimeError("Too many open files. Communication with the …")],
    ids=["system", "torch"],
)
def test_too_many_open_files_are_told_with_what_to_do(error: Exception) -> None:
    turns = Turns(are_taken=True)
    with pytest.raises(TrainingError, match="ulimit -n"):
        leave_early(make_loader(turns), turns, error)


def test_workers_are_refused_in_a_process_that_may_start_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    turns = Turns(are_taken=False)
    with pytest.raises(SettingsError, match=f"num_workers {NUM_WORKERS}: this process is a daemon"):
        leave_early(make_loader(turns), turns, KeyError())


def test_a_process_that_imports_the_script_again_trains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_in_started_process()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SettingsError, match='under if __name__ == "__main__"'):
        refuse_in_started_process()


class Unsendable:
    def __reduce__(self) -> str:
        raise ValueError("this cannot be sent")


def test_a_batch_that_cannot_be_sent_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    turns = Turns(are_taken=False)
    loader = make_loader(turns)
    loader.collate_fn, loader.timeout = lambda _: Unsendable(), 20
    with pytest.raises(TrainingError, match="ended unexpectedly with exit code 1; its output"):
        leave_early(loader, turns, KeyError())
    assert "ValueError: this cannot be sent" in capfd.readouterr().err


def test_processes_of_a_loader_that_does_not_come_into_being_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise OSError("no more threads")

    monkeypatch.setattr(torch.utils.data.dataloader._MultiProcessingDataLoaderIter, "_try_put_index", fail)
    turns = Turns(are_taken=True)
    with pytest.raises(OSError, match="no more threads"):
        leave_early(make_loader(turns), turns, KeyError())
    assert not multiprocessing.active_children()


def test_a_process_that_decodes_for_itself_never_waits() -> None:
    turns = Turns(are_taken=True)
    assert len(list(turns.over(make_loader(turns, num_workers=0)))) == NUM_ITEMS // 4
    turns._decodes.fill_(0)
    turns.wait()
