"""The file around a video: opened by FFmpeg, and only at a glance where that is enough."""

import re
from pathlib import Path
from typing import NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from stadapter.errors import VideoError
from stadapter.video.limits import MAX_FRAME_PIXELS, too_large

# Decoders refuse larger frames before allocating memory for them.
_DECODER_OPTIONS = {"max_pixels": str(MAX_FRAME_PIXELS)}
# The number of leading bytes that tell containers apart, and how those that may be opened at a glance begin.
_MAGIC_BYTES = 12
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"})
_MATROSKA = b"\x1a\x45\xdf\xa3"
# Opening a file decodes frames to learn what most containers do not say, which takes 20 ms at 1080 lines. For these
# codecs in these containers (FFmpeg's names) that changes nothing known about any packet, so no frame is decoded.
_TOLD_AT_A_GLANCE = {
    "mov": frozenset({"h264", "hevc", "mpeg4", "vp9", "av1"}),
    "matroska": frozenset({"vp8", "vp9", "av1"}),
}
_GLANCE_OPTIONS = {**_DECODER_OPTIONS, "skip_frame": "all", "probesize": "2048"}


class Opened(NamedTuple):
    """An open file and its video stream."""

    container: InputContainer
    stream: VideoStream
    at_a_glance: bool
    """Whether nothing was decoded to open it."""

    def is_format(self, *names: str) -> bool:
        """Whether it is one of these containers, by FFmpeg's names."""
        return not set(names).isdisjoint(self.container.format.name.split(","))


class LeftOpen:
    """A file that one reader leaves open for the next, which may read another part of it.

    Opening an MP4 or MOV reads the tables of all its frames, so that the windows of a video of ten hours would take a
    hundred times as long to open as those of one hour. Only a file whose tables are complete from the start is kept: in
    others, where a seek leads depends on what has been read before.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._opened: Opened | None = None

    def take(self, path: Path, *, at_a_glance: bool) -> Opened | None:
        """The file, if it is this one and was opened in this way; any other is closed."""
        opened, self._opened = self._opened, None
        if opened is None or (path == self._path and opened.at_a_glance == at_a_glance):
            return opened
        opened.container.close()
        return None

    def give(self, path: Path, opened: Opened) -> None:
        """Keep a file for the next reader, or close it."""
        self.close()
        stream = opened.stream
        if opened.is_format("mov") and 0 < stream.frames == len(stream.index_entries):
            self._path, self._opened = path, opened
        else:
            opened.container.close()

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._opened is not None:
            self._opened.container.close()
            self._opened = None


def open_container(path: Path, *, at_a_glance: bool) -> Opened:
    """Open a file and pick its video stream. One decoder thread: loader workers run side by side.

    Raises VideoError if it is not a video, or its frames are too large.
    """
    options = _GLANCE_OPTIONS if at_a_glance else _DECODER_OPTIONS
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace", options=options)
    except (av.FFmpegError, OSError) as error:
        if at_a_glance:
            return open_container(path, at_a_glance=False)
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path.name}: 0 frames decoded: not a video, or damaged at its start ({reason})") from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if at_a_glance and not (streams and _is_told_at_a_glance(container, streams[0])):
        container.close()
        return open_container(path, at_a_glance=False)
    if not streams:
        container.close()
        raise VideoError(f"{path.name}: the file holds no video stream")
    context: VideoCodecContext | None = streams[0].codec_context
    if context is None:
        container.close()
        raise VideoError(f"{path.name}: no decoder for its video; re-encode it, for example with H.264")
    context.thread_count = 1
    context.options = dict(_DECODER_OPTIONS)
    if context.width * context.height > MAX_FRAME_PIXELS:
        container.close()
        raise VideoError(f"{path.name}: {too_large(context.width, context.height)}")
    return Opened(container, streams[0], at_a_glance)


def may_open_at_a_glance(path: Path) -> bool:
    """Whether a file's first bytes are those of an MP4, MOV, Matroska or WebM."""
    with path.open("rb") as file:
        magic = file.read(_MAGIC_BYTES)
    return magic[4:8] in _MP4_BOXES or magic.startswith(_MATROSKA)


def announced_seconds(opened: Opened) -> float | None:
    """Where Matroska says that the video ends; for other containers FFmpeg works the end out from the file itself."""
    container, stream = opened.container, opened.stream
    if not opened.is_format("matroska"):
        return None
    if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "").strip()):
        hours, minutes, seconds = (float(part) for part in match.groups())
        return 3600 * hours + 60 * minutes + seconds
    is_alone = len(container.streams) == 1  # otherwise it may be the length of the sound
    return container.duration / av.time_base if is_alone and container.duration is not None else None


def _is_told_at_a_glance(container: InputContainer, stream: VideoStream) -> bool:
    if stream.codec_context is None:
        return False
    codec = stream.codec_context.codec.canonical_name
    return any(codec in _TOLD_AT_A_GLANCE.get(name, ()) for name in container.format.name.split(","))
