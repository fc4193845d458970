"""What a video is, in a few figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, according to its container and its first frame."""

    num_frames: int
    """Number of frames that can be read."""
    duration_seconds: float | None
    """Until its last frame ends; None for a folder of images."""
    width: int
    """Pixels, after rotation."""
    height: int
    """Pixels, after rotation."""
    codec: str
    """FFmpeg's name of the codec, or the images' suffix."""
    frames_per_second: float | None
    """Mean rate; None for a folder of images."""
    announced_frames: int | None = None
    """Number of frames that the container says it holds, shown or not; None if it does not say."""
    is_truncated: bool = False
    """Whether the file holds less than its container announces, or a frame of it is cut off."""
    has_variable_rate: bool = False
    """Whether frames are shown for different lengths of time."""
    rotation_degrees: int = 0
    """How far frames are turned anticlockwise to stand upright, after they are mirrored if the file says so."""
