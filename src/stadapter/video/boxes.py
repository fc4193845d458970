"""What the tables of an MP4 promise, checked before FFmpeg builds them in memory.

    moov / trak / mdia / hdlr                   whether a track is video or sound
                     / minf / stbl / stsz       how many samples (frames) it has; their sizes are not read
                                   / stts       how many ticks of its clock each sample lasts
                / edts / elst                   which parts of it are shown, one per row
    moof / traf / trun                          how many samples a fragment adds

FFmpeg believes these numbers and takes the memory and time that they ask for while it opens the file, where none of our
limits applies: a damaged file of a few kilobytes can ask for gigabytes and hours. Only headers are read here.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from stadapter.errors import VideoError

MAX_SAMPLES = 2**23
"""Maximum number of samples in all tracks of a file, sound included: 8.4 million, 77 hours of video at 30 frames/s.

Uncompressed sound, of which every sample counts as one, is left out, because FFmpeg reads it in larger pieces.
"""
MAX_EDITED_SAMPLES = 2**24
"""Maximum of samples times rows of edit lists: every row may show the whole track once more."""
_FEW_ROWS = 100  # of an edit list; a list with more rows than this should have fewer rows than samples
_SOUND = int.from_bytes(b"soun", "big")
_MAX_BOXES = 200_000
_PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf"})
_MAX_DEPTH = 10  # as deep as FFmpeg goes


class _Box(NamedTuple):
    """Where a box is, in bytes from the start of the file."""

    kind: bytes
    body: int
    end: int


def check_tables(path: Path) -> None:
    """Refuse an MP4 or MOV whose tables cannot be held; other kinds of files pass, as do files damaged in other ways.

    Raises:
        VideoError: more samples than `MAX_SAMPLES`, an edit list with more rows than samples, or one with so many rows
            that rows times samples exceed `MAX_EDITED_SAMPLES`.
    """
    with path.open("rb") as file:
        samples, rows = _promised(file, path.stat().st_size)
    if samples > MAX_SAMPLES:
        raise VideoError(
            f"{path.name}: {samples} samples declared, but at most {MAX_SAMPLES} are read; the file is damaged, "
            "or must be split"
        )
    if rows > max(_FEW_ROWS, samples) or (rows > 1 and samples * rows > MAX_EDITED_SAMPLES):
        raise VideoError(
            f"{path.name}: an edit list of {rows} rows over {samples} samples, more than is plausible; "
            "the file is damaged, or must be re-encoded"
        )


@dataclass
class _Track:
    """What the headers of a track say."""

    num_samples: int = 0
    is_sound: bool = False
    has_samples_of_one_tick: bool = False

    @property
    def num_held(self) -> int:
        """Samples that FFmpeg keeps one by one."""
        return 0 if self.is_sound and self.has_samples_of_one_tick else self.num_samples


def _promised(file: BinaryIO, size_bytes: int) -> tuple[int, int]:
    """Number of samples in all tracks, and rows of the longest edit list."""
    tracks = [_Track()]
    rows = 0
    for box in islice(_walk(file, 0, size_bytes), _MAX_BOXES):
        if box.kind == b"trak":
            tracks.append(_Track())
        elif box.kind == b"hdlr":
            tracks[-1].is_sound |= _number(file, box.body + 8) == _SOUND  # MOV has a second, saying where its data are
        elif box.kind == b"stts":
            tracks[-1].has_samples_of_one_tick = _number(file, box.body + 4) == _number(file, box.body + 12) == 1
        elif box.kind in (b"stsz", b"stz2"):
            tracks[-1].num_samples = _number(file, box.body + 8)
        elif box.kind == b"trun":
            tracks.append(_Track(_number(file, box.body + 4)))
        elif box.kind == b"elst":
            # A table ends with its box or with the file, whatever its row count says.
            rows = max(rows, min(_number(file, box.body + 4), (box.end - box.body) // 12))
    return sum(track.num_held for track in tracks), rows


def _walk(file: BinaryIO, begin: int, end: int, depth: int = 0) -> Iterator[_Box]:
    """The boxes between two positions, and those inside them; continues wherever FFmpeg would."""
    while begin + 8 <= end:
        file.seek(begin)
        header = file.read(16)
        size, kind = int.from_bytes(header[:4], "big"), header[4:8]
        body = begin + 8
        if size == 1 and len(header) == 16:
            size, body = struct.unpack(">Q", header[8:])[0], begin + 16
        stop = end if size == 0 else min(begin + size, end)
        if stop < body:
            return
        yield _Box(kind, body, stop)
        if kind in _PARENTS and depth < _MAX_DEPTH:
            yield from _walk(file, body, stop, depth + 1)
        begin = stop


def _number(file: BinaryIO, place: int) -> int:
    file.seek(place)
    return int.from_bytes(file.read(4), "big")
