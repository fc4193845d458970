"""What a machine offers, and what its errors mean."""

import os

import pytest
import torch

from stadapter.errors import SettingsError, TrainingError
from stadapter.machine import choose_device, choose_precision, default_workers, describe_device, readable_memory_errors


def test_out_of_memory_names_the_flags_that_help() -> None:
    with pytest.raises(TrainingError, match=r"--batch-size.*--num-frames.*--size"), readable_memory_errors():
        torch.empty(2**55, dtype=torch.float32)
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


def test_there_is_at_least_one_worker_however_many_processes_share_the_machine() -> None:
    assert default_workers(10_000) == 1
    assert 1 <= default_workers() <= 8
