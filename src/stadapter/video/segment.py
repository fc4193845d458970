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

    def titled(self, name: str) -> str:
        """The display name of a clip: the name of its video, and which part of it unless that is the whole.

        >>> Segment().titled("a.mp4"), Segment(0.5).titled("a.mp4"), Segment(3600.1234, 10000).titled("a.mp4")
        ('a.mp4', 'a.mp4 [0.5 to end]', 'a.mp4 [3600.1234 to 10000 s]')
        """
        if self.is_whole:
            return name
        end = "end" if self.end_seconds is None else f"{_shown(self.end_seconds)} s"
        return f"{name} [{_shown(self.start_seconds or 0)} to {end}]"

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole video."""
        return not self.start_seconds and self.end_seconds is None

    @property
    def bounds(self) -> tuple[float, float]:
        """Start and end as numbers: 0 and infinity where they are not given."""
        return self.start_seconds or 0.0, math.inf if self.end_seconds is None else self.end_seconds

    @property
    def has_length(self) -> bool:
        """Whether it has a length, and does not start before the video."""
        start, end = self.bounds
        return 0 <= start < end

    def ticks(self, *, tick_seconds: float, origin: int) -> tuple[float, float]:
        """Start and end on a clock that shows `origin` when the video starts."""
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


def _shown(seconds: float) -> str:
    """As exact as it takes to tell segments apart, and no longer."""
    return f"{seconds:.{_DIGITS}f}".rstrip("0").rstrip(".")
