"""Tables that promise more than can be held are refused from their headers; everything else passes."""

import struct
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

import damage
from damage import Node
from stadapter.errors import VideoError
from stadapter.synthetic import write_clips
from stadapter.video import read_frames
from stadapter.video.boxes import MAX_EDITED_SAMPLES, MAX_SAMPLES, check_tables


def changed(path: Path, change: Callable[[list[Node]], None]) -> Path:
    """An MP4 written again with its boxes changed."""
    nodes = damage.parse_mp4(path.read_bytes())
    change(nodes)
    path.write_bytes(damage.write_mp4(nodes))
    return path


def boxes_of(path: Path, kind: bytes) -> list[Node]:
    return damage.named(damage.parse_mp4(path.read_bytes()), kind)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clips(tmp_path, classes=["left"], clips_per_class=1)[0]


def declare_samples(nodes: list[Node], count: int) -> None:
    """Of one byte each: no table of their sizes is needed."""
    for node in damage.named(nodes, b"stsz"):
        node.payload = struct.pack(">III", 0, 1, count)


def add_edits(nodes: list[Node], rows: int) -> None:
    table = struct.pack(">Iihh", 1600, 0, 1, 0) * rows
    for track in damage.named(nodes, b"trak"):
        track.children = [node for node in track.children if node.kind != b"edts"]
        track.children.insert(1, Node(b"edts", b"", [Node(b"elst", struct.pack(">II", 0, rows) + table)]))


def add_fragment(nodes: list[Node], count: int) -> None:
    """A fragment whose samples are all as the defaults say: no table of them is needed."""
    fragment = Node(b"traf", b"", [Node(b"trun", struct.pack(">II", 0, count))])
    nodes.append(Node(b"moof", b"", [fragment]))


def test_an_ordinary_file_passes(clip: Path) -> None:
    check_tables(clip)
    read_frames(changed(clip, lambda nodes: add_edits(nodes, 3)), [0])


@pytest.mark.parametrize("declare", [declare_samples, add_fragment])
def test_samples_that_are_only_declared_are_refused_at_once(
    clip: Path, declare: Callable[[list[Node], int], None]
) -> None:
    check_tables(changed(clip, lambda nodes: declare(nodes, MAX_SAMPLES - 100)))
    started = time.thread_time()
    with pytest.raises(VideoError, match=r"^left_00\.mp4: \d{9,} samples declared, but at most 8388608"):
        read_frames(changed(clip, lambda nodes: declare(nodes, 10**9)), [0])
    assert time.thread_time() - started < 1


def test_samples_in_a_table_of_compact_sizes_count(clip: Path) -> None:
    def compact(nodes: list[Node]) -> None:
        for node in damage.named(nodes, b"stsz"):
            node.kind, node.payload = b"stz2", struct.pack(">III", 0, 4, 10**9)

    with pytest.raises(VideoError, match="1000000000 samples declared"):
        check_tables(changed(clip, compact))


def test_samples_of_all_fragments_are_counted_together(clip: Path) -> None:
    def add_two(nodes: list[Node]) -> None:
        for _ in range(2):
            add_fragment(nodes, MAX_SAMPLES // 2)

    with pytest.raises(VideoError, match=f"{MAX_SAMPLES + 16} samples declared"):
        check_tables(changed(clip, add_two))


@pytest.mark.parametrize("size", ["of 64 bits", "up to the end"])
def test_a_table_is_found_however_the_size_of_its_box_is_written(size: str, clip: Path) -> None:
    head, index = b"", b""
    changed(clip, lambda nodes: declare_samples(nodes, 10**9))
    for node in damage.parse_mp4(clip.read_bytes()):
        written = damage.write_mp4([node])
        if node.kind == b"moov" and size == "up to the end":
            index = struct.pack(">I4s", 0, b"moov") + written[8:]
        elif size == "of 64 bits":
            head += struct.pack(">I4sQ", 1, node.kind, len(written) + 8) + written[8:]
        else:
            head += written
    clip.write_bytes(head + index)
    with pytest.raises(VideoError, match="1000000000 samples declared"):
        check_tables(clip)


def test_pictures_of_a_tick_each_are_counted(clip: Path) -> None:
    def lie(nodes: list[Node]) -> None:
        declare_samples(nodes, 10**9)
        for node in damage.named(nodes, b"stts"):
            node.payload = struct.pack(">IIII", 0, 1, 10**9, 1)

    with pytest.raises(VideoError, match="1000000000 samples declared"):
        check_tables(changed(clip, lie))


def test_an_edit_list_that_shows_a_long_track_again_and_again_is_refused(clip: Path) -> None:
    def many(nodes: list[Node]) -> None:
        declare_samples(nodes, MAX_EDITED_SAMPLES // 100)
        add_edits(nodes, 101)

    with pytest.raises(VideoError, match=r"left_00\.mp4: an edit list of 101 rows over 167772 samples"):
        check_tables(changed(clip, many))


def test_an_edit_list_of_more_rows_than_samples_is_refused(clip: Path) -> None:
    check_tables(changed(clip, lambda nodes: add_edits(nodes, 100)))
    with pytest.raises(VideoError, match=r"left_00\.mp4: an edit list of 101 rows over 16 samples"):
        check_tables(changed(clip, lambda nodes: add_edits(nodes, 101)))


def test_uncompressed_sound_is_not_counted_sample_by_sample(tmp_path: Path) -> None:
    """An hour of it at 48 kHz declares 172.8 million samples."""
    path = tmp_path / "camera.mov"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=48_000)
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * index, np.uint8), format="rgb24")
            container.mux(pictures.encode(frame))
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.int16), layout="mono")
        heard.sample_rate = 48_000
        container.mux(sound.encode(heard))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))
    declared = [struct.unpack(">I", node.payload[8:12])[0] for node in boxes_of(path, b"stsz")]
    assert sorted(declared) == [25, 48_000]

    def lengthen(nodes: list[Node]) -> None:
        for node in damage.named(nodes, b"stsz"):
            if node.payload[8:12] == struct.pack(">I", 48_000):
                node.payload = node.payload[:8] + struct.pack(">I", 172_800_000)

    assert len(read_frames(changed(path, lengthen), [0, 24])) == 2

    def compress(nodes: list[Node]) -> None:
        for node in damage.named(nodes, b"stts"):
            if node.payload[12:] == struct.pack(">I", 1):
                node.payload = node.payload[:12] + struct.pack(">I", 1024)

    with pytest.raises(VideoError, match="172800025 samples declared"):
        check_tables(changed(path, compress))


def test_rows_that_an_edit_list_does_not_hold_do_not_count(clip: Path) -> None:
    def lie(nodes: list[Node]) -> None:
        add_edits(nodes, 2)
        for node in damage.named(nodes, b"elst"):
            node.payload = struct.pack(">II", 0, 2**32 - 1) + node.payload[8:]

    check_tables(changed(clip, lie))


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00", b"\x00\x00\x00\x01moov", b"\x1aE\xdf\xa3" + bytes(100), b"RIFF\x00\x00\x00\x00AVI ", b"G" * 1880],
)
def test_what_is_no_mp4_passes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "any.bin").write_bytes(content)
    check_tables(tmp_path / "any.bin")


def test_boxes_within_boxes_end_somewhere(tmp_path: Path) -> None:
    nested = b""
    for _ in range(5000):
        nested = struct.pack(">I4s", len(nested) + 8, b"moov") + nested
    (tmp_path / "deep.mp4").write_bytes(nested)
    check_tables(tmp_path / "deep.mp4")
