"""The compressed packets of a video: listed without decoding, and decoded from any keyframe onwards."""

from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import NamedTuple, TypeAlias

import av
from av.packet import Packet as AnyPacket
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stadapter.errors import VideoError
from stadapter.video.container import Opened, open_container
from stadapter.video.limits import MAX_FRAMES, Deadline

Packet: TypeAlias = "AnyPacket[VideoStream]"

# Only these decoders can be told to leave out frames that no other frame needs.
_CODECS_THAT_SKIP = frozenset({"h264", "hevc", "mpeg4"})
# Compressed packets up to this size stay in memory between the index pass and decoding; in larger files we seek.
_MAX_HELD_BYTES = 64 * 2**20
# Roughly what a packet takes in memory besides its data.
_HELD_OVERHEAD_BYTES = 512
# Containers that report the same after a seek as without one; the others are read from their start.
_CONTAINERS_THAT_SEEK = frozenset({"mov", "matroska", "mpegts"})


class Entry(NamedTuple):
    """One compressed packet of a list in decoding order."""

    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_shown: bool
    is_corrupt: bool


class Packets:
    """The packets of an open file, which can be gone through as often as needed.

    `opened` is re-opened by every rewind: what is taken from it is valid until packets are next asked for.
    """

    def __init__(self, path: Path, deadline: Deadline, *, at_a_glance: bool, opened: Opened | None = None) -> None:
        self._path = path
        self._deadline = deadline
        self._is_fresh = opened is None
        self._held: list[Packet] | None = None
        self.entries: list[Entry] = []
        self.opened = opened if opened is not None else open_container(path, at_a_glance=at_a_glance)

    @property
    def can_seek(self) -> bool:
        """Whether reading may begin anywhere other than at the start."""
        return self.opened.is_format(*_CONTAINERS_THAT_SEEK)

    def scan(self, begin: int | None, end: float) -> None:
        """List in `entries` the packets from the keyframe at or before `begin` up to those decoded before `end`.

        Both are ticks of the stream's clock; None is the start of the file.

        Raises VideoError for more than `MAX_FRAMES` frames, or when the time is up.
        """
        entries: list[Entry] = []
        held: list[Packet] = []
        codec = self.opened.stream.codec_context.name
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
                    "or must be split"
                )
            num_bytes += packet.size + _HELD_OVERHEAD_BYTES
            if num_bytes <= _MAX_HELD_BYTES:
                held.append(packet)
            else:
                held.clear()
        self.entries = entries
        self._held = held if num_bytes <= _MAX_HELD_BYTES else None

    def decode(
        self, first: int = 0, stop: int | None = None, *, wanted_pts: Container[int | None] | None = None
    ) -> Iterator[VideoFrame]:
        """Decode packets number `first` to `stop` of the list from a clean start; without numbers, all of them.

        Frames outside `wanted_pts` may be left out.

        Raises VideoError when the time is up.
        """
        packets = self._fetch(first, len(self.entries) if stop is None else stop)
        context = self.opened.stream.codec_context
        context.flush_buffers()
        can_skip = context.name in _CODECS_THAT_SKIP
        for packet in packets:
            self._deadline.check()
            is_wanted = wanted_pts is None or not can_skip or packet.pts in wanted_pts
            context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            yield from _decoded(context, packet)
        yield from _decoded(context, None)

    def release(self) -> Opened:
        """Hand over the open file; no packets can be asked for afterwards."""
        self._held = None
        return self.opened

    def close(self) -> None:
        """Close the file."""
        self.release().container.close()

    def _fetch(self, first: int, stop: int) -> Iterable[Packet]:
        """Packets number `first` to `stop` of the list, from memory or by re-reading the file."""
        if self._held is not None:
            return self._held[first:stop]
        return islice(self._demux_from(self.entries[first]), stop - first)

    def _demux(self, begin: int | None) -> Iterator[Packet]:
        """Packets from around `begin` onwards, or all of them."""
        if begin is None and not self._is_fresh:
            # Re-opening is the only rewind that every container gets right.
            self.opened.container.close()
            self.opened = open_container(self._path, at_a_glance=self.opened.at_a_glance)
        self._is_fresh = False
        container, stream, _ = self.opened
        try:
            if begin is not None:
                container.seek(begin, stream=stream)
            for packet in container.demux(stream):
                self._deadline.check()
                if packet.size:
                    yield packet
        except av.FFmpegError:
            return  # cut off here: what came before can still be decoded

    def _demux_from(self, target: Entry) -> Iterator[Packet]:
        for begin in (target.pts, None) if self.can_seek else (None,):
            packets = self._demux(begin)
            for packet in packets:
                if (packet.pts, packet.dts) == (target.pts, target.dts):
                    return chain([packet], packets)
                if begin is not None and (packet.dts or 0) > (target.dts or 0):
                    break  # landed too late
        return iter(())


def presentation_order(entries: Sequence[Entry], start: float, end: float, *, was_sought: bool) -> list[int] | None:
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
    # Frames shown before the first keyframe may never come out, which would shift all later numbers.
    if order and (entries[order[0]].pts or 0) < first:
        return None
    return order


def runs(entries: Sequence[Entry], positions: Iterable[int]) -> list[tuple[int, int]]:
    """Ranges of packets to feed, each from a keyframe, so that the packets at `positions` are decoded.

    `positions` come in presentation order. A frame whose keyframe was already fed needs no new start.
    """
    keyframes = [position for position, entry in enumerate(entries) if entry.is_keyframe]
    found: list[tuple[int, int]] = []
    for position in positions:
        start = _start_of(entries, keyframes, position)
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], position + 1))
        else:
            found.append((start, position + 1))
    return found


def _start_of(entries: Sequence[Entry], keyframes: Sequence[int], position: int) -> int:
    """The last keyframe that is both decoded and shown no later than the packet at `position`."""
    shown_at = entries[position].pts or 0
    earlier = keyframes[: bisect_right(keyframes, position)]
    return next((key for key in reversed(earlier) if (entries[key].pts or 0) <= shown_at), 0)


def _decoded(context: VideoCodecContext, packet: "Packet | None") -> list[VideoFrame]:
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return []  # a damaged packet gives no frame; counting shows how many come out


def _entry(packet: Packet, codec: str) -> Entry:
    # VP8 stores frames that are only references in separate packets; bit 4 says whether a frame is shown.
    is_hidden = codec == "vp8" and not bytes(packet)[0] >> 4 & 1
    return Entry(packet.pts, packet.dts, packet.is_keyframe, not packet.is_discard and not is_hidden, packet.is_corrupt)
