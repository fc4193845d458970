"""The videos of a data set, opened as training opens them: what each one is, or why it cannot be read."""

import hashlib
import os
import struct
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

from stadapter.errors import VideoError
from stadapter.manifest import Entry, size_bytes
from stadapter.video import VideoInfo, VideoReader
from stadapter.video.segment import Segment

Fault = Literal["missing", "forbidden", "empty", "cut", "unreadable"]
WHOLE = Segment()


@dataclass(frozen=True)
class Video:
    """One file, or one folder of numbered images."""

    path: Path
    size_bytes: int
    """Size of the file, or of all files in the folder; -1 if it is gone."""
    info: VideoInfo | None
    """None if it cannot be read."""
    fault: Fault | None
    """Why not: gone, no permission, empty, cut off before its index, or anything else."""
    segments: dict[Segment, int | str]
    """Frames in every requested segment, or why it cannot be read, as a sentence."""
    num_decoded: int | None = None
    """Frames obtained by decoding them all; None if that was not asked for, or it cannot be read."""
    num_damaged: int = 0
    """How many of these the decoder reports as damaged."""
    content: str | None = None
    """sha256 hex of what it holds, if that was asked for."""


@dataclass(frozen=True)
class Clip:
    """One labelled clip of a data set, with its video."""

    name: str
    """Path relative to the data folder."""
    label: str | None
    classes: tuple[str, ...]
    """Its class, or those of its heads, which `label` combines; none without a label."""
    held_out: bool
    segment: Segment
    """Which part of the video it is."""
    video: Video

    @property
    def num_frames(self) -> int:
        """Frames that can be read; 0 if none can."""
        found = self.video.segments[self.segment]
        return found if isinstance(found, int) else 0

    @property
    def error(self) -> str | None:
        """Why it cannot be read, None if it can."""
        found = self.video.segments[self.segment]
        return found if isinstance(found, str) else None

    @property
    def seconds(self) -> float | None:
        """How long it is; None if that is unknown, as for images."""
        info = self.video.info
        if info is None or info.duration_seconds is None or self.error is not None:
            return None
        start, end = self.segment.bounds
        return min(end, info.duration_seconds) - start

    @property
    def title(self) -> str:
        """Its name, and its segment if it is one."""
        return self.segment.titled(self.name)


def examine_all(
    entries: Sequence[tuple[Entry, bool]],
    *,
    deep: bool,
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Clip, ...]:
    """Open the videos of these pairs (entry, is held out), each once.

    Contents are hashed only if another video has the same size. With `deep` every frame is decoded.
    """
    segments: dict[Path, set[Segment]] = {}
    for entry, _ in entries:
        segments.setdefault(entry.path, set()).add(entry.segment)
    rates = {entry.path: entry.frames_per_second for entry, _ in entries}
    sizes = {path: size_bytes(path) for path in segments}
    num_alike = Counter(sizes.values())

    def examine_one(path: Path) -> Video:
        in_order = sorted(segments[path], key=attrgetter("bounds"))
        is_hashed = num_alike[sizes[path]] > 1
        return examine(path, in_order, deep=deep, hashed=is_hashed, frames_per_second=rates[path])

    videos: dict[Path, Video] = {}
    with closing(_mapped(examine_one, segments, num_workers)) as results:
        for done, video in enumerate(results, start=1):
            videos[video.path] = video
            if progress is not None:
                progress(done, len(segments))
    return tuple(
        Clip(entry.name, entry.label, entry.classes, held_out, entry.segment, videos[entry.path])
        for entry, held_out in entries
    )


def examine(
    path: Path,
    segments: Sequence[Segment] = (WHOLE,),
    *,
    deep: bool = False,
    hashed: bool = False,
    frames_per_second: float | None = None,
) -> Video:
    """Open one video and each of the segments; never raises for what is wrong with it.

    `frames_per_second` is the rate of a folder of images, which cannot be cut without it.
    """
    size = size_bytes(path)
    num_decoded, num_damaged = None, 0
    try:
        with VideoReader(path) as reader:
            info = reader.info()
            if deep:
                num_decoded, num_damaged = reader.decode_all()
    except (VideoError, OSError) as error:
        return Video(path, size, None, _fault(path, size), {segment: str(error) for segment in segments})
    found = {
        segment: info.num_frames if segment.is_whole else _num_frames(path, segment, frames_per_second)
        for segment in segments
    }
    content = content_hash(path) if hashed else None
    return Video(path, size, info, None, found, num_decoded, num_damaged, content)


def content_hash(path: Path) -> str | None:
    """sha256 hex of a file, or of the hashes of the files in a folder by name; None if it cannot be read."""
    try:
        if path.is_dir():
            files = sorted(item for item in path.iterdir() if not item.name.startswith("."))
            return hashlib.sha256("".join(_file_hash(file) for file in files).encode()).hexdigest()
        return _file_hash(path)
    except OSError:
        return None


def _file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mapped(function: Callable[[Path], Video], paths: Iterable[Path], num_workers: int) -> Generator[Video, None, None]:
    """The results in order. FFmpeg runs without Python's lock, so threads share the work."""
    if num_workers <= 1:
        yield from map(function, paths)
        return
    with ThreadPoolExecutor(num_workers) as pool:
        yield from pool.map(function, paths)


def _num_frames(path: Path, segment: Segment, frames_per_second: float | None) -> int | str:
    start, end = segment.start_seconds, segment.end_seconds
    try:
        with VideoReader(path, start, end, frames_per_second=frames_per_second) as reader:
            return reader.num_frames
    except (VideoError, OSError) as error:
        return str(error)


def _fault(path: Path, size: int) -> Fault:
    try:
        os.stat(path)
    except PermissionError:
        return "forbidden"
    except OSError:
        return "missing"
    if size == 0:
        return "empty"
    if not os.access(path, os.R_OK):
        return "forbidden"
    return "cut" if _is_cut(path) else "unreadable"


def _is_cut(path: Path) -> bool:
    """Whether an MP4 or MOV ends before the end of its index, the box moov: boxes are a size, a name and content."""
    names = set()
    try:
        with open(path, "rb") as file:
            position, end = 0, os.fstat(file.fileno()).st_size
            while position + 8 <= end:
                file.seek(position)
                size, name = struct.unpack(">I4s", file.read(8))
                if size == 1:
                    size = int.from_bytes(file.read(8), "big")
                names.add(name)
                position = position + size if size >= 8 else end  # 0: up to the end of the file
    except (OSError, struct.error):
        return False
    return b"ftyp" in names and (b"moov" not in names or position > end)
