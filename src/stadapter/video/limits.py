"""The most that a video may ask for, and the time that reading it may take."""

import time
from pathlib import Path

from stadapter.errors import VideoError

MAX_FRAME_PIXELS = 8192 * 4352
"""Largest frame that is decoded, width x height: the maximum of any H.264, HEVC or AV1 level (6.2)."""
MAX_FRAMES = 2_000_000
"""Maximum number of frames of a video, or of a segment of one: 18 hours at 30 frames per second."""
MAX_SECONDS = 20.0
"""Processor time, in seconds, that opening a file may take, and that each read from it may take."""
MAX_SECONDS_PER_MEBIBYTE = 10.0
"""How many seconds more are allowed per MiB of the file, so that long videos get the time they need.

This is processor time of the reading thread, not wall-clock time: a busy machine or a slow disk makes no clip
unreadable.
"""


class Deadline:
    """The processor time that opening a file, or reading from it once, may take in the thread that does it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds = MAX_SECONDS + MAX_SECONDS_PER_MEBIBYTE * path.stat().st_size / 2**20
        self.restart()

    def restart(self) -> None:
        """Start counting again."""
        self._end = time.thread_time() + self._seconds
        self._look_again = time.monotonic() + self._seconds

    def check(self) -> None:
        """Raise VideoError if the time is up."""
        now = time.monotonic()
        if now < self._look_again:
            return  # so much processor time cannot have passed yet, and asking for it costs ten times as much
        left = self._end - time.thread_time()
        self._look_again = now + left
        if left < 0:
            raise VideoError(
                f"{self._path.name}: gave up after {self._seconds:.0f} s of processor time, the limit for a file of "
                "this size; it is damaged, or must be split or re-encoded"
            )


def too_large(width: int, height: int) -> str:
    """The message about frames of more than `MAX_FRAME_PIXELS`."""
    return (
        f"frames of {width} x {height} pixels; at most {MAX_FRAME_PIXELS} pixels are decoded: the file is damaged, or "
        "must be scaled down"
    )
