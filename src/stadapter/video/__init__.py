"""The only decoder: exact frames by number, from a video file or a folder of numbered images."""

import operator
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from stadapter.errors import VideoError
from stadapter.field_types import check_number
from stadapter.paths import expanded
from stadapter.video.container import LeftOpen
from stadapter.video.file import VideoFile
from stadapter.video.gathered import Region
from stadapter.video.images import IMAGE_SUFFIXES, ImageFolder, image_number
from stadapter.video.info import VideoInfo
from stadapter.video.segment import Segment
from stadapter.wording import first_line

if TYPE_CHECKING:
    import torch

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "LeftOpen",
    "Region",
    "VideoInfo",
    "VideoReader",
    "is_video",
    "probe",
    "read_frames",
]

# T frames, H W pixels

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on


_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # at least two letters: C:// is a drive


class VideoReader:
    """An open video whose frames are read by number.

        with VideoReader("clip.mp4") as reader:
            frames = reader.read([0, reader.num_frames - 1])

    Frame i is the i-th frame that the decoder outputs, in presentation order, turned upright. With `start_seconds`
    or `end_seconds` only frames shown at start <= time < end exist, and frame 0 is the first of them. Time 0 is the
    start of the stream. A folder of images has times only if `frames_per_second` is given: image i, counting from 0,
    is shown at i / frames_per_second. Files bring their own times. Readers that share `left_open` and follow each other
    open a file once for several parts of it; the frames are the same without.

    Raises VideoError if the path is missing, is not a video or holds no frame, and if it needs more than
    `stadapter.video.limits` allows: pixels, frames, or processor time for opening it or for any one read. Raises
    SettingsError if a time or the rate is no number.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        *,
        frames_per_second: float | None = None,
        left_open: LeftOpen | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise VideoError(
                f"{type(path).__name__} found; expected the path of a video file or of a folder of numbered images"
            )
        times = {"start_seconds": start_seconds, "end_seconds": end_seconds, "frames_per_second": frames_per_second}
        for name, value in times.items():
            check_number(name, value, or_none=True)
        if not os.fspath(path):
            raise VideoError("the path is empty; expected a video file or a folder of numbered images")
        if _ADDRESS.match(os.fspath(path)):
            raise VideoError(f"{path}: a URL; expected a file or folder on this machine: download it first")
        self.path = expanded(path)
        segment = Segment(start_seconds, end_seconds)
        if not segment.has_length:
            raise VideoError(f"{self.path.name}: no time between {segment}; expected 0 <= start < end")
        self._source: ImageFolder | VideoFile
        with _decoder_errors_named(self.path):
            if self.path.is_dir():
                self._source = ImageFolder(self.path, segment, frames_per_second)
            else:
                self._source = VideoFile(self.path, segment, left_open)

    @property
    def num_frames(self) -> int:
        """Number of frames that can be read; lowered when decoding shows that a file holds fewer than it announces."""
        return self._source.num_frames

    @property
    def has_lost_frames(self) -> bool:
        """Whether a frame failed to come out at its time, so that all had to be counted: the file is damaged inside.

        Which frame a number refers to then depends on which others are read with it.
        """
        return self._source.has_lost_frames

    def read(self, indices: Iterable[int], *, region: Region | None = None) -> "torch.Tensor":
        """The frames with these numbers, in the order given, as uint8 RGB (T, 3, H, W).

        In memory they are laid out as (T, H, W, 3), which the fast resize prefers. Numbers may repeat and come in any
        order. With `region` only that part of every frame is kept; it is called once the first frame has been decoded
        and its size is known.

        Raises VideoError if a number is negative or beyond the end, if the file is damaged there, or if reading takes
        too much processor time.
        """
        try:
            wanted = [operator.index(index) for index in indices]
        except TypeError as error:
            raise VideoError(f"{self.path.name}: frame numbers {indices!r}; expected whole numbers") from error
        if not wanted:
            raise VideoError(f"{self.path.name}: no frame numbers given; ask for at least one")
        if min(wanted) < 0:
            raise VideoError(f"{self.path.name}: frame {min(wanted)} asked for; frames are numbered from 0")
        if max(wanted) >= self.num_frames:
            raise VideoError(
                f"{self.path.name}: frame {max(wanted)} asked for, but there are {self.num_frames} frames "
                f"(0 to {self.num_frames - 1})"
            )
        with _decoder_errors_named(self.path):
            gathered = self._source.read(set(wanted), region)
            if gathered.missing:
                raise VideoError(
                    f"{self.path.name}: {self.num_frames} frames decoded, frame {max(gathered.missing)} asked for; "
                    "the file is truncated or damaged"
                )
            frames = gathered.in_order(wanted)  # (T, H, W, 3)
        import torch

        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def info(self) -> VideoInfo:
        """Size, rate, length and codec; decodes the first frame to learn the size it is shown at."""
        with _decoder_errors_named(self.path):
            return self._source.info()

    def decode_all(self) -> tuple[int, int]:
        """Decode every frame; return how many come out and how many of those the decoder marks as damaged."""
        with _decoder_errors_named(self.path):
            return self._source.decode_all()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and isinstance(self._source, VideoFile):
            self._source.leave_open()
        else:
            self.close()


def read_frames(
    path: str | os.PathLike[str],
    indices: Iterable[int],
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    frames_per_second: float | None = None,
) -> "torch.Tensor":
    """Exactly these frames of a video, as uint8 RGB (T, 3, H, W), decoding only what they need.

    Frame i is the i-th in presentation order, turned upright; numbers may repeat and come in any order. With
    `start_seconds` or `end_seconds` they count within that part of the video; a folder of images then needs
    `frames_per_second`.

    Raises VideoError if the video cannot be read or has no such frame.
    """
    with VideoReader(path, start_seconds, end_seconds, frames_per_second=frames_per_second) as reader:
        return reader.read(indices)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate, length and codec of a video. Raises VideoError if it cannot be read."""
    with VideoReader(path) as reader:
        return reader.info()


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a path looks like a video: a file by its suffix, or a folder of numbered images and no videos."""
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():  # first: it asks the disk once for most videos
        return True
    if not path.is_dir():
        return False
    has_images = False
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir() or Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                return False
            has_images = has_images or image_number(entry.name) is not None
    return has_images


@contextmanager
def _decoder_errors_named(path: Path) -> Iterator[None]:
    """Turn whatever decoding raises into a VideoError that names the file.

    FFmpeg raises dozens of error types, and a damaged header may ask for more memory than there is; one bad video
    must never end a run.
    """
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        # On damaged files FFmpeg raises OSError, ValueError, MemoryError and more; none may end a batch or a run.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
        raise VideoError(f"{path.name}: cannot be decoded ({reason}); the file is damaged, or too large") from error
