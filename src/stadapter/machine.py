"""What a machine offers to a run: devices, precision, processes; and what its memory errors mean."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stadapter.errors import SettingsError, TrainingError

MAX_WORKERS = 8


def choose_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a GPU where there is one, else the CPU.

    Raises:
        SettingsError: no such device, or not on this machine.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta" or (device.type == "cpu" and device.index):
            raise RuntimeError("nothing is computed there")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise SettingsError(
            f"device {name}: expected auto, cpu, cuda, cuda:1 or mps, if this machine has it ({reason})"
        ) from error
    return device


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to compute in beside fp32, for "auto", "bf16" or "fp32"; None is fp32 alone.

    Raises:
        SettingsError: bf16 was asked for on a device that has no arithmetic for it.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        supported = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if precision == "bf16" and not supported and device.type != "cpu":
        raise SettingsError(f"precision bf16: {device} does not compute in it; use fp32 or auto")
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and supported) else None


def default_workers(num_processes: int = 1) -> int:
    """Decoding processes for each of `num_processes` on this machine: half its cores in all, at most 8 each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // 2 // num_processes))


def describe_device(device: torch.device) -> str:
    """The device as a person would name it, with the cores or the model of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"


@contextmanager
def readable_memory_errors() -> Iterator[None]:
    """Turn an allocator's error into advice.

    Raises:
        TrainingError: memory did not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)):
            raise
        found = str(error).split("\n", 1)[0] or type(error).__name__
        raise TrainingError(
            f"out of memory ({found}); lower --batch-size (and raise --accumulation-steps by as much), --num-frames "
            "or --size, or use --precision bf16"
        ) from error
