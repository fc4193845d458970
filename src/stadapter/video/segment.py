"""The part of a video that is asked for, in seconds."""

import math
from dataclasses import dataclass

# 2.2 s at 25 frames per second is frame 55, not 55.00000000000001.
_DIGITS = 6


@dataclass(frozen=True)
class Segment:
    """The frames shown at start <= time < end."""

    start_seconds: float | None = None
    """None for the start of the video."""
    end_seconds: float | None = None
    """None for the end of the video."""

    def __str__(self) -> str:
        return f"start_seconds={self.start_seconds} and end_seconds={self.end_seconds}"

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a video."""
        return not self.start_seconds and self.end_seconds is None

    @property
    def has_length(self) -> bool:
        """Whether there is time in it, and none of it before the video."""
        start = self.start_seconds or 0.0
        return start >= 0 and (self.end_seconds is None or self.end_seconds > start)

    def ticks(self, *, tick_seconds: float, origin: int) -> tuple[float, float]:
        """Start and end by a clock that shows `origin` when the video starts."""
        return (
            -math.inf if self.start_seconds is None else origin + round(self.start_seconds / tick_seconds, _DIGITS),
            math.inf if self.end_seconds is None else origin + round(self.end_seconds / tick_seconds, _DIGITS),
        )

    def numbers(self, num_frames: int, *, frames_per_second: float) -> range:
        """Which of the frames of a video are in it, if frame i is shown at i / frames_per_second."""
        first, stop = (
            number if seconds is None else min(num_frames, math.ceil(round(seconds * frames_per_second, _DIGITS)))
            for seconds, number in ((self.start_seconds, 0), (self.end_seconds, num_frames))
        )
        return range(first, stop)
