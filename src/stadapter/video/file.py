"""Videos that are files, decoded by FFmpeg."""

import math
import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median_low
from typing import cast

import av
import numpy as np
from av.buffer import Buffer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from stadapter.errors import VideoError
from stadapter.video.boxes import check_tables
from stadapter.video.container import LeftOpen, announced_seconds, may_open_at_a_glance
from stadapter.video.gathered import Gathered, Pixels, Region
from stadapter.video.info import VideoInfo
from stadapter.video.limits import Deadline
from stadapter.video.packets import Packets, presentation_order, runs
from stadapter.video.segment import Segment

# H W pixels

# Some containers seek to any packet, not to a keyframe: how far before a segment the second try starts.
_SECOND_TRY_SECONDS = 10.0
# How much shorter than announced a whole video may be (the last frame, dropped frames), and how unequal its frames.
_DURATION_SLACK, _DURATION_SLACK_SECONDS = 0.02, 0.5
_RATE_SLACK = 0.1


class VideoFile:
    """A file read through FFmpeg.

    One pass over the packets, without decoding, gives every frame's time and the keyframes:

        decoding order       I0  P3  b1  b2  I6  b4  b5  P9  ...
        presentation order   I0  b1  b2  P3  b4  b5  I6  ...
                             wanted: 5   ->  feed I0 .. b5: I6 is shown after 5, so decoding starts at I0

    Frames are then found by their time. Where the times cannot be trusted, or a wanted frame did not come out, every
    frame is decoded and counted. A file that was opened at a glance, or not from its start, is re-opened for that: a
    decoder may output nothing for a while after what its file calls a keyframe, for example where pictures are
    refreshed bit by bit.
    """

    def __init__(self, path: Path, segment: Segment, left_open: LeftOpen | None = None) -> None:
        _require_file(path)
        check_tables(path)
        self._path = path
        self._segment = segment
        self._left_open = left_open
        self._deadline = Deadline(path)
        self._reformatter = VideoReformatter()
        self._must_count = False
        self.has_lost_frames = False
        self._look(at_a_glance=may_open_at_a_glance(path))

    def _look(self, *, at_a_glance: bool, from_start: bool = False) -> None:
        """Open the file and find out which frames there are; if that fails, everything stays as it was."""
        opened = self._left_open.take(self._path, at_a_glance=at_a_glance) if self._left_open is not None else None
        packets = Packets(self._path, self._deadline, at_a_glance=at_a_glance, opened=opened)
        try:
            bounds = _bounds(packets, self._segment)
            order = _find_order(packets, *bounds, from_start=from_start)
            if order is None and packets.opened.at_a_glance:
                packets.close()
                self._look(at_a_glance=False, from_start=from_start)
                return
            ranks, counted = (range(len(order)), []) if order is not None else self._count(packets)
            if not ranks:
                raise VideoError(self._nothing(len(packets.entries)))
        except BaseException:
            packets.close()
            raise
        self._packets, self._order, self._ranks, self._counted = packets, order, ranks, counted
        self._start, self._end = bounds
        self._is_from_start = from_start or self._segment.is_whole
        self.num_frames = len(ranks)

    def _look_closer(self, *, from_start: bool = False) -> None:
        """Re-open the file if it was opened at a glance: what a decoder outputs, and in which order, may depend on it.

        With `from_start`, also re-open it if it was not listed from its start.
        """
        first_look = self._packets
        if first_look.opened.at_a_glance or (from_start and not self._is_from_start):
            self._look(at_a_glance=False, from_start=from_start)
            first_look.close()

    def read(self, wanted: set[int], region: Region | None) -> Gathered:
        """The frames with these numbers, as far as they come out."""
        self._deadline.restart()
        if self._order is not None and not self._must_count:
            gathered = self._read_by_time(sorted(wanted), self._order, region)
            if not gathered.missing:
                return gathered
            self.has_lost_frames = True
        self._look_closer(from_start=True)
        return self._read_by_counting(wanted, region)

    def info(self) -> VideoInfo:
        """What is known of the file; decodes the first frame to learn the size it is shown at."""
        self._deadline.restart()
        self._look_closer()
        frame = next(self._frames(), None)
        if frame is None:
            raise VideoError(self._nothing(0))
        height, width, _ = _pixels(frame, self._reformatter).shape
        stream = self._packets.opened.stream
        rate = float(stream.average_rate) if stream.average_rate else None
        return VideoInfo(
            self.num_frames,
            self._duration_seconds(rate),
            width,
            height,
            stream.codec_context.codec.canonical_name,
            rate,
            announced_frames=stream.frames or None,
            is_truncated=self._is_truncated(),
            has_variable_rate=self._has_variable_rate(),
            rotation_degrees=_orientation(frame)[1] * 90,
        )

    def decode_all(self) -> tuple[int, int]:
        """How many frames come out, and how many of those the decoder marks as damaged."""
        self._deadline.restart()
        self._look_closer()
        num_decoded = num_damaged = 0
        for frame in self._frames():
            num_decoded += 1
            num_damaged += frame.is_corrupt
        return num_decoded, num_damaged

    def leave_open(self) -> None:
        """Hand over the file to the next reader, or close it; nothing can be read afterwards."""
        if self._left_open is None:
            self.close()
        else:
            self._left_open.give(self._path, self._packets.release())

    def close(self) -> None:
        """Close the file."""
        self._packets.close()

    def _count(self, packets: Packets) -> tuple[range, list[int]]:
        """The segment's frame numbers in the whole file, for when only counting can be trusted; and the ticks at which
        these frames are shown, if they are known.
        """
        times: Sequence[int | None] = _chunk_times(packets) or [frame.pts for frame in packets.decode()]
        if _are_times_of_decoding(packets):  # the same times, in the order of the frames
            told = [entry.pts or 0 for entry in packets.entries][: len(times)]
            times = [time - told[0] + (packets.opened.stream.start_time or 0) for time in told]
        known = [time for time in times if time is not None]
        has_times = len(known) == len(times) and known == sorted(known)
        if self._segment.is_whole:
            return range(len(times)), known if has_times else []
        if has_times:
            start, end = (bisect_left(known, bound) for bound in _bounds(packets, self._segment))
            return range(start, end), known[start:end]
        if not (rate := packets.opened.stream.average_rate):
            raise VideoError(f"{self._path.name}: no frame times and no frame rate, so it cannot be cut by seconds")
        return self._segment.numbers(len(times), frames_per_second=float(rate)), []

    def _read_by_time(self, wanted: list[int], order: list[int], region: Region | None) -> Gathered:
        entries = self._packets.entries
        index_of = {entries[order[index]].pts: index for index in wanted}
        gathered = Gathered(wanted, region)
        for first, stop in runs(entries, [order[index] for index in wanted]):
            for frame in self._packets.decode(first, stop, wanted_pts=index_of):
                if frame.pts in index_of and not frame.is_corrupt:
                    gathered.put(index_of[frame.pts], _pixels(frame, self._reformatter))
        return gathered

    def _read_by_counting(self, wanted: set[int], region: Region | None) -> Gathered:
        gathered = Gathered(wanted, region)
        num_counted = 0
        for index, frame in enumerate(self._frames()):
            num_counted = index + 1
            if index in wanted:
                gathered.put(index, _pixels(frame, self._reformatter))
            if not gathered.missing:
                return gathered
        # Fewer came out than the packets promised: from here on only counting gives the same numbers every time.
        self._must_count = True
        self.num_frames = num_counted
        return gathered

    def _frames(self) -> Iterator[VideoFrame]:
        """Every frame of the segment, decoded in presentation order."""
        for rank, frame in enumerate(self._packets.decode()):
            if self._order is None:
                is_inside = rank in self._ranks
            else:
                is_inside = frame.pts is not None and self._start <= frame.pts < self._end
            if is_inside:
                yield frame

    def _times(self) -> list[int]:
        """The ticks at which the frames are shown; empty if they are not known."""
        if self._order is None:
            return self._counted
        return [self._packets.entries[position].pts or 0 for position in self._order]

    def _duration_seconds(self, rate: float | None) -> float | None:
        """Until the last frame ends, which lasts as long as most: what a file says may include sound that continues."""
        container, stream, _ = self._packets.opened
        times = self._times()
        if self._segment.is_whole and len(times) > 1 and stream.time_base is not None:
            step = median_low(after - before for before, after in pairwise(times))
            return float((times[-1] + step - (stream.start_time or 0)) * stream.time_base)
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        if container.duration is not None:
            return container.duration / av.time_base
        return self.num_frames / rate if rate else None

    def _is_truncated(self) -> bool:
        """Whether the packets of a whole file show that it is cut off; nothing is decoded."""
        opened, entries = self._packets.opened, self._packets.entries
        if any(entry.is_corrupt for entry in entries):
            return True
        if opened.is_format("mov"):
            # Edit lists leave samples out, so the number of samples proves nothing; where the last one ends does.
            ends = (sample.pos + sample.size for sample in opened.stream.index_entries)
            return max(ends, default=0) > self._path.stat().st_size
        if announced := announced_seconds(opened):
            times = [entry.pts for entry in entries if entry.pts is not None]
            end = float(max(times, default=0) * (opened.stream.time_base or 0))
            return end < announced - max(_DURATION_SLACK_SECONDS, _DURATION_SLACK * announced)
        num_told = max(_chunk_times(self._packets), default=len(entries) - 1) + 1  # of an AVI, with those dropped
        return num_told < (1 - _DURATION_SLACK) * opened.stream.frames

    def _has_variable_rate(self) -> bool:
        steps = sorted(after - before for before, after in pairwise(self._times()))
        # Clocks that tick in milliseconds show 33 and 34 for 30 frames per second.
        return bool(steps) and steps[-1] - steps[0] > 2 + _RATE_SLACK * steps[len(steps) // 2]

    def _nothing(self, num_packets: int) -> str:
        if num_packets and not self._segment.is_whole:
            return f"{self._path.name}: no frame between {self._segment}"
        return f"{self._path.name}: 0 frames decoded; the file is truncated or damaged"


def _require_file(path: Path) -> None:
    if not path.exists():
        raise VideoError(f"{path}: no such file or folder")
    if not path.is_file():
        raise VideoError(f"{path}: a pipe or a device; expected a regular file, which can be read twice: save it first")
    if path.stat().st_size == 0:
        raise VideoError(f"{path.name}: the file is empty (0 bytes)")


def _bounds(packets: Packets, segment: Segment) -> tuple[float, float]:
    """The segment in ticks of the stream's clock."""
    stream = packets.opened.stream
    return segment.ticks(tick_seconds=float(stream.time_base or 1), origin=stream.start_time or 0)


def _find_order(packets: Packets, start: float, end: float, *, from_start: bool) -> list[int] | None:
    """List the packets; the positions among them of the frames from `start` to `end`, in presentation order.

    None where the packets' times cannot be trusted. `from_start` lists all packets up to `end`.
    """
    if not packets.opened.is_format("avi"):  # AVI stores no presentation times: those that FFmpeg reports are guesses
        for begin in [None] if from_start else _seek_points(packets, start):
            packets.scan(begin, end)
            order = presentation_order(packets.entries, start, end, was_sought=begin is not None)
            if order is not None and _are_times_of_decoding(packets):
                break
            if order is not None:
                return order
    packets.scan(None, math.inf)
    return None


def _are_times_of_decoding(packets: Packets) -> bool:
    """Whether the times are those of H.264 packets in the order of decoding, which is not that of the frames.

    ASF and MXF as FFmpeg writes them have no others: they rise from packet to packet although frames are reordered.
    """
    context, entries = packets.opened.stream.codec_context, packets.entries
    if not packets.opened.is_format("asf", "mxf") or context.name != "h264" or not context.has_b_frames:
        return False
    are_all_keyframes = all(entry.is_keyframe for entry in entries)
    return not are_all_keyframes and all((before.pts or 0) <= (after.pts or 0) for before, after in pairwise(entries))


def _chunk_times(packets: Packets) -> list[int]:
    """When the frames of an AVI are shown: in turn, one per tick, except in ticks whose chunk is empty for a dropped
    frame. Nothing for other files, or for one without such times.
    """
    times = [entry.dts for entry in packets.entries if entry.dts is not None]
    is_told = packets.opened.is_format("avi") and len(set(times)) == len(packets.entries)
    return sorted(times) if is_told else []


def _seek_points(packets: Packets, start: float) -> list[int | None]:
    """Where to start the index pass, best first; None is the start of the file."""
    stream = packets.opened.stream
    if start <= (stream.start_time or 0) or not packets.can_seek:
        return [None]
    earlier = start - _SECOND_TRY_SECONDS / float(stream.time_base or 1)
    return [int(start), int(earlier), None]


def _pixels(frame: VideoFrame, reformatter: VideoReformatter) -> Pixels:
    """RGB (H, W, 3), upright.

    Before that equal to `frame.to_ndarray(format="rgb24")`, which sets up threads and tables again for every frame.
    """
    pixels = np.asarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), np.uint8)
    is_mirrored, quarter_turns = _orientation(frame)
    if is_mirrored:
        pixels = pixels[:, ::-1]
    return np.rot90(pixels, quarter_turns) if quarter_turns else pixels


def _orientation(frame: VideoFrame) -> tuple[bool, int]:
    """How a frame becomes upright: whether it is mirrored left to right, and how often it is then turned by 90 degrees
    anticlockwise.
    """
    try:
        matrix = bytes(cast("Mapping[str, Buffer]", frame.side_data)["DISPLAYMATRIX"])
    except KeyError:
        return False, 0
    except ValueError:  # beside it, the frame has data of a type that PyAV does not know
        return False, round(frame.rotation / 90) % 4
    # A pixel (x, y) is shown at (a x + c y, b x + d y). `frame.rotation` takes mirrors for turns, and zeros as well.
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    is_mirrored = a * d < b * c
    angle = math.atan2(-b, -a) if is_mirrored else math.atan2(b, a)
    return is_mirrored, round(-2 * angle / math.pi) % 4
