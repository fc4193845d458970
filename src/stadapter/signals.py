"""How a run is asked to stop, and how it responds."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and the loss of the terminal end the block like Ctrl-C, with a KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handled_by(stop, stop_signals()):
        yield


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM until the step is done; the yielded function says whether one came."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:  # asked twice: stop at once
            raise KeyboardInterrupt
        received.append(number)

    with handled_by(note, stop_signals()):
        yield lambda: bool(received)


def stop_with_parent() -> None:
    """Ask this process to stop, as SIGTERM does, once the process that started it has ended for any reason.

    Its standard input must be a pipe that the other process holds open and never writes to.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def handled_by(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, numbers: Iterable[int]
) -> Iterator[None]:
    """Handle these signals in the block; only the main thread can do so, in other threads nothing happens."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def stop_signals() -> list[int]:
    """The signals that ask a run to stop; under nohup, losing the terminal is not one of them."""
    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers
