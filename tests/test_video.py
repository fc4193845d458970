"""Frames read by number equal those of a full decode, in every container and road; bad videos say what is wrong."""

import gc
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from av.stream import Disposition
from PIL import Image
from PIL.ExifTags import Base

import damage
from stadapter.errors import SettingsError, VideoError
from stadapter.video import LeftOpen, VideoInfo, VideoReader, is_video, probe, read_frames
from stadapter.video import packets as video_packets
from stadapter.video.file import VideoFile
from stadapter.video.limits import MAX_SECONDS
from stadapter.video.packets import Packets
from stadapter.video.segment import Segment

Frames = npt.NDArray[np.uint8]

# container -> codec, encoder options; each has frames that are stored in another order than shown where it can
CLIPS = {
    "h264.mp4": ("libx264", {"g": "12", "bf": "3"}),
    "h264.mkv": ("libx264", {"g": "12", "bf": "3"}),
    "open_gop.ts": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "intra_refresh.ts": ("libx264", {"x264-params": "intra-refresh=1:keyint=20"}),
    "pyramid.mp4": ("libx264", {"x264-params": "bframes=8:b-pyramid=strict:ref=5"}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=12:bframes=3:log-level=none"}),
    "hidden_frames.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "100k"}),
    "vp9.webm": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "realtime"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    "no_times.h264": ("libx264", {"g": "12", "bf": "3"}),
}


def write_video(
    path: Path,
    num_frames: int = 50,
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A drifting random pattern, 64 x 48 pixels, 25 frames per second."""
    pattern = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {"g": "12", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(num_frames):
            top, left = index % 40, 2 * index % 100
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(pattern[top : top + 48, left : left + 64]), format="rgb24"
            )
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_at(path: Path, ticks: list[int], *, codec: str = "libx264", num_lost: int = 0) -> Path:
    """Noise, 64 x 48 pixels, frames shown at these milliseconds; the first `num_lost` packets are left out."""
    noise = np.random.default_rng(0).integers(0, 256, (len(ticks), 48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=25, options={"g": "12"} if codec == "wmv2" else {"g": "12", "bf": "2"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        packets = []
        for tick, pixels in zip(ticks, noise, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            packets += stream.encode(frame)
        container.mux([*packets, *stream.encode(None)][num_lost:])
    return path


def decode_everything(path: Path) -> tuple[Frames, list[float]]:
    """All frames (T, H, W, 3), upright, and their times in seconds from the start."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        origin, tick_seconds = stream.start_time or 0, float(stream.time_base or 1)
        frames, seconds = [], []
        for frame in container.decode(stream):
            frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
            seconds.append(((frame.pts or 0) - origin) * tick_seconds)
    return np.stack(frames), seconds


def index_sets(num_frames: int) -> list[list[int]]:
    """Every frame, the ends, regular and random sets; unsorted and repeated."""
    rng = np.random.default_rng(0)
    random_sets = [rng.integers(0, num_frames, count).tolist() for count in (1, 1, 3, 8, 16)]
    return [list(range(num_frames)), [num_frames - 1, 0, 0], list(range(0, num_frames, 7)), *random_sets]


def assert_exact(path: Path) -> None:
    expected, _ = decode_everything(path)
    with VideoReader(path) as reader:
        assert reader.num_frames == len(expected)
        for indices in index_sets(len(expected)):
            frames = reader.read(indices)
            assert frames.dtype == torch.uint8
            assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected[indices]), indices


@pytest.fixture(params=["held in memory", "read again from the file"])
def packets(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test as for small files and as for large ones."""
    if request.param == "read again from the file":
        monkeypatch.setattr("stadapter.video.packets._MAX_HELD_BYTES", 100)


@pytest.mark.usefixtures("packets")
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_exact_in_every_container(name: str, tmp_path: Path) -> None:
    codec, options = CLIPS[name]
    assert_exact(write_video(tmp_path / name, codec=codec, options=options))


def test_frames_are_exact_in_every_awkward_real_file(shared: Path) -> None:
    decodable = [path for path in sorted((shared / "videos/odd").iterdir()) if path.name != "trunc.mp4"]
    assert len(decodable) == 12
    for path in decodable:
        assert_exact(path)


def test_a_rotated_video_comes_upright(shared: Path) -> None:
    info = probe(shared / "videos/odd/rot.mp4")
    assert (info.width, info.height) == (240, 320)


MATRICES = {  # a, b, c, d: a pixel (x, y) is shown at (a x + c y, b x + d y)
    "upright": ((1, 0, 0, 1), lambda frame: frame),
    "turned to the right": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "upside down": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "turned to the left": ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
    "left to right": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
    "top to bottom": ((1, 0, 0, -1), lambda frame: frame[::-1]),
    "across one diagonal": ((0, 1, 1, 0), lambda frame: frame.swapaxes(0, 1)),
    "across the other diagonal": ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).swapaxes(0, 1)),
    "zeros": ((0, 0, 0, 0), lambda frame: frame),  # as some writers leave it
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_frame_is_turned_and_mirrored_as_its_file_says(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 3)
    expected, _ = decode_everything(path)
    (a, b, c, d), shown = MATRICES[name]
    nodes = damage.parse_mp4(path.read_bytes())
    (header,) = damage.named(nodes, b"tkhd")
    matrix = struct.pack(">9i", *(65536 * value for value in (a, b, 0, c, d, 0, 0, 0)), 1 << 30)
    header.payload = header.payload[:40] + matrix + header.payload[76:]
    path.write_bytes(damage.write_mp4(nodes))
    frame = read_frames(path, [2])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(frame, shown(expected[2]))
    info = probe(path)
    assert (info.height, info.width) == frame.shape[:2]


@pytest.mark.usefixtures("packets")
@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    ("start_seconds", "end_seconds"), [(0.0, 0.4), (None, 0.5), (1.0, None), (0.72, 1.33), (1.2, 99.0)]
)
def test_a_segment_holds_the_frames_shown_in_it(
    name: str, start_seconds: float | None, end_seconds: float | None, tmp_path: Path
) -> None:
    codec, options = CLIPS[name]
    path = write_video(tmp_path / name, codec=codec, options=options)
    expected, _ = decode_everything(path)
    first, last = (
        round(seconds * 25, 6) for seconds in (start_seconds or 0, math.inf if end_seconds is None else end_seconds)
    )
    shown = [index for index in range(len(expected)) if first <= index < last]
    with VideoReader(path, start_seconds, end_seconds) as reader:
        assert reader.num_frames == len(shown)
        frames = reader.read([reader.num_frames - 1, 0])
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected[[shown[-1], shown[0]]])


def test_a_segment_of_a_file_that_tells_other_times_after_a_seek_holds_the_same_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mpg", 60, codec="mpeg2video", options={"g": "12", "bf": "2"})
    expected, _ = decode_everything(path)
    frames = read_frames(path, range(5), start_seconds=2, end_seconds=2.2)
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected[50:55])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_segment_where_decoders_start_late_holds_the_same_frames(suffix: str, tmp_path: Path) -> None:
    options = {"x264-params": "intra-refresh=1:keyint=30:bframes=0"}  # one keyframe, then points to recover from
    path = write_video(tmp_path / f"clip.{suffix}", 300, options=options)
    expected, _ = decode_everything(path)
    for first, last in ((110, 135), (125, 300), (230, 260)):
        with VideoReader(path, first / 25, last / 25) as reader:
            assert reader.num_frames == last - first
            for indices in (range(0, last - first, 5), range(last - first), [3]):
                frames = reader.read(indices).permute(0, 2, 3, 1).numpy()
                assert np.array_equal(frames, expected[first:last][list(indices)]), (first, indices)


@pytest.mark.parametrize("name", ["clip.asf", "clip.mxf"])
def test_frames_come_in_the_order_shown_where_only_that_of_decoding_is_told(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name)
    expected, seconds = decode_everything(path)
    assert seconds != sorted(seconds)
    assert_exact(path)
    frames = read_frames(path, range(20), start_seconds=1, end_seconds=1.8)
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected[25:45])


@pytest.mark.parametrize("num_even", [20, 50])
def test_a_segment_of_uneven_times_of_decoding_is_cut_by_time(num_even: int, tmp_path: Path) -> None:
    """Frames 40 ms apart, then 200 ms: which of them a second shows is not told by their number and a mean rate."""
    ticks = [40 * index for index in range(num_even)]
    ticks += [ticks[-1] + 200 * (index + 1) for index in range(100 - num_even)]
    path = write_at(tmp_path / "clip.asf", ticks)
    expected, _ = decode_everything(path)
    start = ticks[num_even] / 1000 + 2
    first = next(index for index, tick in enumerate(ticks) if tick / 1000 >= start)
    with VideoReader(path, start, start + 2) as reader:
        assert abs(reader.num_frames - 10) <= 2  # 200 ms apart; the file's times are to a frame or two
        pixels = reader.read([0]).permute(0, 2, 3, 1).numpy()[0]
    nearest = int(np.abs(expected.astype(int) - pixels).sum((1, 2, 3)).argmin())
    assert abs(nearest - first) <= 2


UNEVEN = [40 * index if index < 20 else 800 + 200 * (index - 20) for index in range(60)]
COUNTED = {
    "twice.mkv": ("libx264", [*UNEVEN[:30], UNEVEN[29], *UNEVEN[30:]], 0),  # a time that comes twice
    "begun_late.flv": ("libx264", UNEVEN, 5),  # before the first keyframe nothing is shown
    "dropped.avi": ("wmv2", UNEVEN, 0),  # an AVI has an empty chunk for each tick without a frame
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_segment_of_frames_that_must_be_counted_is_cut_by_their_times(name: str, tmp_path: Path) -> None:
    codec, ticks, num_lost = COUNTED[name]
    path = write_at(tmp_path / name, ticks, codec=codec, num_lost=num_lost)
    expected, seconds = decode_everything(path)
    assert len(seconds) > 40
    assert seconds == sorted(seconds)
    assert_exact(path)
    for start, end in ((0.1, 0.5), (0.5, 3.1), (3, 5), (5, None)):
        inside = [index for index, time in enumerate(seconds) if start <= time < (end or 1000)]
        with VideoReader(path, start, end) as reader:
            assert reader.num_frames == len(inside), (start, end)
            frames = reader.read(range(len(inside))).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(frames, expected[inside]), (start, end)
    info = probe(path)
    assert info.has_variable_rate
    assert info.duration_seconds == pytest.approx(seconds[-1] + 0.2, abs=0.01)  # most frames last 0.2 s


def test_frames_that_an_edit_list_leaves_out_do_not_exist(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    nodes = damage.parse_mp4(path.read_bytes())
    (edits,) = damage.named(nodes, b"elst")
    (start,) = struct.unpack_from(">i", edits.payload, 12)
    edits.payload = edits.payload[:12] + struct.pack(">i", start + 10 * 512) + edits.payload[16:]
    path.write_bytes(damage.write_mp4(nodes))
    expected, _ = decode_everything(path)
    assert len(expected) == 40
    assert_exact(path)


def test_segments_of_uneven_frame_times_are_cut_by_time(shared: Path) -> None:
    path = shared / "videos/odd/vfr.mp4"
    expected, seconds = decode_everything(path)
    shown = [index for index, time in enumerate(seconds) if 3 <= time < 9]
    frames = read_frames(path, range(len(shown)), start_seconds=3, end_seconds=9)
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), expected[shown])


def count_fed_packets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the skip setting of each packet given to a decoder."""
    fed: list[str] = []
    feed = video_packets._decoded

    def spy(context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
        if packet is not None:
            fed.append(context.skip_frame)
        return feed(context, packet)

    monkeypatch.setattr(video_packets, "_decoded", spy)
    return fed


@pytest.mark.usefixtures("packets")
def test_one_frame_costs_no_more_than_its_group_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", 120)
    fed = count_fed_packets(monkeypatch)
    read_frames(path, [100])
    assert len(fed) <= 12
    assert fed.count("DEFAULT") == 1


@pytest.mark.parametrize(
    ("codec", "options"), [("libx264", {"g": "12", "bf": "3"}), CLIPS["hevc.mp4"], ("mpeg4", {"g": "12", "bf": "2"})]
)
def test_frames_that_nobody_needs_are_not_decoded(
    codec: str, options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 60, codec=codec, options=options)
    fed = count_fed_packets(monkeypatch)
    feed, came = video_packets._decoded, []

    def spy(context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame]:
        frames = feed(context, packet)
        came.extend(frames)
        return frames

    monkeypatch.setattr(video_packets, "_decoded", spy)
    read_frames(path, [10, 22, 34, 46])
    assert len(came) <= 0.7 * len(fed)


def test_neighbouring_frames_are_decoded_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", 120)
    fed = count_fed_packets(monkeypatch)
    read_frames(path, range(120))
    assert len(fed) == 120


def test_a_segment_of_a_long_video_is_found_without_reading_all_of_it(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 500)
    with VideoReader(path, 10, 11) as reader:
        assert reader.num_frames == 25
        assert len(reader._source._packets.entries) < 50


@pytest.mark.parametrize(
    ("name", "container_options"),
    [
        ("faststart.mp4", {"movflags": "faststart"}),
        ("clip.mkv", {}),
        ("clip.ts", {}),
        ("clip.avi", {}),
        ("clip.flv", {}),
    ],
)
def test_a_truncated_video_gives_the_frames_that_came_and_says_how_many(
    name: str, container_options: dict[str, str], tmp_path: Path
) -> None:
    whole = write_video(tmp_path / name, container_options=container_options)
    expected, _ = decode_everything(whole)
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    with VideoReader(cut) as reader:
        assert 5 < reader.num_frames < 45
        frames = reader.read(range(reader.num_frames)).permute(0, 2, 3, 1).numpy()
        # The packet that was cut through, and frames that refer to it, cannot be whole.
        assert np.array_equal(frames[:-5], expected[: len(frames) - 5])
        with pytest.raises(VideoError, match=f"frame 49 asked for, but there are {reader.num_frames} frames"):
            reader.read([49])


def damage_packets(path: Path, numbers: range) -> None:
    with av.open(str(path)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in places[numbers.start : numbers.stop]:
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)


def test_a_video_damaged_in_the_middle_is_counted_by_what_decodes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", codec="mpeg4", options={"g": "12"})
    damage_packets(path, range(20, 24))
    with VideoReader(path) as reader:
        promised = reader.num_frames
        assert promised == 50
        with pytest.raises(VideoError, match=r"clip\.avi: 46 frames decoded, frame 49 asked for"):
            reader.read([49])
        assert reader.num_frames == 46
        assert len(reader.read(range(reader.num_frames))) == reader.num_frames


def test_after_a_reading_that_came_short_every_number_is_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", codec="mpeg4", options={"g": "12"})
    damage_packets(path, range(20, 24))
    with VideoReader(path) as reader:
        with pytest.raises(VideoError, match="46 frames decoded, frame 49 asked for"):
            reader.read(range(50))
        whole = reader.read(range(46))
        assert torch.equal(reader.read([30, 45]), whole[[30, 45]])


def test_a_frame_that_comes_damaged_is_that_of_a_full_decode_and_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[20:22]:
        data[position + size // 2 : position + size] = bytes(size - size // 2)
    path.write_bytes(data)
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1  # what is missing is made up otherwise by several
        frames = list(container.decode(video=0))
    (damaged,) = [index for index, frame in enumerate(frames) if frame.is_corrupt]
    with VideoReader(path) as reader:
        assert reader.decode_all() == (50, 1)
        reader.read([damaged + 12])
        assert not reader.has_lost_frames
        (frame,) = reader.read([damaged]).permute(0, 2, 3, 1).numpy()
        assert reader.has_lost_frames
    assert np.array_equal(frame, frames[damaged].to_ndarray(format="rgb24"))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])  # of which one shows nothing before the first keyframe
def test_a_recording_that_begins_between_two_keyframes_is_read_as_it_decodes(codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.ts", codec=codec, options={"g": "12"})
    content = path.read_bytes()
    cut = len(content) // 10 // 188 * 188
    path.write_bytes(content[: 3 * 188] + content[cut:])  # the tables of the programme stay
    with av.open(str(path)) as container:
        assert not next(packet for packet in container.demux(video=0) if packet.size).is_keyframe
    assert_exact(path)


def test_a_file_whose_index_is_cut_off_says_that_no_frame_came(shared: Path) -> None:
    with pytest.raises(VideoError, match=r"trunc\.mp4: 0 frames decoded"):
        read_frames(shared / "videos/odd/trunc.mp4", [0])


def text_file(folder: Path) -> Path:
    path = folder / "notes.mp4"
    path.write_text("not a video at all")
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "empty.mp4"
    path.touch()
    return path


def folder_without_images(folder: Path) -> Path:
    path = folder / "nothing"
    path.mkdir()
    (path / "readme.txt").touch()
    return path


def sound_only(folder: Path) -> Path:
    path = folder / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def sound_with_a_cover(folder: Path) -> Path:
    path = folder / "cover.mp4"
    with av.open(str(path), "w") as container:
        sound, cover = container.add_stream("aac", rate=8000), container.add_stream("png")
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for stream, last in ((sound, frame), (sound, None), (cover, None)):
            container.mux(stream.encode(last))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "gone.mp4", "gone.mp4: no such file or folder"),
        (empty_file, "empty.mp4: the file is empty"),
        (text_file, "notes.mp4: 0 frames decoded: not a video"),
        (folder_without_images, "nothing: a folder without numbered"),
        (sound_only, "sound.wav: the file holds no video"),
        (sound_with_a_cover, "cover.mp4: the file holds no video"),
    ],
)
def test_what_is_no_video_is_refused_by_name(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=message):
        VideoReader(make(tmp_path))


def test_numbers_outside_the_video_are_refused_with_the_counts(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    with pytest.raises(VideoError, match=r"frame 7 asked for, but there are 5 frames \(0 to 4\)"):
        read_frames(path, [0, 7])
    with pytest.raises(VideoError, match="frame -1 asked for"):
        read_frames(path, [-1])
    with pytest.raises(VideoError, match="no frame numbers"):
        read_frames(path, [])


def test_a_segment_without_frames_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    with pytest.raises(VideoError, match="no frame between start_seconds=7"):
        VideoReader(path, 7, 8)
    for bounds in ((2, 1), (1, 1), (-1, 1)):
        with pytest.raises(VideoError, match="0 <= start < end"):
            VideoReader(path, *bounds)


def write_images(folder: Path, suffix: str, numbers: range) -> list[Frames]:
    folder.mkdir()
    images = []
    for number in numbers:
        pixels = np.full((6, 8, 3), number * 20, np.uint8)
        Image.fromarray(pixels).save(folder / f"frame_{number}{suffix}")
        images.append(pixels)
    return images


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_of_numbered_images_is_a_video_in_the_order_of_the_numbers(suffix: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "frames", suffix, range(1, 12))  # frame_10 sorts before frame_2 as text
    frames = read_frames(tmp_path / "frames", [10, 1, 1, 0])
    assert frames.shape == (4, 3, 6, 8)
    expected = np.stack([images[index] for index in (10, 1, 1, 0)])
    assert np.abs(frames.permute(0, 2, 3, 1).numpy().astype(int) - expected).max() <= 1
    info = probe(tmp_path / "frames")
    assert (info.num_frames, info.width, info.height, info.codec) == (11, 8, 6, suffix[1:])
    assert info.duration_seconds is info.frames_per_second is None


@pytest.mark.parametrize(
    ("mode", "suffix"), [("1", "png"), ("L", "png"), ("LA", "png"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg")]
)
def test_images_of_any_colours_are_read_as_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    (tmp_path / "frames").mkdir()
    files = [tmp_path / "frames" / f"{number}.{suffix}" for number in range(2)]
    for file, picture in zip(files, pixels, strict=True):
        Image.fromarray(picture).convert(mode).save(file)
    frames = read_frames(tmp_path / "frames", [0, 1])
    assert frames.shape == (2, 3, 6, 8)
    for file, frame in zip(files, frames, strict=True):
        assert np.array_equal(frame.permute(1, 2, 0), np.asarray(Image.open(file).convert("RGB")))


def test_grey_images_of_16_bits_are_read_by_their_high_byte(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    grey = np.array([[0, 255, 256, 0x4000], [0x8000, 0xBF00, 0xFFFE, 0xFFFF]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "frames" / "depth_1.png")
    (frame,) = read_frames(tmp_path / "frames", [0])
    assert frame.shape == (3, 2, 4)
    assert frame[0].tolist() == [[0, 0, 1, 64], [128, 191, 255, 255]]
    assert torch.equal(frame[0], frame[1])
    assert torch.equal(frame[0], frame[2])


def test_an_image_of_another_size_is_resized_to_the_first(tmp_path: Path) -> None:
    images = write_images(tmp_path / "frames", ".png", range(2))
    Image.fromarray(images[1].repeat(2, 0).repeat(2, 1)).save(tmp_path / "frames" / "frame_1.png")
    frames = read_frames(tmp_path / "frames", [0, 1])
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), np.stack(images))


def test_a_folder_of_images_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    write_images(tmp_path / "frames", ".png", range(3))
    with pytest.raises(VideoError, match="no frame rate"):
        VideoReader(tmp_path / "frames", 1, 2)
    (tmp_path / "frames" / "frame_1.png").write_bytes(b"broken")
    with pytest.raises(VideoError, match=r"frames/frame_1\.png: not a readable image"):
        read_frames(tmp_path / "frames", [1])
    (tmp_path / "frames" / "flow_1.png").touch()
    with pytest.raises(VideoError, match="2 image sequences"):
        VideoReader(tmp_path / "frames")


def test_a_part_of_a_folder_of_images_goes_to_its_last_one_and_not_beyond(tmp_path: Path) -> None:
    images = write_images(tmp_path / "frames", ".png", range(5))
    for start, end, shown in ((0.4, None, images[2:]), (0.6, 1, images[3:]), (0, 9, images), (0.3, 0.5, images[2:3])):
        with VideoReader(tmp_path / "frames", start, end, frames_per_second=5) as reader:
            assert reader.num_frames == len(shown), (start, end)
            frames = reader.read(range(len(shown))).permute(0, 2, 3, 1).numpy()
            assert np.array_equal(frames, np.stack(shown))
    with pytest.raises(VideoError, match="frames: no frame between start_seconds=1 and end_seconds=None"):
        VideoReader(tmp_path / "frames", 1, frames_per_second=5)
    with VideoReader(tmp_path / "frames", 0) as reader:  # all of it, for which no rate is needed
        assert reader.num_frames == 5


def test_what_a_mac_notes_beside_an_image_is_no_image(tmp_path: Path) -> None:
    write_images(tmp_path / "frames", ".png", range(2))
    for number in range(2):
        (tmp_path / "frames" / f"._frame_{number}.png").write_bytes(b"Mac OS X")
    assert is_video(tmp_path / "frames")
    assert len(read_frames(tmp_path / "frames", [0, 1])) == 2


def test_pictures_and_masks_of_the_same_numbers_are_no_video(tmp_path: Path) -> None:
    write_images(tmp_path / "frames", ".jpg", range(3))
    (tmp_path / "frames" / "frame_0.png").touch()
    with pytest.raises(VideoError, match=r"two images are number 0, frame_0\.jpg and frame_0\.png; keep one"):
        VideoReader(tmp_path / "frames")


def test_a_photograph_comes_upright(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[Base.Orientation] = 6  # to be shown a quarter turn clockwise
    (tmp_path / "frames").mkdir()
    Image.fromarray(pixels).save(tmp_path / "frames" / "0.png", exif=exif)
    assert np.array_equal(read_frames(tmp_path / "frames", [0])[0].permute(1, 2, 0).numpy(), np.rot90(pixels, -1))


def png_header(width: int, height: int) -> bytes:
    """The start of a PNG that says it is as large as this."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    framed = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("side", [8_192, 12_000, 30_000])  # below Pillow's warning, below its error, and above
def test_an_image_too_large_to_decode_is_refused_by_name(side: int, tmp_path: Path) -> None:
    write_images(tmp_path / "frames", ".png", range(2))
    (tmp_path / "frames" / "frame_1.png").write_bytes(png_header(side, side))
    message = rf"^frames/frame_1\.png: not a readable image \(frames of {side} x {side} pixels; at most 35651584 pixels"
    with pytest.raises(VideoError, match=message):
        read_frames(tmp_path / "frames", [1])


def test_a_file_that_is_neither_jpeg_nor_png_is_no_image_whatever_its_name(tmp_path: Path) -> None:
    """Pillow would tell PostScript by its content, and start a program to draw it."""
    write_images(tmp_path / "frames", ".png", range(2))
    (tmp_path / "frames" / "frame_1.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    )
    with pytest.raises(VideoError, match=r"frames/frame_1\.png: not a readable image \(not a JPEG file"):
        read_frames(tmp_path / "frames", [1])


def peak_bytes() -> int:
    resource = pytest.importorskip("resource")
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


@pytest.mark.parametrize(
    "name", ["h264.mp4", "open_gop.ts", "no_times.h264", "hevc.mp4", "vp9.webm", "hidden_frames.webm"]
)
def test_frames_too_large_to_decode_are_refused_before_they_take_memory(name: str, tmp_path: Path) -> None:
    codec, options = CLIPS[name]
    path = write_video(tmp_path / name, codec=codec, options=options)
    good = path.read_bytes()
    path.write_bytes(damage.declare_pictures(good, 16_000, 16_000))
    assert path.read_bytes() != good
    before = peak_bytes()
    with pytest.raises(VideoError, match=f"^{re.escape(name)}: (frames of 16000 x 16000 pixels|0 frames decoded)"):
        read_frames(path, [0])
    assert peak_bytes() - before < 200e6  # a single frame would take 384 MB


def test_a_video_of_too_many_frames_is_refused_and_its_segments_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 50)
    monkeypatch.setattr("stadapter.video.packets.MAX_FRAMES", 49)
    with pytest.raises(VideoError, match=r"clip\.mp4: more than 49 frames"):
        VideoReader(path)
    with VideoReader(path, 0, 1) as reader:
        assert reader.num_frames == 25


class Clock:
    """Stands in for the module `time`: the processor works for a share of the time that passes at every look."""

    def __init__(self, *, step_seconds: float, share: float = 1.0) -> None:
        self.now, self.step_seconds, self.share = 0.0, step_seconds, share

    def monotonic(self) -> float:
        self.now += self.step_seconds
        return self.now

    def thread_time(self) -> float:
        return self.now * self.share


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_video_that_takes_too_long_is_given_up_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / name, 50)
    with VideoReader(path) as reader:
        monkeypatch.setattr("stadapter.video.limits.time", Clock(step_seconds=1000))
        for read in (lambda: reader.read([40]), reader.info, reader.decode_all):
            with pytest.raises(VideoError, match=f"^{name}: gave up after 20 s of processor time"):
                read()
    with pytest.raises(VideoError, match=f"^{name}: gave up after 20 s"):
        VideoReader(path)


def test_every_reading_has_the_whole_time_and_larger_files_have_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 20)
    clock = Clock(step_seconds=0)
    monkeypatch.setattr("stadapter.video.limits.time", clock)
    with VideoReader(path) as reader:
        for _ in range(3):
            clock.now += MAX_SECONDS
            assert len(reader.read([0, 19])) == 2
    with path.open("ab") as file:
        file.truncate(path.stat().st_size + 2**20)
    clock.step_seconds = 1000
    with pytest.raises(VideoError, match="gave up after 30 s"):
        VideoReader(path)


def test_time_in_which_the_processor_does_something_else_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 20)
    monkeypatch.setattr("stadapter.video.limits.time", Clock(step_seconds=15, share=0.01))
    assert len(read_frames(path, [0, 19])) == 2


def test_a_colon_in_a_name_is_not_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "clip.mp4", 5).rename("12:30.mp4")
    assert len(read_frames("12:30.mp4", [4])) == 1


def test_a_title_that_is_no_text_is_no_reason_to_refuse_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    with av.open(str(path)) as video, av.open(str(tmp_path / "titled.mp4"), "w") as titled:
        titled.metadata["title"] = "Cafe in Paris"
        stream = titled.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = stream
                titled.mux(packet)
    content = (tmp_path / "titled.mp4").read_bytes()
    assert b"Cafe in Paris" in content
    path.write_bytes(content.replace(b"Cafe in", "Café in".encode("latin-1")))
    assert len(read_frames(path, [0, 4])) == 2


def test_repeated_and_unsorted_numbers_give_their_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 10)
    expected, _ = decode_everything(path)
    frames = read_frames(path, [7, 0, 7, 3, 0]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(frames, expected[[7, 0, 7, 3, 0]])


@pytest.mark.parametrize("step", ["packets.open_container", "packets._entry", "file._pixels"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("internal\nmore"), av.error.PatchWelcomeError(1, "odd")])
def test_whatever_a_decoder_raises_names_the_file(
    step: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(f"stadapter.video.{step}", fail)
    with pytest.raises(
        VideoError, match=r"^clip\.mp4: cannot be decoded \([^\n]+\); the file is damaged, or too large$"
    ):
        read_frames(path, [0])


@pytest.mark.parametrize("indices", [[0.5], "0", [None]])
def test_numbers_of_frames_are_whole(indices: Any, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    with pytest.raises(VideoError, match=r"clip\.mp4: frame numbers .*; expected whole numbers"):
        read_frames(path, indices)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_with_what_to_do(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=r"pipe\.mp4: a pipe or a device; expected a regular file"):
        VideoReader(tmp_path / "pipe.mp4")


def test_a_codec_without_a_decoder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", 5)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_QUICKTIME/AVC"))
    with pytest.raises(VideoError, match=r"clip\.mkv: no decoder for its video; re-encode it"):
        VideoReader(path)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="this system does not tell which files are open")
@pytest.mark.usefixtures("packets")
@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi"])
def test_no_file_is_left_open(name: str, tmp_path: Path) -> None:
    codec, options = CLIPS[name]
    path = write_video(tmp_path / name, 5, codec=codec, options=options)
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for _ in range(5):
            with VideoReader(path) as reader:
                reader.info()
                reader.read([4])
            with pytest.raises(VideoError, match="no frame between"):
                VideoReader(path, 7, 8)
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_a_url_is_reported_as_one() -> None:
    for address in ("https://example.org/clip.mp4", "RTSP://camera/1"):
        with pytest.raises(VideoError, match=f"^{address}: a URL; expected a file or folder on this machine"):
            VideoReader(address)


def test_an_empty_path_is_not_the_working_directory() -> None:
    with pytest.raises(VideoError, match="the path is empty"):
        VideoReader("")


@pytest.mark.parametrize("given", [b"clip.mp4", None, 3])
def test_what_is_no_path_is_refused_as_what_it_is(given: Any) -> None:
    with pytest.raises(VideoError, match=f"{type(given).__name__} found; expected the path of a video file"):
        VideoReader(given)


@pytest.mark.parametrize("times", [{"start_seconds": "1"}, {"end_seconds": [1]}, {"frames_per_second": "25"}])
def test_a_time_that_is_no_number_is_refused(times: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(times))} .*: expected a number"):
        VideoReader("clip.mp4", **times)


def test_probe_tells_size_rate_and_length(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "clip.mp4", 50))
    assert info == VideoInfo(50, 2.0, 64, 48, "h264", 25.0, announced_frames=50)


CUT_SHORT = {
    "index_first.mp4": ("libx264", {"movflags": "faststart"}),
    "fragments.mp4": ("libx264", {"movflags": "frag_keyframe+empty_moov"}),
    "h264.mkv": ("libx264", {}),
    "vp8.webm": ("libvpx", {}),
    "mpeg4.avi": ("mpeg4", {}),
}


@pytest.mark.parametrize("name", CUT_SHORT)
def test_a_file_that_holds_less_than_it_announces_is_told_without_decoding_it_all(name: str, tmp_path: Path) -> None:
    codec, container_options = CUT_SHORT[name]
    path = write_video(tmp_path / name, codec=codec, options={"g": "12"}, container_options=container_options)
    assert not probe(path).is_truncated
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    info = probe(path)
    assert info.is_truncated
    assert 1 <= info.num_frames < 50


def test_a_cut_is_told_in_a_matroska_file_of_hours(tmp_path: Path) -> None:
    """Which writes how long it is as hours, minutes and seconds."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(1, 120), options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), dtype=np.uint8)
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    assert b"01:40:0" in path.read_bytes()
    assert not probe(path).is_truncated
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    assert probe(path).is_truncated


def test_sound_that_goes_on_after_the_pictures_is_no_cut(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        pictures, sound = container.add_stream("libx264", rate=25), container.add_stream("pcm_s16le", rate=8000)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        for _ in range(25):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(pictures.encode(picture))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 3 * 8000), np.int16), layout="mono")
        silence.sample_rate = 8000
        for stream, last in ((pictures, None), (sound, silence), (sound, None)):
            container.mux(stream.encode(last))
    content = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "clip.mkv").write_bytes(content.replace(b"DURATION", b"UNKNOWN_"))  # leaves that of the whole file
    info = probe(tmp_path / "clip.mkv")
    assert info.num_frames == 25
    assert not info.is_truncated


@pytest.mark.parametrize(("num_announced", "is_cut"), [(51, False), (52, True)])
def test_a_frame_in_fifty_may_have_been_dropped(num_announced: int, is_cut: bool, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", codec="mpeg4", options={"g": "12"})
    content = path.read_bytes()
    length = content.index(b"strh") + 8 + 32  # of the stream, in its header
    assert struct.unpack_from("<I", content, length) == (50,)
    path.write_bytes(content[:length] + struct.pack("<I", num_announced) + content[length + 4 :])
    assert probe(path).is_truncated == is_cut


def test_an_avi_that_says_which_frames_were_dropped_is_not_cut(tmp_path: Path) -> None:
    path = write_at(tmp_path / "clip.avi", UNEVEN, codec="wmv2")
    info = probe(path)
    assert info.num_frames == 60
    assert (info.announced_frames or 0) > UNEVEN[-1]
    assert not info.is_truncated
    with av.open(str(path)) as container:
        positions = [packet.pos or 0 for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[50]])
    assert probe(path).is_truncated


def test_a_clock_of_milliseconds_makes_no_rate_variable(tmp_path: Path) -> None:
    """At 240 frames per second it shows 4, 4, 4, 4, 5."""
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=240)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    assert not probe(path).has_variable_rate


@pytest.mark.parametrize(
    ("name", "num_left"), [("index_first.mp4", 30), ("index_first.mp4", 49.5), ("mpeg4.avi", 30), ("mpeg4.avi", 49.5)]
)
def test_a_cut_is_told_between_two_frames_and_within_the_last(name: str, num_left: float, tmp_path: Path) -> None:
    codec, container_options = CUT_SHORT[name]
    path = write_video(tmp_path / name, codec=codec, options={"g": "12"}, container_options=container_options)
    with av.open(str(path)) as container:
        packets = sorted((packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size)
    position, size = packets[int(num_left)]
    path.write_bytes(path.read_bytes()[: position + round(size * (num_left % 1))])
    assert probe(path).is_truncated


def test_awkward_real_files_are_told_for_what_they_are(shared: Path) -> None:
    infos = {path.name: probe(path) for path in (shared / "videos/odd").iterdir() if path.name != "trunc.mp4"}
    assert not [name for name, info in infos.items() if info.is_truncated]
    assert [name for name, info in infos.items() if info.has_variable_rate] == ["vfr.mp4"]
    assert {name: info.rotation_degrees for name, info in infos.items() if info.rotation_degrees} == {"rot.mp4": 90}
    assert infos["av1.mp4"].codec == "av1"  # the codec, not the library that decodes it


def test_decoding_everything_counts_frames_and_damage(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv")
    with VideoReader(path) as reader:
        assert reader.decode_all() == (50, 0)
    content = bytearray(path.read_bytes())
    for position in np.random.default_rng(0).integers(len(content) // 5, len(content) * 4 // 5, 20):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with VideoReader(path) as reader:
        num_decoded, num_damaged = reader.decode_all()
    assert num_decoded < 50 or num_damaged > 0
    write_images(tmp_path / "frames", ".png", range(3))
    (tmp_path / "frames" / "frame_1.png").write_bytes(b"broken")
    with VideoReader(tmp_path / "frames") as reader:
        assert reader.decode_all() == (2, 0)


def test_videos_are_told_by_suffix_or_by_numbered_images(tmp_path: Path) -> None:
    write_images(tmp_path / "frames", ".jpg", range(2))
    (tmp_path / "frames" / ".thumbnails").mkdir()
    for name in ("a.mp4", "b.AVI", "c.webm", "notes.txt", "photo.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "clip.mp4").touch()
    (tmp_path / "class" / "thumbnail1.jpg").touch()
    (tmp_path / "class of folders" / "clip").mkdir(parents=True)
    (tmp_path / "class of folders" / "thumbnail1.jpg").touch()
    found = {path.name for path in tmp_path.iterdir() if is_video(path)}
    assert found == {"frames", "a.mp4", "b.AVI", "c.webm"}
    assert not is_video(tmp_path / "gone.mp4")


def test_frames_keep_the_memory_layout_that_the_fast_resize_needs(tmp_path: Path) -> None:
    frames = read_frames(write_video(tmp_path / "clip.mp4", 5), [0, 4])
    assert frames.is_contiguous(memory_format=torch.channels_last)


def forbid_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stadapter.video.file.may_open_at_a_glance", lambda path: False)


@pytest.mark.parametrize("name", CLIPS)
def test_a_glance_at_a_file_tells_what_a_closer_look_tells(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, options = CLIPS[name]
    path = write_video(tmp_path / name, codec=codec, options=options)
    at_a_glance, segment = VideoFile(path, Segment()), VideoFile(path, Segment(0.5, 1.5))
    assert at_a_glance._packets.opened.at_a_glance == (Path(name).suffix in (".mp4", ".webm"))
    forbid_a_glance(monkeypatch)
    closer, closer_segment = VideoFile(path, Segment()), VideoFile(path, Segment(0.5, 1.5))
    assert not closer._packets.opened.at_a_glance
    assert at_a_glance._packets.entries == closer._packets.entries
    assert (at_a_glance._order, segment._order) == (closer._order, closer_segment._order)
    assert at_a_glance.info() == closer.info()
    for file in (at_a_glance, segment, closer, closer_segment):
        file.close()


@pytest.mark.parametrize("name", CLIPS)
def test_parts_of_a_file_left_open_are_those_of_a_file_opened_for_each(name: str, tmp_path: Path) -> None:
    codec, options = CLIPS[name]
    path = write_video(tmp_path / name, codec=codec, options=options)

    def read(start: float | None, end: float | None, left_open: LeftOpen | None = None) -> torch.Tensor:
        with VideoReader(path, start, end, left_open=left_open) as reader:
            return reader.read(range(reader.num_frames))

    parts = [(0.4, 0.8), (1.2, 1.6), (0.0, 0.4), (0.5, 1.3), (5.0, 6.0), (0.9, 1.1), (None, None), (1.2, 1.6)]
    with closing(LeftOpen()) as left_open:
        for start, end in parts:
            if start == 5.0:
                with pytest.raises(VideoError, match="no frame between"):
                    read(start, end, left_open)
                continue
            assert torch.equal(read(start, end, left_open), read(start, end))
        assert (left_open._opened is not None) == (Path(name).suffix == ".mp4")


def test_a_file_whose_times_come_twice_is_looked_at_closer_and_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4")
    nodes = damage.parse_mp4(path.read_bytes())
    (delays,) = damage.named(nodes, b"ctts")
    first, second = (struct.unpack_from(">i", delays.payload, 8 + 8 * row + 4)[0] // 512 + row for row in (1, 2))
    assert first != second
    at = 8 + 8 * 2 + 4  # where it is told by how much the packet after next is shown later than it is decoded
    delays.payload = delays.payload[:at] + struct.pack(">i", (first - 2) * 512) + delays.payload[at + 4 :]
    path.write_bytes(damage.write_mp4(nodes))
    file = VideoFile(path, Segment())
    assert file._order is None
    assert not file._packets.opened.at_a_glance
    file.close()
    assert_exact(path)


def test_a_frame_that_did_not_come_is_looked_for_closer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", 30)
    expected, _ = decode_everything(path)
    decode = Packets.decode

    def lose_frames(self: Packets, *arguments: Any, **named: Any) -> Any:
        frames = decode(self, *arguments, **named)
        return (frame for frame in frames if not self.opened.at_a_glance or (frame.pts or 0) // 512 % 2)

    monkeypatch.setattr(Packets, "decode", lose_frames)
    with VideoReader(path) as reader:
        for wanted in ([1, 2, 3], [4]):
            assert np.array_equal(reader.read(wanted).permute(0, 2, 3, 1).numpy(), expected[wanted])
        assert reader.num_frames == 30


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg4.avi", "images"])
def test_a_region_is_that_part_of_the_whole_frames(name: str, tmp_path: Path) -> None:
    if name == "images":
        write_images(tmp_path / name, ".png", range(12))
    else:
        write_video(tmp_path / name, codec=CLIPS[name][0], options=CLIPS[name][1])
    sizes: list[tuple[int, int]] = []

    def region(height: int, width: int) -> tuple[slice, slice]:
        sizes.append((height, width))
        return slice(3, 14), slice(5, 16)

    with VideoReader(tmp_path / name) as reader:
        whole = reader.read([9, 2, 2, 11])
        assert torch.equal(reader.read([9, 2, 2, 11], region=region), whole[..., 3:14, 5:16])
    assert sizes == [tuple(whole.shape[2:])]


def test_times_that_come_twice_are_not_trusted() -> None:
    entries = [video_packets.Entry(pts, dts, dts == 0, True, False) for dts, pts in enumerate((0, 2, 1, 2))]
    order = partial(video_packets.presentation_order, start=-math.inf, end=math.inf, was_sought=False)
    assert order(entries[:3]) == [0, 2, 1]
    assert order(entries) is None
    assert order([*entries[:2], entries[2]._replace(dts=1)]) is None


def test_frames_shown_before_the_first_keyframe_are_not_counted_on() -> None:
    entries = [video_packets.Entry(pts, dts, dts == 0, True, False) for dts, pts in enumerate((3, 1, 2, 4))]
    order = partial(video_packets.presentation_order, entries, end=math.inf, was_sought=False)
    assert order(start=-math.inf) is None  # they may never come out
    assert order(start=3) == [0, 3]
