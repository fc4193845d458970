"""Videos opened as training would open them: what they are, why they cannot be read, which are the same."""

import os
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stadapter.check.examine import WHOLE, Fault, content_hash, examine, examine_all
from stadapter.manifest import Entry
from stadapter.synthetic import draw_clip, write_video
from stadapter.video.segment import Segment


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """16 frames at 10 frames per second."""
    write_video(tmp_path / "clip.mp4", draw_clip("up", 0, size=32))
    return tmp_path / "clip.mp4"


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((8, 8, 3), 9 * index, np.uint8)).save(folder / f"{index}.png")
    return folder


def test_a_good_video_has_facts_and_no_fault(clip: Path) -> None:
    video = examine(clip)
    assert video.info is not None
    assert (video.info.num_frames, video.info.codec, video.size_bytes) == (16, "h264", clip.stat().st_size)
    assert (video.fault, video.segments) == (None, {WHOLE: 16})
    assert (video.num_decoded, video.content) == (None, None)


def test_deep_decodes_every_frame(clip: Path, tmp_path: Path) -> None:
    assert examine(clip, deep=True).num_decoded == 16
    folder = write_images(tmp_path / "images", 4)
    (folder / "2.png").write_bytes(b"no image")
    assert examine(folder, deep=True).num_decoded == 3


def break_as(fault: Fault, clip: Path) -> None:
    """Spoil a good file in this manner."""
    content = clip.read_bytes()
    clip.unlink()
    if fault == "empty":
        clip.touch()
    elif fault == "cut":
        clip.write_bytes(content[: len(content) // 2])  # its index is at the end
    elif fault == "unreadable":
        clip.write_bytes(b"\0" * 500 + content)
    elif fault == "forbidden":
        clip.write_bytes(content)
        clip.chmod(0)


@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "unreadable", "forbidden"])
def test_what_cannot_be_read_has_a_fault_and_a_reason(fault: Fault, clip: Path) -> None:
    break_as(fault, clip)
    if fault == "forbidden" and os.access(clip, os.R_OK):
        pytest.skip("this user may read every file")
    assert examine(clip.parent / "gone" / "x.mp4").fault == "missing"
    video = examine(clip, [WHOLE, Segment(0.1, 0.5)], deep=True, hashed=True)
    assert (video.info, video.fault) == (None, fault)
    assert isinstance(video.segments[WHOLE], str)
    assert video.segments == dict.fromkeys((WHOLE, Segment(0.1, 0.5)), video.segments[WHOLE])


@pytest.mark.parametrize(("missing_bytes", "fault"), [(0, "unreadable"), (1, "cut")])
def test_a_box_of_64_bits_is_stepped_over_to_the_index(missing_bytes: int, fault: Fault, tmp_path: Path) -> None:
    kind = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)
    content = struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100)
    index = struct.pack(">I4s", 50, b"moov") + bytes(42)
    (tmp_path / "large.mp4").write_bytes((kind + content + index)[: 182 - missing_bytes])
    assert examine(tmp_path / "large.mp4").fault == fault


def test_a_box_without_a_size_goes_on_to_the_end_of_the_file(tmp_path: Path) -> None:
    kind = struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0)
    index = struct.pack(">I4s", 50, b"moov") + bytes(42)
    content = struct.pack(">I4s", 0, b"mdat") + bytes([255] * 100)  # no sizes of boxes
    (tmp_path / "open.mp4").write_bytes(kind + index + content)
    assert examine(tmp_path / "open.mp4").fault == "unreadable"


def test_segments_are_counted_and_one_beyond_the_end_says_so(clip: Path) -> None:
    inside, open_ended, beyond = Segment(0.5, 1.0), Segment(1.0), Segment(7.0, 8.0)
    video = examine(clip, [inside, open_ended, beyond])
    assert (video.segments[inside], video.segments[open_ended]) == (5, 6)
    assert "no frame between" in str(video.segments[beyond])


def test_the_same_content_has_the_same_hash_whatever_its_name(clip: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(clip, tmp_path / "other.mp4"))
    assert content_hash(clip) == content_hash(copy)
    images = [write_images(tmp_path / name, 3) for name in ("one", "two")]
    assert content_hash(images[0]) == content_hash(images[1])
    (images[1] / "3.png").write_bytes((images[1] / "0.png").read_bytes())
    assert len({content_hash(path) for path in (clip, *images)}) == 3
    assert content_hash(tmp_path / "gone.mp4") is None


@pytest.mark.parametrize("num_workers", [0, 3])
def test_all_videos_come_in_order_each_opened_once_and_hashed_where_sizes_agree(
    num_workers: int, clip: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(clip, tmp_path / "copy.mp4"))
    write_video(tmp_path / "other.mp4", draw_clip("up", 1, size=48))
    paths = [copy, tmp_path / "other.mp4", clip, tmp_path / "gone.mp4", clip]
    entries = [
        (Entry(path, path.name, "up", start), False)
        for path, start in zip(paths, [None, None, None, None, 1.0], strict=True)
    ]
    seen: list[tuple[int, int]] = []
    clips = examine_all(
        entries, deep=False, num_workers=num_workers, progress=lambda done, total: seen.append((done, total))
    )
    assert [item.video.path for item in clips] == paths
    assert [item.num_frames for item in clips] == [16, 16, 16, 0, 6]
    assert clips[2].video is clips[4].video
    assert [item.video.content is not None for item in clips] == [True, False, True, False, True]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_clip_of_uneven_frame_times_is_as_long_as_they_last(tmp_path: Path) -> None:
    path = tmp_path / "uneven.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)  # a rate that the file states and does not keep
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for tick in range(0, 5000, 500):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    entries = [Entry(path, "a.mkv", "up"), Entry(path, "a.mkv", "up", 1.0, 3.0), Entry(path, "a.mkv", "up", 4.0, 9.0)]
    clips = examine_all([(entry, False) for entry in entries], deep=False, num_workers=0, progress=None)
    assert [clip.seconds for clip in clips] == pytest.approx([5, 2, 1])


def test_a_clip_tells_its_length_and_its_place(clip: Path) -> None:
    whole, part = examine_all(
        [(Entry(clip, "a.mp4", "up"), False), (Entry(clip, "a.mp4", "up", 0.5, 1.0), False)],
        deep=False,
        num_workers=0,
        progress=None,
    )
    assert (whole.seconds, part.seconds) == (1.6, 0.5)
    assert (whole.title, part.title) == ("a.mp4", "a.mp4 [0.5 to 1 s]")
