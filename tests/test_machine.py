"""What a machine offers, and what its errors mean."""

import multiprocessing
import os

import pytest
import torch

from stadapter import machine
from stadapter.errors import SettingsError, TrainingError
from stadapter.machine import (
    choose_device,
    choose_precision,
    copies_asynchronously,
    default_workers,
    describe_device,
    precision_name,
    takes_turns,
)
from stadapter.memory import readable_memory_errors


def test_out_of_memory_names_the_settings_that_help() -> None:
    with pytest.raises(TrainingError, match=r"lower batch_size .*num_frames or size"), readable_memory_errors():
        torch.empty(2**55, dtype=torch.float32)
    from_worker = "Caught RuntimeError in DataLoader worker process 0.\nTraceback …\nError: can't allocate memory: 9 B"
    with pytest.raises(TrainingError, match=r"out of memory \(Error: can't allocate"), readable_memory_errors():
        raise RuntimeError(from_worker)
    with pytest.raises(RuntimeError, match="something else"), readable_memory_errors():
        raise RuntimeError("something else")


@pytest.mark.parametrize("name", ["tpu", "meta", "cpu:3", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="expected auto, cpu"):
        choose_device(name)


def test_the_cpu_is_always_there() -> None:
    assert choose_device("cpu").type == "cpu"
    assert str(os.cpu_count()) in describe_device(torch.device("cpu"))


def test_fp32_means_fp32_and_bf16_means_bf16() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("fp32", cpu) is None
    assert choose_precision("bf16", cpu) is torch.bfloat16
    assert choose_precision("auto", cpu) in (None, torch.bfloat16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_precision_is_called_in_receipts_what_it_is_called_as_a_flag(precision: str) -> None:
    assert precision_name(choose_precision(precision, torch.device("cpu"))) == precision


def test_there_is_at_least_one_worker_however_many_processes_share_the_machine() -> None:
    assert default_workers(10_000) == 1
    assert 1 <= default_workers() <= 8


def test_there_is_no_worker_in_a_process_that_may_start_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert default_workers() == default_workers(device_type="cuda") == 0


@pytest.mark.parametrize(
    ("cores", "threads", "num_processes", "here", "on_cpu", "on_gpu"),
    [
        (1, 1, 1, None, 1, 1),
        (2, 1, 1, None, 1, 1),
        (2, 2, 1, None, 2, 1),  # turns are taken
        (4, 2, 1, None, 2, 3),
        (4, 4, 1, None, 4, 3),
        (16, 8, 1, None, 8, 15),
        (64, 64, 1, None, 8, 16),
        (64, 4, 8, None, 4, 7),
        (64, 8, 8, None, 8, 7),
        (64, 4, 64, "8", 4, 7),  # eight machines
        (64, 32, 1, "", 8, 16),
    ],
)
def test_decoding_processes_follow_the_cores_of_this_machine(
    cores: int,
    threads: int,
    num_processes: int,
    here: str | None,
    on_cpu: int,
    on_gpu: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "count_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert default_workers(num_processes) == on_cpu
    assert default_workers(num_processes, device_type="cuda") == on_gpu
    has_all_cores = threads * (8 if here == "8" else num_processes) >= cores
    assert takes_turns(num_processes) == has_all_cores
    assert not takes_turns(num_processes, device_type="cuda")


def test_copies_go_on_beside_work_on_cuda_alone() -> None:
    assert [name for name in ("cpu", "cuda", "cuda:1", "mps") if copies_asynchronously(torch.device(name))] == [
        "cuda",
        "cuda:1",
    ]
