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
from stadapter.errors import SettingsError, TrainingError
from stadapter.signals import handled_by, stop_signals

_ADVICE: dict[int, str] = {
    signal.SIGKILL: "most likely the system ran out of memory: use fewer --num-workers, a smaller --batch-size or "
    "fewer --num-frames, or close other programs",
    signal.SIGBUS: "most likely shared memory is full: use --num-workers 0, or give the container more of it "
    "(docker run --shm-size=1g)",
    signal.SIGSEGV: "most likely a damaged video: --num-workers 0 decodes in the training process and shows "
    "what happened before",
}
"""From the signal that ended a decoding process to what to do about it."""
_MAIN_ADVICE = (
    'put what a script does under if __name__ == "__main__", because the processes that a training starts import it'
)
"""Where processes are not forked: on macOS and Windows, and from Python 3.14 also on Linux."""
_TOO_MANY_FILES = os.strerror(errno.EMFILE)
_CHILD_SIGNALS = [signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []
"""The signals that say that a process started by this one has ended."""
_POLL_SECONDS = 0.002
_STOP_SECONDS = 5.0
"""How long a decoding process may take to end when told to; the same as in torch."""
_MAX_SOCKET_PATH_BYTES = 103
"""The limit on macOS; it is 107 on Linux."""
_SOCKET_NAME_BYTES = len("/pymp-01234567/listener-01234567")
Item = TypeVar("Item")


class Turns:
    """Lets a process that computes on all cores take turns with the processes that decode for it.

    Side by side they would hold each other up: whenever one of the threads that compute together waits for a core, the
    others wait for it. On two cores a training step took three times as long next to one decoding process
    (docs/log.md). A decoding process asks before each video.
    """

    def __init__(self, *, are_taken: bool) -> None:
        """If turns are not taken, because decoding has its own cores, nobody waits."""
        self._are_taken = are_taken
        self._decodes = torch.ones((), dtype=torch.int64)
        self._decodes.share_memory_()  # type: ignore[no-untyped-call]

    def over(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the batches; decoding may run while we wait for the next batch, but not while a batch is in use."""
        for batch in batches:
            self._decodes.fill_(not self._are_taken)
            yield batch
            self._decodes.fill_(1)

    def end(self) -> None:
        """Let decoding processes stop waiting, even if the batches were abandoned before their end."""
        self._decodes.fill_(1)

    def wait(self) -> None:
        """In a decoding process: wait until it may decode, or until the process that it decodes for has ended."""
        parent = multiprocessing.parent_process()
        while not self._decodes and parent is not None and _is_alive(parent):
            # Polled: a batch that is already waiting should not wake all waiting processes for the moment it takes.
            time.sleep(_POLL_SECONDS)


def _is_alive(parent: BaseProcess) -> bool:
    """Whether the process that started this one, from `multiprocessing.parent_process()`, is still there."""
    if multiprocessing.get_start_method(allow_none=True) == "forkserver":
        return parent.is_alive()
    # What `is_alive` checks stays open in other forked processes, so they would only end one after another.
    return os.getppid() == parent.pid


def quiet_worker(worker: int) -> None:
    """Set up a decoding process: one thread, no memory kept; signals are left to the process it decodes for."""
    torch.set_num_threads(1)
    keep_no_freed_memory()
    _keep_socket_paths_short()
    # Python's hook for a batch that cannot be sent; torch's queues share the class, and this process has no others.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_at_a_lost_batch)  # type: ignore[attr-defined]
    for number in stop_signals():
        signal.signal(number, signal.SIG_IGN)


def _end_at_a_lost_batch(error: Exception, batch: object) -> None:
    """End this process when a batch cannot be sent: Python would drop it, and its receiver would wait for ever."""
    traceback.print_exception(error)
    os._exit(1)


def _keep_socket_paths_short() -> None:
    """Send batches through sockets in another temporary folder if paths in this one are too long for sockets."""
    folders = [folder for folder in ("/tmp", "/var/tmp") if os.access(folder, os.W_OK | os.X_OK)]
    if folders and len(os.fsencode(tempfile.gettempdir())) + _SOCKET_NAME_BYTES > _MAX_SOCKET_PATH_BYTES:
        tempfile.tempdir = folders[0]


def yielding_worker(worker: int) -> None:
    """Set up a decoding process of a training run: a quiet one with low priority."""
    quiet_worker(worker)
    if hasattr(os, "nice"):
        # It reads ahead while the training threads wait; running beside them it would hold up both. At 19, another
        # program's threads would leave it next to nothing.
        os.nice(10)


@contextmanager
def workers_of(loader: Any, turns: Turns) -> Iterator[None]:
    """Turn the death of a decoding process in the block into a readable error; end them all after the block.

    Args:
        loader: a DataLoader whose workers, if it has any, are persistent.
        turns: what the workers may be waiting for.

    Raises:
        SettingsError: this process may not have workers.
        TrainingError: a decoding process ended unexpectedly.
    """
    if loader.num_workers and multiprocessing.current_process().daemon:
        raise SettingsError(
            f"num_workers {loader.num_workers}: this process is a daemon, such as one of a multiprocessing.Pool, and "
            "may start no others; expected 0"
        )
    others, codes = multiprocessing.active_children(), None
    try:
        try:
            yield
        finally:
            turns.end()
            codes = _stop_workers(loader, others)
    except (RuntimeError, OSError, EOFError) as error:
        # torch reports a death by a RuntimeError wherever this process happens to be, even on the way here; fetching
        # from the dead process at that moment ends in another error.
        if codes is None:
            turns.end()
            codes = _stop_workers(loader, others)
        said = str(error)
        if "DataLoader worker" in said and "shared memory" in said:
            raise TrainingError(f"a process that decodes videos failed; {_ADVICE[signal.SIGBUS]}") from error
        if loader.num_workers and _TOO_MANY_FILES in said:
            raise TrainingError(
                "too many open files for getting batches from the processes that decode videos: raise the limit "
                "(ulimit -n 4096), or use fewer --num-workers"
            ) from error
        if "DataLoader worker (" in said or (any(codes) and _may_be_of_a_death(error)):
            raise TrainingError(_describe_death(codes)) from error
        raise


def _may_be_of_a_death(error: Exception) -> bool:
    """Whether an error is one that fetching from a dead process may raise."""
    return not isinstance(error, RuntimeError) or "Pin memory thread" in str(error)


def _stop_workers(loader: Any, others: Sequence[BaseProcess]) -> list[int]:
    """End the decoding processes of a loader now: as they ignore SIGTERM, Python would wait for them on exit.

    Args:
        loader: a DataLoader.
        others: child processes that are not the loader's.

    Returns:
        The exit codes of those that had already ended; a negative one is the signal that ended the process.
    """
    iterator = getattr(loader, "_iterator", None)
    workers = getattr(iterator, "_workers", ())
    try:
        if iterator is not None:
            iterator._shutdown_workers()
    except RuntimeError:  # torch's, saying that one is dead
        until = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
    codes = [worker.exitcode for worker in workers if not worker.is_alive()]
    # Those left are waiting for something that a dead one held …
    left = [worker for worker in workers if worker.is_alive()]
    if iterator is None and loader.num_workers:  # … or were started for an iterator that was never created.
        left = [process for process in multiprocessing.active_children() if process not in others]
    with handled_by(signal.SIG_DFL, _CHILD_SIGNALS):  # torch would report these deaths too
        for process in left:
            process.kill()
        for process in left:
            process.join()
    return codes


def refuse_in_started_process() -> None:
    """Refuse a training in a process that one has started and that is only importing the script again.

    Raises:
        SettingsError: this is such a process.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # what multiprocessing itself asks
        raise SettingsError(f"a second training, by a process that was started to help the first: {_MAIN_ADVICE}")


def _describe_death(codes: Iterable[int]) -> str:
    """The message about a decoding process that has ended: how, the most likely reason, and what to do."""
    died = [code for code in codes if code]
    if number := next((-code for code in died if code < 0), None):
        how = f"was ended by a signal ({signal.strsignal(number)})"
        return f"a process that decodes videos {how}; {_ADVICE.get(number, _ADVICE[signal.SIGKILL])}"
    how = f" with exit code {died[0]}" if died else ""
    advice = "--num-workers 0 decodes in the training process"
    if multiprocessing.get_start_method() != "fork":
        advice = f"{advice}; {_MAIN_ADVICE}"
    return f"a process that decodes videos ended unexpectedly{how}; its output, if any, is above: {advice}"
