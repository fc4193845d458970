"""The only decoder: exact frames by number, from a video file or from a folder of numbered images."""

import math
import os
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

import av
import numpy as np
import numpy.typing as npt
import torch
from av.container import InputContainer
from av.packet import Packet as AnyPacket
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from stadapter.boxes import check_tables
from stadapter.errors import VideoError, first_line

# T frames, U different frames, H W pixels

Packet: TypeAlias = "AnyPacket[VideoStream]"
Pixels = npt.NDArray[np.uint8]
Region = Callable[[int, int], tuple[slice, slice]]
"""The rows and the columns to keep of frames of a height and a width."""

# fmt: off
VIDEO_SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
})
# fmt: on
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_FRAME_PIXELS = 8192 * 4352
"""Largest frame that is decoded, width x height: the largest of any H.264, HEVC or AV1 level (6.2)."""
MAX_FRAMES = 2_000_000
"""Most frames of a video, or of a segment of one: 18 hours at 30 frames per second."""
MAX_SECONDS = 20.0
"""Processor time that opening a file may take, and each reading from it, in seconds …"""
MAX_SECONDS_PER_MEBIBYTE = 10.0
"""… and this much more for every MiB of its size, so that long videos have the time that they need.

Processor time of the reading thread and not time on the clock: a busy machine or a slow disk makes no clip unreadable.
"""

# Only these decoders leave out frames that no other frame needs when told to.
_CODECS_THAT_SKIP = frozenset({"h264", "hevc", "mpeg4"})
# Compressed packets up to this size stay in memory between the index pass and decoding; larger files seek.
_MAX_HELD_BYTES = 64 * 2**20
# What a packet takes in memory beside its data, roughly.
_HELD_OVERHEAD_BYTES = 512
# Containers that say after a seek what they said without one; the others are read from their start.
_CONTAINERS_THAT_SEEK = frozenset({"mov", "matroska", "mpegts"})
# Some of them seek to any packet, not to a keyframe: how far before a segment a second try starts.
_SECOND_TRY_SECONDS = 10.0
# Decoders refuse larger frames before they take memory for them.
_DECODER_OPTIONS = {"max_pixels": str(MAX_FRAME_PIXELS)}
# How many bytes at the start of a file tell containers apart, and what those hold that may be opened at a glance.
_MAGIC_BYTES = 12
_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"})
_MATROSKA = b"\x1a\x45\xdf\xa3"
# Opening decodes frames, to learn what most containers do not tell: 20 ms at 1080 lines. Where these containers hold
# these codecs, by FFmpeg's names, it changes nothing that is known of any packet, and no frame is decoded for it.
_TOLD_AT_A_GLANCE = {
    "mov": frozenset({"h264", "hevc", "mpeg4", "vp9", "av1"}),
    "matroska": frozenset({"vp8", "vp9", "av1"}),
}
_GLANCE_OPTIONS = {**_DECODER_OPTIONS, "skip_frame": "all", "probesize": "2048"}
# 2.2 s at 25 frames per second is frame 55, not 55.00000000000001.
_TICK_DIGITS = 6
# How much shorter than announced a whole video may be (the last frame, dropped frames), and how unequal its frames.
_DURATION_SLACK, _DURATION_SLACK_SECONDS = 0.02, 0.5
_RATE_SLACK = 0.1


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


class VideoReader:
    """An open video whose frames are read by number.

        with VideoReader("clip.mp4") as reader:
            frames = reader.read([0, reader.num_frames - 1])

    Frame i is the i-th frame that the decoder puts out, in presentation order, turned upright. With
    `start_seconds` or `end_seconds` only frames shown at start <= time < end exist, and frame 0 is the first
    of them. Time 0 is the start of the stream. A folder of images has times where `frames_per_second` tells them:
    image i, the first being 0, is shown at i / frames_per_second; files have their own.

    Raises VideoError where the path is missing, is no video, or holds no frame, and where it asks for more than the
    limits of this module: `MAX_FRAME_PIXELS`, `MAX_FRAMES`, and processor time for opening and for each reading.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        *,
        frames_per_second: float | None = None,
    ) -> None:
        if not os.fspath(path):
            raise VideoError("an empty path; expected a video file or a folder of numbered images")
        self.path = Path(path)
        _require_segment(self.path, start_seconds, end_seconds)
        self._source: _ImageFolder | _VideoFile
        with _decoder_errors_named(self.path):
            if self.path.is_dir():
                self._source = _ImageFolder(self.path, start_seconds, end_seconds, frames_per_second)
            else:
                self._source = _VideoFile(self.path, start_seconds, end_seconds)

    @property
    def num_frames(self) -> int:
        """Frames that can be read; lowered where decoding shows that a file holds fewer than it announces."""
        return self._source.num_frames

    def read(self, indices: Sequence[int], *, region: Region | None = None) -> torch.Tensor:
        """The frames with these numbers, in the order asked, as uint8 RGB (T, 3, H, W).

        The memory is laid out (T, H, W, 3), as the fast resize likes it. Numbers may repeat, in any order. With
        `region` only that part of every frame is kept; it is asked when the first frame has come, which tells the size.

        Raises VideoError if a number is negative or beyond the end, if the file is damaged there, or if it takes too
        much processor time.
        """
        wanted = [int(index) for index in indices]
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
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def info(self) -> VideoInfo:
        """Size, rate, length and codec. Decodes the first frame, for the size it is shown at."""
        with _decoder_errors_named(self.path):
            return self._source.info()

    def decode_all(self) -> tuple[int, int]:
        """Decode every frame: how many come, and how many of these the decoder calls damaged."""
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
        self.close()


def read_frames(
    path: str | os.PathLike[str],
    indices: Sequence[int],
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
) -> torch.Tensor:
    """Exactly these frames of a video, as uint8 RGB (T, 3, H, W), decoding only what they need.

    Frame i is the i-th in presentation order, turned upright; numbers may repeat and come in any order. With
    `start_seconds` or `end_seconds` they count within that part of the video.

    Raises VideoError where the video cannot be read or has no such frame.
    """
    with VideoReader(path, start_seconds, end_seconds) as reader:
        return reader.read(indices)


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, rate, length and codec of a video. Raises VideoError where it cannot be read."""
    with VideoReader(path) as reader:
        return reader.info()


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a path looks like a video: a file by its suffix, or a folder of numbered images only."""
    path = Path(path)
    if not path.is_dir():
        return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
    has_images = False
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir() or Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                return False
            has_images = has_images or _numbered(entry.name) is not None
    return has_images


class _ImageFolder:
    """Numbered images in the order of their numbers."""

    def __init__(
        self, path: Path, start_seconds: float | None, end_seconds: float | None, frames_per_second: float | None
    ) -> None:
        is_cut = start_seconds is not None or end_seconds is not None
        if is_cut and not frames_per_second:
            raise VideoError(f"{path.name}: a folder of images has no frame rate, so it cannot be cut by seconds")
        numbered = sorted((key[1], key[0], name) for name in os.listdir(path) if (key := _numbered(name)))
        prefixes = sorted({prefix for _, prefix, _ in numbered})
        if not numbered:
            raise VideoError(f"{path.name}: a folder without numbered .jpg or .png images is not a video")
        if len(prefixes) > 1:
            raise VideoError(f"{path.name}: {len(prefixes)} image sequences in one folder {prefixes}; keep one")
        if is_cut and frames_per_second:
            shown = (
                None if time is None else _first_image(time, frames_per_second) for time in (start_seconds, end_seconds)
            )
            numbered = numbered[slice(*shown)]
        if not numbered:
            raise VideoError(_nothing(path, 1, start_seconds, end_seconds))
        self._files = [path / name for _, _, name in numbered]
        self.num_frames = len(self._files)

    def read(self, wanted: set[int], region: Region | None) -> "_Gathered":
        gathered = _Gathered(wanted, region)
        for index in sorted(wanted):
            gathered.put(index, self._load(self._files[index]))
        return gathered

    def info(self) -> VideoInfo:
        height, width, _ = self._load(self._files[0]).shape
        return VideoInfo(self.num_frames, None, width, height, self._files[0].suffix.lower().lstrip("."), None)

    def decode_all(self) -> tuple[int, int]:
        num_decoded = 0
        for file in self._files:
            with suppress(VideoError):
                self._load(file)
                num_decoded += 1
        return num_decoded, 0

    def close(self) -> None:
        pass

    @staticmethod
    def _load(file: Path) -> Pixels:
        try:
            with _open_image(file) as image:
                if image.width * image.height > MAX_FRAME_PIXELS:
                    raise ValueError(_too_large(image.width, image.height))
                return np.array(image.convert("RGB"))
        except Exception as error:  # a type of its own for each kind of damage, and for an image that is too large
            raise VideoError(f"{file.parent.name}/{file.name}: not a readable image ({first_line(error)})") from error


class _Gathered:
    """The frames that are wanted, each cut and put in its place when it comes: no other whole frame is held.

    wanted {7, 2, 5}     pixels (U, H, W, 3)     [ frame 2 | frame 5 | frame 7 ]
    """

    def __init__(self, wanted: Iterable[int], region: Region | None) -> None:
        self.missing = set(wanted)
        self._place = {index: place for place, index in enumerate(sorted(self.missing))}
        self._region = region

    def put(self, index: int, pixels: Pixels) -> None:
        """Keep a frame (H, W, 3); one of another size than the first, in a rare video, is resized to that."""
        if len(self.missing) == len(self._place):
            self._height, self._width = pixels.shape[:2]
            whole = slice(self._height), slice(self._width)
            self._part = whole if self._region is None else self._region(self._height, self._width)
            first = pixels[self._part]
            self._pixels = np.empty((len(self._place), *first.shape), np.uint8)
        if pixels.shape[:2] != (self._height, self._width):
            resized = Image.fromarray(pixels).resize((self._width, self._height), Image.Resampling.BICUBIC)
            pixels = np.array(resized)
        self._pixels[self._place[index]] = pixels[self._part]
        self.missing.discard(index)

    def in_order(self, wanted: Sequence[int]) -> Pixels:
        """The frames with these numbers, (T, H, W, 3)."""
        places = [self._place[index] for index in wanted]
        return self._pixels if places == list(range(len(self._pixels))) else self._pixels[places]


class _Entry(NamedTuple):
    """One compressed packet, in decoding order."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_shown: bool
    is_corrupt: bool


class _VideoFile:
    """A file read through FFmpeg.

    One pass over the packets, without decoding, gives every frame's time and the keyframes:

        decoding order       I0  P3  b1  b2  I6  b4  b5  P9  ...
        presentation order   I0  b1  b2  P3  b4  b5  I6  ...
                             wanted: 5   ->  feed I0 .. b5: I6 is shown after 5, so decoding starts at I0

    Frames are then found by their time. Where the times cannot be trusted, or a wanted frame did not come, every frame
    is decoded and counted, for which a file that was opened at a glance is opened anew.
    """

    def __init__(
        self, path: Path, start_seconds: float | None, end_seconds: float | None, *, at_a_glance: bool = True
    ) -> None:
        _require_file(path)
        check_tables(path)
        self._path = path
        self._segment = start_seconds, end_seconds
        self._deadline = _Deadline(path)
        self._is_fresh = True
        self._must_count = False
        self._held: list[Packet] | None = None
        self._reformatter = VideoReformatter()
        self._container, self._stream, self._at_a_glance = _open(
            path, at_a_glance=at_a_glance and _may_open_at_a_glance(path)
        )
        try:
            self._start, self._end = self._bounds(start_seconds, end_seconds)
            self._entries, self._order = self._index()
            if self._order is None and self._at_a_glance:
                self._look_closer()
                return
            if self._order is None:
                self._ranks = self._count(start_seconds or 0.0, end_seconds)
            else:
                self._ranks = range(len(self._order))
            self.num_frames = len(self._ranks)
            if self.num_frames == 0:
                raise VideoError(_nothing(path, len(self._entries), start_seconds, end_seconds))
        except BaseException:
            self._container.close()
            raise

    def _look_closer(self) -> None:
        """Open the file anew if that was done at a glance: what a decoder puts out in which order may depend on it."""
        if not self._at_a_glance:
            return
        closer = _VideoFile(self._path, *self._segment, at_a_glance=False)
        self._container.close()
        vars(self).update({**vars(closer), "_deadline": self._deadline})

    def read(self, wanted: set[int], region: Region | None) -> _Gathered:
        self._deadline.restart()
        if self._order is not None and not self._must_count:
            gathered = self._read_by_time(sorted(wanted), self._order, region)
            if not gathered.missing:
                return gathered
        self._look_closer()
        return self._read_by_counting(wanted, region)

    def info(self) -> VideoInfo:
        self._deadline.restart()
        self._look_closer()
        frame = next(self._segment_frames(), None)
        if frame is None:
            raise VideoError(_nothing(self._path, 0, None, None))
        height, width, _ = _pixels(frame, self._reformatter).shape
        rate = float(self._stream.average_rate) if self._stream.average_rate else None
        return VideoInfo(
            self.num_frames,
            self._duration_seconds(rate),
            width,
            height,
            self._stream.codec_context.codec.canonical_name,
            rate,
            announced_frames=self._stream.frames or None,
            is_truncated=self._is_truncated(),
            has_variable_rate=self._has_variable_rate(),
            rotation_degrees=round(frame.rotation / 90) % 4 * 90,
        )

    def decode_all(self) -> tuple[int, int]:
        self._deadline.restart()
        self._look_closer()
        num_decoded = num_damaged = 0
        for frame in self._segment_frames():
            num_decoded += 1
            num_damaged += frame.is_corrupt
        return num_decoded, num_damaged

    def _duration_seconds(self, rate: float | None) -> float | None:
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        if self._container.duration is not None:
            return self._container.duration / av.time_base
        return self.num_frames / rate if rate else None

    def _is_truncated(self) -> bool:
        """Told from the packets of a whole file, without decoding."""
        if any(entry.is_corrupt for entry in self._entries):
            return True
        if self._is_format("mov"):
            # Edit lists leave samples out, so their number proves nothing; where the last one ends does.
            ends = (sample.pos + sample.size for sample in self._stream.index_entries)
            return max(ends, default=0) > self._path.stat().st_size
        if announced := _announced_seconds(self._container, self._stream):
            times = [entry.pts for entry in self._entries if entry.pts is not None]
            end = float(max(times, default=0) * (self._stream.time_base or 0))
            return end < announced - max(_DURATION_SLACK_SECONDS, _DURATION_SLACK * announced)
        return len(self._entries) < (1 - _DURATION_SLACK) * self._stream.frames

    def _has_variable_rate(self) -> bool:
        times = [self._entries[position].pts or 0 for position in self._order or ()]
        steps = sorted(after - before for before, after in pairwise(times))
        # Clocks that tick in milliseconds show 33 and 34 for 30 frames per second.
        return bool(steps) and steps[-1] - steps[0] > 2 + _RATE_SLACK * steps[len(steps) // 2]

    def close(self) -> None:
        self._held = None
        self._container.close()

    def _bounds(self, start_seconds: float | None, end_seconds: float | None) -> tuple[float, float]:
        """The segment in ticks of the stream's clock."""
        origin = self._stream.start_time or 0
        tick_seconds = float(self._stream.time_base or 1)
        start = -math.inf if start_seconds is None else origin + round(start_seconds / tick_seconds, _TICK_DIGITS)
        end = math.inf if end_seconds is None else origin + round(end_seconds / tick_seconds, _TICK_DIGITS)
        return start, end

    def _index(self) -> tuple[list[_Entry], list[int] | None]:
        """The packets, and the positions of the wanted segment's frames among them in presentation order.

        No positions where the packets' times cannot be trusted.
        """
        if not self._is_format("avi"):  # AVI stores no presentation times: those given out for it are guesses
            for begin in self._seek_points():
                entries = self._scan(begin, self._end)
                order = _presentation_order(entries, self._start, self._end, was_sought=begin is not None)
                if order is not None:
                    return entries, order
        return self._scan(None, math.inf), None

    def _is_format(self, *names: str) -> bool:
        return not set(names).isdisjoint(self._container.format.name.split(","))

    def _seek_points(self) -> list[int | None]:
        """Where to start the index pass, best first; None is the start of the file."""
        if self._start <= (self._stream.start_time or 0) or not self._is_format(*_CONTAINERS_THAT_SEEK):
            return [None]
        earlier = self._start - _SECOND_TRY_SECONDS / float(self._stream.time_base or 1)
        return [int(self._start), int(earlier), None]

    def _scan(self, begin: int | None, end: float) -> list[_Entry]:
        """List the packets from the keyframe at or before `begin` up to those decoded before `end`."""
        entries: list[_Entry] = []
        held: list[Packet] = []
        codec = self._stream.codec_context.name
        num_bytes = 0
        for packet in self._demux(begin):
            if packet.dts is not None and packet.dts >= end:
                break
            if begin is not None and not entries and not packet.is_keyframe:
                continue
            entries.append(_entry(packet, codec))
            if len(entries) > MAX_FRAMES:
                raise VideoError(
                    f"{self._path.name}: more than {MAX_FRAMES} frames, the most that are read; the file is damaged, "
                    "or is to be cut into shorter ones"
                )
            num_bytes += packet.size + _HELD_OVERHEAD_BYTES
            if num_bytes <= _MAX_HELD_BYTES:
                held.append(packet)
            else:
                held.clear()
        self._held = held if num_bytes <= _MAX_HELD_BYTES else None
        return entries

    def _demux(self, begin: int | None) -> Iterator[Packet]:
        """Packets from around `begin` on, or all of them."""
        if begin is None and not self._is_fresh:
            # Opening again is the one rewind that every container gets right.
            self._container.close()
            self._container, self._stream, self._at_a_glance = _open(self._path, at_a_glance=self._at_a_glance)
        self._is_fresh = False
        try:
            if begin is not None:
                self._container.seek(begin, stream=self._stream)
            for packet in self._container.demux(self._stream):
                self._deadline.check()
                if packet.size:
                    yield packet
        except av.FFmpegError:
            return  # cut off here: what came before can still be decoded

    def _packets(self, first: int, stop: int) -> Iterable[Packet]:
        """Packets number `first` to `stop` in decoding order, from memory or again from the file."""
        if self._held is not None:
            return self._held[first:stop]
        return islice(self._demux_from(self._entries[first]), stop - first)

    def _demux_from(self, target: _Entry) -> Iterator[Packet]:
        seek_points = (target.pts, None) if self._is_format(*_CONTAINERS_THAT_SEEK) else (None,)
        for begin in seek_points:
            packets = self._demux(begin)
            for packet in packets:
                if (packet.pts, packet.dts) == (target.pts, target.dts):
                    return chain([packet], packets)
                if begin is not None and (packet.dts or 0) > (target.dts or 0):
                    break  # landed too late
        return iter(())

    def _decode(self, packets: Iterable[Packet], wanted_pts: Container[int | None] | None) -> Iterator[VideoFrame]:
        """Decode from a clean start to the last packet; frames outside `wanted_pts` may be left out."""
        context = self._stream.codec_context
        context.flush_buffers()
        can_skip = context.name in _CODECS_THAT_SKIP
        for packet in packets:
            self._deadline.check()
            is_wanted = wanted_pts is None or not can_skip or packet.pts in wanted_pts
            context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            yield from _frames(context, packet)
        yield from _frames(context, None)

    def _read_by_time(self, wanted: list[int], order: list[int], region: Region | None) -> _Gathered:
        index_of = {self._entries[order[index]].pts: index for index in wanted}
        gathered = _Gathered(wanted, region)
        for first, stop in _runs(self._entries, [order[index] for index in wanted]):
            for frame in self._decode(self._packets(first, stop), index_of):
                if frame.pts in index_of and not frame.is_corrupt:
                    gathered.put(index_of[frame.pts], _pixels(frame, self._reformatter))
        return gathered

    def _read_by_counting(self, wanted: set[int], region: Region | None) -> _Gathered:
        gathered = _Gathered(wanted, region)
        num_counted = 0
        for index, frame in enumerate(self._segment_frames()):
            num_counted = index + 1
            if index in wanted:
                gathered.put(index, _pixels(frame, self._reformatter))
            if not gathered.missing:
                return gathered
        # Fewer came than the packets promised: from here on only counting gives the same numbers every time.
        self._must_count = True
        self.num_frames = num_counted
        return gathered

    def _segment_frames(self) -> Iterator[VideoFrame]:
        """Every frame of the segment, decoded in presentation order."""
        for rank, frame in enumerate(self._decode(self._packets(0, len(self._entries)), None)):
            if self._order is None:
                is_inside = rank in self._ranks
            else:
                is_inside = frame.pts is not None and self._start <= frame.pts < self._end
            if is_inside:
                yield frame

    def _count(self, start_seconds: float, end_seconds: float | None) -> range:
        """The segment's frame numbers in the whole file, where only counting can be trusted."""
        times = [entry.dts for entry in self._entries]
        if self._is_format("avi") and None not in times and len(set(times)) == len(times):
            total = len(times)
        else:
            total = sum(1 for _ in self._decode(self._packets(0, len(self._entries)), None))
        if start_seconds == 0 and end_seconds is None:
            return range(total)
        rate = self._stream.average_rate
        if not rate:
            raise VideoError(f"{self._path.name}: no frame times and no frame rate, so it cannot be cut by seconds")
        start, stop = (
            total if seconds is None else min(total, math.ceil(round(seconds * rate, _TICK_DIGITS)))
            for seconds in (start_seconds, end_seconds)
        )
        return range(start, stop)


class _Deadline:
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


@contextmanager
def _decoder_errors_named(path: Path) -> Iterator[None]:
    """Turn whatever decoding raises into a VideoError that names the file.

    FFmpeg's errors are of dozens of types, and a damaged header may ask for more memory than there is; one bad video
    must never end a run.
    """
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        # Damaged files bring out OSError, ValueError, MemoryError and more from FFmpeg; none may end a batch or a run.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {first_line(error)}"
        raise VideoError(f"{path.name}: cannot be decoded ({reason}); the file is damaged, or too large") from error


def _require_file(path: Path) -> None:
    if not path.exists():
        raise VideoError(f"{path}: no such file or folder")
    if not path.is_file():
        raise VideoError(f"{path}: a pipe or a device; expected a regular file, which can be read twice: save it first")
    if path.stat().st_size == 0:
        raise VideoError(f"{path.name}: the file is empty (0 bytes)")


def _may_open_at_a_glance(path: Path) -> bool:
    """Whether a file is, by its first bytes, an MP4, a MOV, a Matroska or a WebM."""
    with path.open("rb") as file:
        magic = file.read(_MAGIC_BYTES)
    return magic[4:8] in _MP4_BOXES or magic.startswith(_MATROSKA)


def _open(path: Path, *, at_a_glance: bool) -> tuple[InputContainer, VideoStream, bool]:
    """Open a file and pick its video stream. One decoder thread: loader workers run side by side.

    Tells whether it was opened at a glance: without decoding anything, where that was asked for and is enough.
    """
    options = _GLANCE_OPTIONS if at_a_glance else _DECODER_OPTIONS
    try:
        container = av.open(str(path.absolute()), metadata_errors="replace", options=options)
    except (av.FFmpegError, OSError) as error:
        if at_a_glance:
            return _open(path, at_a_glance=False)
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{path.name}: 0 frames decoded: not a video, or damaged at its start ({reason})") from error
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if at_a_glance and not (streams and _is_told_at_a_glance(container, streams[0])):
        container.close()
        return _open(path, at_a_glance=False)
    if not streams:
        container.close()
        raise VideoError(f"{path.name}: the file holds no video stream")
    context: VideoCodecContext | None = streams[0].codec_context
    if context is None:
        container.close()
        raise VideoError(f"{path.name}: no decoder for its video; encode it anew, such as with H.264")
    context.thread_count = 1
    context.options = dict(_DECODER_OPTIONS)
    if context.width * context.height > MAX_FRAME_PIXELS:
        container.close()
        raise VideoError(f"{path.name}: {_too_large(context.width, context.height)}")
    return container, streams[0], at_a_glance


def _is_told_at_a_glance(container: InputContainer, stream: VideoStream) -> bool:
    if stream.codec_context is None:
        return False
    codec = stream.codec_context.codec.canonical_name
    return any(codec in _TOLD_AT_A_GLANCE.get(name, ()) for name in container.format.name.split(","))


def _announced_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Where Matroska says that the pictures end; what other containers say was worked out from the file's end."""
    if "matroska" not in container.format.name:
        return None
    if match := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "").strip()):
        hours, minutes, seconds = (float(part) for part in match.groups())
        return 3600 * hours + 60 * minutes + seconds
    is_alone = len(container.streams) == 1  # else it may be the length of the sound
    return container.duration / av.time_base if is_alone and container.duration is not None else None


def _too_large(width: int, height: int) -> str:
    return (
        f"frames of {width} x {height} pixels; {MAX_FRAME_PIXELS} pixels at most are decoded: the file is damaged, or "
        "is to be scaled down"
    )


def _entry(packet: Packet, codec: str) -> _Entry:
    # VP8 stores frames that are only referred to as packets of their own; bit 4 says whether one is shown.
    is_hidden = codec == "vp8" and not bytes(packet)[0] >> 4 & 1
    return _Entry(
        packet.pts, packet.dts, packet.is_keyframe, not packet.is_discard and not is_hidden, packet.is_corrupt
    )


def _presentation_order(entries: Sequence[_Entry], start: float, end: float, *, was_sought: bool) -> list[int] | None:
    """Positions of the packets shown at start <= time < end, by time; None where times cannot be trusted."""
    if not entries or any(entry.is_corrupt for entry in entries):
        return None
    decoding_times = [entry.dts for entry in entries if entry.dts is not None]
    if any(after <= before for before, after in pairwise(decoding_times)):
        return None
    first = entries[0].pts
    times: dict[int, int] = {}
    for position, entry in enumerate(entries):
        if not entry.is_shown:
            continue
        if entry.pts is None or entry.pts in times:
            return None
        times[entry.pts] = position
    order = [times[time] for time in sorted(times) if start <= time < end]
    if first is None or not entries[0].is_keyframe or (was_sought and first > start):
        return None
    # Frames shown before the first keyframe may never come out, which shifts all later numbers.
    if order and (entries[order[0]].pts or 0) < first:
        return None
    return order


def _runs(entries: Sequence[_Entry], positions: Iterable[int]) -> list[tuple[int, int]]:
    """Ranges of packets to feed, each from a keyframe, so that the packets at `positions` are decoded.

    `positions` come in presentation order. A frame whose keyframe was already fed needs no new start.
    """
    keyframes = [position for position, entry in enumerate(entries) if entry.is_keyframe]
    runs: list[tuple[int, int]] = []
    for position in positions:
        start = _start_of(entries, keyframes, position)
        if runs and start < runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], position + 1))
        else:
            runs.append((start, position + 1))
    return runs


def _start_of(entries: Sequence[_Entry], keyframes: Sequence[int], position: int) -> int:
    """The last keyframe both decoded and shown no later than the packet at `position`."""
    shown_at = entries[position].pts or 0
    earlier = keyframes[: bisect_right(keyframes, position)]
    return next((key for key in reversed(earlier) if (entries[key].pts or 0) <= shown_at), 0)


def _frames(context: VideoCodecContext, packet: "Packet | None") -> list[VideoFrame]:
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return []  # a damaged packet gives no frame; counting shows how many came


def _pixels(frame: VideoFrame, reformatter: VideoReformatter) -> Pixels:
    """RGB (H, W, 3), upright: the rotation a camera notes down is in degrees anticlockwise.

    Equal to `frame.to_ndarray(format="rgb24")`, which sets up threads and tables anew for every frame.
    """
    pixels = np.asarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), np.uint8)
    quarter_turns = round(frame.rotation / 90) % 4
    return np.rot90(pixels, quarter_turns) if quarter_turns else pixels


def _open_image(file: Path) -> ImageFile:
    """A JPEG or PNG, its pixels not yet decoded.

    Pillow's own `Image.open` takes any format by its content, some of which run programs, and warns of large ones.
    """
    with file.open("rb") as opened:
        is_png = opened.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    return PngImageFile(file) if is_png else JpegImageFile(file)


def _numbered(name: str) -> tuple[str, int] | None:
    """The prefix and the number of an image's file name; None for any other name."""
    file = Path(name)
    number = re.search(r"(\d+)$", file.stem)
    if file.suffix.lower() not in IMAGE_SUFFIXES or number is None or name.startswith("."):
        return None
    return file.stem[: number.start()], int(number.group())


def _first_image(seconds: float, frames_per_second: float) -> int:
    """The first image that is shown at a time or after it."""
    return math.ceil(round(seconds * frames_per_second, _TICK_DIGITS))


def _require_segment(path: Path, start_seconds: float | None, end_seconds: float | None) -> None:
    start = 0.0 if start_seconds is None else start_seconds
    if start < 0 or (end_seconds is not None and end_seconds <= start):
        raise VideoError(
            f"{path.name}: no time between start_seconds={start_seconds} and end_seconds={end_seconds}; "
            "0 <= start < end is expected"
        )


def _nothing(path: Path, num_packets: int, start_seconds: float | None, end_seconds: float | None) -> str:
    if num_packets and (start_seconds is not None or end_seconds is not None):
        return f"{path.name}: no frame between start_seconds={start_seconds} and end_seconds={end_seconds}"
    return f"{path.name}: 0 frames decoded; the file is truncated or damaged"
