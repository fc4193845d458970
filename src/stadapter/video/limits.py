"""The most that a video may ask for, and the time that reading it may take."""

import time
from pathlib import Path

from stadapter.errors import VideoError

MAX_FRAME_PIXELS = 8192 * 4352
"""Largest frame that is decoded, width x height: the largest of any H.264, HEVC or AV1 level (6.2)."""
MAX_FRAMES = 2_000_000
"""Most frames of a video, or of a segment of one: 18 hours at 30 frames per second."""
MAX_SECONDS = 20.0
"""Processor time that opening a file may take, and each reading from it, in seconds."""
MAX_SECONDS_PER_MEBIBYTE = 10.0
"""How much longer that may be for every MiB of the file, so that long videos have the time that they need.

Processor time of the reading thread and not time on the clock: a busy machine or a slow disk makes no clip unreadable.
"""


class Deadline:
    """The processor time that one opening or one reading of a file may take, in the thread that does it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds = MAX_SECONDS + MAX_SECONDS_PER_MEBIBYTE * path.stat().st_size / 2**20
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._end = time.thread_time() + self._seconds
        self._look_again = time.monotonic() + self._seconds

    def check(self) -> None:
        """Raises VideoError when the time is over."""
        now = time.monotonic()
        if now < self._look_again:
            return  # as much processor time cannot have passed; asking for that costs ten times as much
        left = self._end - time.thread_time()
        self._look_again = now + left
        if left < 0:
            raise VideoError(
                f"{self._path.name}: given up after {self._seconds:.0f} s of processor time, the most that a file of "
                "this size may take; it is damaged, or is to be cut into shorter ones or encoded anew"
            )


def too_large(width: int, height: int) -> str:
    """What is said of frames of more than `MAX_FRAME_PIXELS`."""
    return (
        f"frames of {width} x {height} pixels; {MAX_FRAME_PIXELS} pixels at most are decoded: the file is damaged, or "
        "is to be scaled down"
    )
