"""What a command does with the memory it frees, by the page faults that the system counts."""

import multiprocessing.queues
import os
import subprocess
import sys

import pytest

from stadapter import allocator, processes

IS_GLIBC = sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
needs_glibc = pytest.mark.skipif(not IS_GLIBC, reason="this system's C library is not glibc, whose malloc is set up")
MEBIBYTES, TURNS = 64, 8
PAGES_OF_A_TURN = MEBIBYTES * 2**20 // os.sysconf("SC_PAGE_SIZE")
PROGRAM = f"""
import resource, sys
import numpy as np
from stadapter.allocator import keep_freed_memory, keep_no_freed_memory
if sys.argv[1] != "hand back":
    keep_freed_memory()
if sys.argv[1] == "keep no more":
    keep_no_freed_memory()
counts = []
for _ in range({TURNS}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.empty({MEBIBYTES * 2**20}, dtype=np.uint8)
    block.fill(1)
    del block
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(counts[-1])
"""


def faults_of_the_last_turn(what: str, **environment: str) -> int:
    """Page faults of a process that for the eighth time takes 64 MiB, writes them and lets them go."""
    known = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    # numpy asks for huge pages, of which there may be none: without them the count is of plain pages.
    known |= {"NUMPY_MADVISE_HUGEPAGE": "0", **environment}
    return int(subprocess.run([sys.executable, "-c", PROGRAM, what], env=known, check=True, capture_output=True).stdout)


@needs_glibc
def test_memory_that_is_kept_is_not_asked_for_again() -> None:
    assert faults_of_the_last_turn("hand back") > PAGES_OF_A_TURN // 2  # what the system does otherwise
    assert faults_of_the_last_turn("keep") < PAGES_OF_A_TURN // 100
    assert faults_of_the_last_turn("keep no more") > PAGES_OF_A_TURN // 2


def test_decoding_processes_keep_none(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[None] = []
    for name in ("keep_no_freed_memory", "torch.set_num_threads"):
        monkeypatch.setattr(f"stadapter.processes.{name}", lambda *_: called.append(None))
    monkeypatch.setattr("stadapter.processes.signal.signal", lambda *_: None)
    queue = multiprocessing.queues.Queue
    monkeypatch.setattr(queue, "_on_queue_feeder_error", queue._on_queue_feeder_error)  # put back what it replaces
    processes.quiet_worker(0)
    assert len(called) == 2


@needs_glibc
@pytest.mark.parametrize("name", ["MALLOC_MMAP_MAX_", "GLIBC_TUNABLES"])
def test_who_has_set_up_malloc_has_the_last_word(name: str) -> None:
    value = {"MALLOC_MMAP_MAX_": "1000", "GLIBC_TUNABLES": "glibc.malloc.mmap_max=1000"}[name]
    assert faults_of_the_last_turn("keep", **{name: value}) > PAGES_OF_A_TURN // 2


@pytest.mark.parametrize(("verb", "keeps"), [("train", True), ("predict", True), ("check", False)])
def test_commands_that_compute_keep_their_memory(verb: str, keeps: bool) -> None:
    program = "import sys, stadapter.allocator as a; a.keep_freed_memory = lambda: print('kept')\n"
    program += "from stadapter.__main__ import main; main([sys.argv[1], '--help'])"
    result = subprocess.run([sys.executable, "-c", program, verb], check=True, capture_output=True, text=True)
    assert result.stdout.startswith("kept\n") == keeps


@needs_glibc
def test_memory_that_is_kept_can_be_handed_back() -> None:
    program = f"""
import torch
from stadapter.allocator import keep_freed_memory
from stadapter.memory import forget_peak_memory, peak_memory_bytes
keep_freed_memory()
cpu = torch.device("cpu")
blocks = [torch.ones(2**20) for _ in range({MEBIBYTES})]  # 4 MiB each
high = peak_memory_bytes(cpu)
del blocks
forget_peak_memory(cpu)
print(high - peak_memory_bytes(cpu))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    result = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    assert int(result.stdout) > 3 * MEBIBYTES * 2**20


@pytest.mark.parametrize("answer", [None, "", "musl", OSError("no such name")], ids=str)
def test_another_c_library_is_left_alone(answer: str | OSError | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def confstr(name: str) -> str | None:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(allocator.os, "confstr", confstr)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("its malloc was set up"))
    for change in (allocator.keep_freed_memory, allocator.keep_no_freed_memory, allocator.hand_back_freed_memory):
        change()
