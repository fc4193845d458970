"""Memory of a process and its device: how much is available, the peak so far, and what memory errors mean."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from stadapter.allocator import hand_back_freed_memory
from stadapter.errors import TrainingError


def available_memory_bytes(device: torch.device) -> int | None:
    """How much more memory a process could take on a device now; None if the system does not say.

    On a CPU, what Linux calls available, but no more than a container's limit leaves; on macOS, half of all memory.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return min([free, *_left_by_container(Path("/sys/fs/cgroup"))])
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return None


def forget_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory_bytes`. On a CPU this works only on Linux; elsewhere the peak remains the all-time one."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    hand_back_freed_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_bytes(device: torch.device) -> int:
    """The peak memory of this process so far: on a GPU what was allocated there, otherwise what was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    gc.collect()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would report the parent's peak if that was higher: it survives exec
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextmanager
def readable_memory_errors() -> Iterator[None]:
    """Turn an allocator's error into one with advice.

    Raises:
        TrainingError: there was not enough memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        told = next((line for line in lines if "allocate memory" in line), "")  # from a decoding process, the last line
        if not told and not isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        found = told or lines[0]
        raise TrainingError(
            f"out of memory ({found}); use gradient_checkpointing, lower batch_size (raising accumulation_steps to "
            "match), num_frames or size, or use precision bf16"
        ) from error


def _left_by_container(folder: Path) -> list[int]:
    """What a container's memory limit leaves, in bytes, under either version of Linux control groups."""
    left = []
    first, second = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"), ("memory.max", "memory.current")
    for limit, used in (first, second):
        with suppress(OSError, ValueError):  # not there, or "max": no limit
            most = int((folder / limit).read_text(encoding="ascii"))
            taken = int((folder / used).read_text(encoding="ascii"))
            left.append(max(0, most - taken + _file_cache(folder / limit)))
    return left


def _file_cache(limit: Path) -> int:
    """How much of a container's memory is file cache, which is freed when needed; bytes."""
    lines = limit.with_name("memory.stat").read_text(encoding="ascii").splitlines()
    counts = dict(line.split() for line in lines)
    return int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))
