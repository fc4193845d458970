"""The processor cores of this process: how many it may use, and as many threads for torch."""

import math
import os
from contextlib import suppress
from pathlib import Path

_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def count_cores() -> int:
    """The processor cores that this process may use: those it may run on, or fewer if a container's limit is lower."""
    return min([_count_visible(), *_limits_of_container(_CONTROL_GROUPS)])


def limit_threads() -> None:
    """Let torch compute on no more threads than a container's limit allows, unless the environment says how many.

    torch sees the cores of the whole machine; threads beyond the limit only wait for each other (docs/log.md). This is
    a choice for a whole process, made before torch is imported: commands make it and the library does not.
    """
    if count_cores() < _count_visible() and not any(name in os.environ for name in _THREAD_SETTINGS):
        os.environ["OMP_NUM_THREADS"] = str(count_cores())


def _count_visible() -> int:
    """The cores that this process may run on, whatever share of their time it gets."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limits_of_container(folder: Path) -> list[int]:
    """A container's limit on processor time, in cores, rounded up, under either version of Linux control groups."""
    limits = []
    for names in (("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"), ("cpu.max",)):
        with suppress(OSError, ValueError):  # not there, or "max": no limit
            quota, period = (int(word) for name in names for word in (folder / name).read_text("ascii").split())
            if quota > 0:  # version 1 has -1 for no limit
                limits.append(math.ceil(quota / period))
    return limits
