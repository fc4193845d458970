"""What a machine offers to a run: devices, precision, processes."""

import multiprocessing
import os
import textwrap

import torch

from stadapter.cores import count_cores
from stadapter.errors import SettingsError
from stadapter.wording import counted

MAX_WORKERS = 8
MAX_WORKERS_FOR_GPU = 16
_MAX_REASON = 100


def choose_device(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one, otherwise the CPU.

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
        # torch's message may fill a page; for a device name that it does not know it lists dozens that it does.
        told = textwrap.shorten(str(error), _MAX_REASON, placeholder=" …")
        reason = f" ({told})" if "device type at start" not in str(error) else ""
        raise SettingsError(
            f"device {name}: expected auto, cpu, cuda, cuda:1 or mps, if this machine has it{reason}"
        ) from error
    return device


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to compute in besides fp32, for "auto", "bf16" or "fp32"; None means only fp32.

    Raises:
        SettingsError: bf16 was requested on a device that has no arithmetic for it.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        supported = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if precision == "bf16" and not supported and device.type != "cpu":
        raise SettingsError(f"precision bf16: {device} cannot compute in it; use fp32 or auto")
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and supported) else None


def precision_name(dtype: torch.dtype | None) -> str:
    """The result of `choose_precision` as it is named in flags and receipts: fp32 or bf16."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def default_workers(num_processes: int = 1, *, device_type: str = "cpu") -> int:
    """Decoding processes for each of `num_processes` that train together: at least 1, at most 8, or 16 with a GPU.

    The processes that run on this machine share its cores. If the model computes on cores too, all cores of a share
    decode if the two take turns, or half of them if not; if it computes on a GPU, all but the core that feeds the GPU.
    0 in a process that may start none, such as one of a `multiprocessing.Pool`.
    """
    if multiprocessing.current_process().daemon:
        return 0
    cores = share_of_cores(num_processes)
    if device_type != "cpu":
        return max(1, min(MAX_WORKERS_FOR_GPU, cores - 1))
    return max(1, min(MAX_WORKERS, cores if takes_turns(num_processes, device_type=device_type) else cores // 2))


def takes_turns(num_processes: int = 1, *, device_type: str = "cpu") -> bool:
    """Whether the model computes on all cores of its share, leaving none for decoding."""
    return device_type == "cpu" and torch.get_num_threads() >= share_of_cores(num_processes)


def share_of_cores(num_processes: int) -> int:
    """The cores for each of `num_processes` that train together."""
    return max(1, count_cores() // processes_here(num_processes))


def processes_here(num_processes: int) -> int:
    """How many of the processes that train together run on this machine: as torchrun or accelerate says, or all."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(num_processes, int(told)) if told.isdecimal() and int(told) else num_processes


def random_devices(device: torch.device) -> list[torch.device]:
    """The non-CPU devices whose random generators are used when computing on `device`, for `torch.random.fork_rng`."""
    return [device] if device.type == "cuda" else []


def copies_asynchronously(device: torch.device) -> bool:
    """Whether copies to a device can run while it computes: from pinned memory to a CUDA device."""
    return device.type == "cuda"


def describe_device(device: torch.device) -> str:
    """The device as a person would name it, with the cores or the model of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({counted(os.cpu_count() or 1, 'core')}, {counted(torch.get_num_threads(), 'thread')})"
