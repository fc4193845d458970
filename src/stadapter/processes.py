"""Signals to a run, and the processes that decode for it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch


def quiet_worker(worker: int) -> None:
    """Set up a decoding process: one thread, low priority; signals are left to the training process."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(19)  # it reads ahead while the training threads wait; beside them it would hold up both


def stop_workers(loader: Any) -> None:
    """End the decoding processes of a loader now: as they ignore SIGTERM, Python would wait for them at its exit."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM until the step is done; the yielded function says whether one came."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:  # asked twice: at once
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
