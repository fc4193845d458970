"""What a video is, told in a few figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, as its container tells it and its first frame shows it."""

    num_frames: int
    """Frames that can be read."""
    duration_seconds: float | None
    """None for a folder of images."""
    width: int
    """Pixels, after rotation."""
    height: int
    """Pixels, after rotation."""
    codec: str
    """FFmpeg's name of the codec, or the images' suffix."""
    frames_per_second: float | None
    """Mean rate; None for a folder of images."""
    announced_frames: int | None = None
    """Frames that the container says it holds, shown or not; None where it does not say."""
    is_truncated: bool = False
    """Whether the file holds less than its container announces, or a frame that is cut off."""
    has_variable_rate: bool = False
    """Whether frames are shown for unequal times."""
    rotation_degrees: int = 0
    """How far frames are turned anticlockwise to be upright."""
