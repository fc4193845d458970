"""The processes that decode videos for a run."""

import errno
import multiprocessing
import multiprocessing.queues
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

from stadapter.allocator import keep_no_freed_memory
from stadapter.errors import TrainingError
from stadapter.signals import handled_by, stop_signals

_ADVICE: dict[int, str] = {
    signal.SIGKILL: "most likely the system ran out of memory: use fewer --num-workers, a smaller --batch-size or "
    "fewer --num-frames, or end other programs",
    signal.SIGBUS: "most likely shared memory is full: use --num-workers 0, or give the container more of it "
    "(docker run --shm-size=1g)",
    signal.SIGSEGV: "most likely a damaged video: --num-workers 0 decodes in the training process and shows "
    "what went before",
}
"""The signal that ended a decoding process, and what to do."""


_TOO_MANY_FILES = os.strerror(errno.EMFILE)
_CHILD_SIGNALS = [signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []
"""What tells that a process that this one started has ended."""
_POLL_SECONDS = 0.002
_STOP_SECONDS = 5.0
"""How long a decoding process may take to end when it is told to; as long as torch gives it."""
_MAX_SOCKET_PATH_BYTES = 103
"""On macOS; 107 on Linux."""
_SOCKET_NAME_BYTES = len("/pymp-01234567/listener-01234567")
Item = TypeVar("Item")


class Turns:
    """Lets a process that computes on all cores and the processes that decode for it take turns.

    Side by side they would hold each other up: whenever one of the threads that compute together waits for a core, the
    others wait for it. On two cores a training step took three times as long beside one decoding process (docs/log.md).
    A decoding process asks before each video.
    """

    def __init__(self, *, are_taken: bool) -> None:
        """Where turns are not taken, as decoding has cores of its own, nobody waits."""
        self._are_taken = are_taken
        self._decodes = torch.ones((), dtype=torch.int64)
        self._decodes.share_memory_()  # type: ignore[no-untyped-call]

    def over(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The batches; there is decoding while the next one is waited for, and computing while it is used."""
        for batch in batches:
            self._decodes.fill_(not self._are_taken)
            yield batch
            self._decodes.fill_(1)

    def end(self) -> None:
        """Keep decoding processes waiting no longer, also where the batches were left before their end."""
        self._decodes.fill_(1)

    def wait(self) -> None:
        """In a decoding process: wait until it may decode, or until the one that it decodes for has ended."""
        parent = multiprocessing.parent_process()
        while not self._decodes and parent is not None and _is_alive(parent):
            # Looked at now and then: a batch that lies ready shall not wake all who wait for the moment it takes.
            time.sleep(_POLL_SECONDS)


def _is_alive(parent: BaseProcess) -> bool:
    """Whether the process that started this one is there, as `multiprocessing.parent_process()` tells it."""
    if multiprocessing.get_start_method(allow_none=True) == "forkserver":
        return parent.is_alive()
    # What `is_alive` looks at stays open in other forked processes, which would end one after another.
    return os.getppid() == parent.pid


def quiet_worker(worker: int) -> None:
    """Set up a decoding process: one thread, no memory kept; signals are left to the process it decodes for."""
    torch.set_num_threads(1)
    keep_no_freed_memory()
    _keep_socket_paths_short()
    # Python's hook for a batch that cannot be sent; the class is torch's queues' too, and this process has no other.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_at_a_lost_batch)  # type: ignore[attr-defined]
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


def _end_at_a_lost_batch(error: Exception, batch: object) -> None:
    """End this process, as a batch cannot be sent: Python would drop it, and who waits for it would wait for ever."""
    traceback.print_exception(error)
    os._exit(1)


def _keep_socket_paths_short() -> None:
    """Hand batches on through sockets in another temporary folder where the paths of this one are too long for them."""
    folders = [folder for folder in ("/tmp", "/var/tmp") if os.access(folder, os.W_OK | os.X_OK)]
    if folders and len(os.fsencode(tempfile.gettempdir())) + _SOCKET_NAME_BYTES > _MAX_SOCKET_PATH_BYTES:
        tempfile.tempdir = folders[0]


def yielding_worker(worker: int) -> None:
    """Set up a decoding process of a training run: a quiet one of low priority."""
    quiet_worker(worker)
    if hasattr(os, "nice"):
        # It reads ahead while the training threads wait; beside them it would hold up both. At 19 another program's
        # threads would leave it next to nothing.
        os.nice(10)


@contextmanager
def workers_of(loader: Any, turns: Turns) -> Iterator[None]:
    """Turn the death of a decoding process in the block into a sentence, and end them all after the block.

    Args:
        loader: a DataLoader whose workers are persistent, where it has any.
        turns: what they may be waiting for.

    Raises:
        TrainingError: a decoding process ended by itself.
    """
    others, codes = multiprocessing.active_children(), None
    try:
        try:
            yield
        finally:
            turns.end()
            codes = _stop_workers(loader, others)
    except (RuntimeError, OSError, EOFError) as error:
        # torch tells of a death by a RuntimeError wherever this process happens to be, be it on the way here; what is
        # just being fetched from the dead one ends in another error.
        if codes is None:
            turns.end()
            codes = _stop_workers(loader, others)
        said = str(error)
        if "DataLoader worker" in said and "shared memory" in said:
            raise TrainingError(f"a process that decodes videos failed; {_ADVICE[signal.SIGBUS]}") from error
        if loader.num_workers and _TOO_MANY_FILES in said:
            raise TrainingError(
                "too many open files to get batches from the processes that decode videos: raise the limit "
                "(ulimit -n 4096), or use fewer --num-workers"
            ) from error
        if "DataLoader worker (" in said or (any(codes) and _may_be_of_a_death(error)):
            raise TrainingError(_describe_death(codes)) from error
        raise


def _may_be_of_a_death(error: Exception) -> bool:
    """Whether an error is one that fetching from a dead process may end in."""
    return not isinstance(error, RuntimeError) or "Pin memory thread" in str(error)


def _stop_workers(loader: Any, others: Sequence[BaseProcess]) -> list[int]:
    """End the decoding processes of a loader now: as they ignore SIGTERM, Python would wait for them at its exit.

    Args:
        loader: a DataLoader.
        others: child processes that are not its own.

    Returns:
        The exit codes of those that had ended by themselves; below zero the signal that ended one.
    """
    iterator = getattr(loader, "_iterator", None)
    workers = getattr(iterator, "_workers", ())
    try:
        if iterator is not None:
            iterator._shutdown_workers()
    except RuntimeError:  # torch's, that one is dead
        until = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
    codes = [worker.exitcode for worker in workers if not worker.is_alive()]
    # What is left waits for something that a dead one held …
    left = [worker for worker in workers if worker.is_alive()]
    if iterator is None and loader.num_workers:  # … or was started for an iterator that did not come into being.
        left = [process for process in multiprocessing.active_children() if process not in others]
    with handled_by(signal.SIG_DFL, _CHILD_SIGNALS):  # torch would tell of these deaths too
        for process in left:
            process.kill()
        for process in left:
            process.join()
    return codes


def _describe_death(codes: Iterable[int]) -> str:
    """What to tell when a decoding process has ended: how, most likely why, and what to do."""
    died = [code for code in codes if code]
    if number := next((-code for code in died if code < 0), None):
        how = f"was ended by a signal ({signal.strsignal(number)})"
        return f"a process that decodes videos {how}; {_ADVICE.get(number, _ADVICE[signal.SIGKILL])}"
    how = f" with exit code {died[0]}" if died else ""
    return (
        f"a process that decodes videos ended by itself{how}; what it said, if anything, stands above: "
        "--num-workers 0 decodes in the training process"
    )
