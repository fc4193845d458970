from pathlib import Path

import numpy as np
import pytest

from stadapter.errors import SettingsError
from stadapter.hands import CLASSES, PAIRS, write_hand_clips
from stadapter.video import VideoReader, probe


def frames(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return reader.read(range(reader.num_frames)).numpy().astype(int)


def test_every_class_gets_its_clips_as_video_files(tmp_path: Path) -> None:
    paths = write_hand_clips(tmp_path, clips_per_class=2, seed=0, num_frames=6)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in paths) == sorted(
        f"{name}/{name}_{index:03d}.mp4" for name in CLASSES for index in range(2)
    )
    assert frames(paths[0]).shape == (6, 3, 96, 96)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_two_of_a_pair_are_each_other_played_backwards(tmp_path: Path, pair: tuple[str, str]) -> None:
    write_hand_clips(tmp_path, clips_per_class=1, seed=3, num_frames=8)
    first, second = (frames(tmp_path / name / f"{name}_000.mp4") for name in pair)
    coding = np.abs(first - second[::-1]).mean()
    motion = np.abs(first - second).mean()
    assert coding < 2  # of 255: what the codec loses
    assert motion > 3 * coding


def test_a_clip_moves_the_way_its_name_says(tmp_path: Path) -> None:
    for name, axis, sign in (("right", 1, 1), ("left", 1, -1), ("down", 0, 1), ("up", 0, -1)):
        write_hand_clips(tmp_path / name, clips_per_class=4, seed=5, num_frames=8)
        shifts = []
        for path in sorted((tmp_path / name / name).glob("*.mp4")):
            clip = frames(path).mean(1)
            background = np.median(clip, axis=0)
            tips = []
            for frame in (clip[0], clip[-1]):
                places = np.argwhere(np.abs(frame - background) > 30)
                tips.append(places.mean(0))
            shifts.append(tips[1][axis] - tips[0][axis])
        assert np.sign(np.median(shifts)) == sign, (name, shifts)


def test_a_frame_shows_the_hand_where_it_is_and_not_where_it_was(tmp_path: Path) -> None:
    ends = []
    for count in (2, 9):
        write_hand_clips(tmp_path / str(count), clips_per_class=1, seed=3, num_frames=count)
        clip = frames(tmp_path / str(count) / "left" / "left_000.mp4")
        ends.append(clip[[0, -1]])
    assert np.abs(ends[0] - ends[1]).mean() < 4  # of 255: what the codec loses
    assert np.abs(ends[0][0] - ends[0][1]).mean() > 12


def test_clips_are_as_fast_as_asked_for(tmp_path: Path) -> None:
    first, *_ = write_hand_clips(tmp_path, clips_per_class=1, seed=0, num_frames=6, frames_per_second=5)
    assert probe(first).frames_per_second == 5


def turning(clip: np.ndarray) -> float:
    """The area that the middle of what moves goes around, above 0 clockwise: y goes down."""
    background = np.median(clip, axis=0)
    y, x = np.array([np.argwhere(np.abs(frame - background) > 30).mean(0) for frame in clip]).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())


def test_a_hand_turns_and_opens_as_its_name_says(tmp_path: Path) -> None:
    write_hand_clips(tmp_path, clips_per_class=4, seed=5, num_frames=8)
    clips = {name: [frames(path).mean(1) for path in sorted((tmp_path / name).glob("*.mp4"))] for name in CLASSES}
    assert np.median([turning(clip) for clip in clips["clockwise"]]) > 0
    assert np.median([turning(clip) for clip in clips["anticlockwise"]]) < 0
    # A hand is lighter than what is behind it, and five spread fingers are more than one.
    grown = {name: np.median([clip[-1].mean() - clip[0].mean() for clip in clips[name]]) for name in PAIRS[3]}
    assert grown["opening"] > 1
    assert grown["closing"] < -1


def test_the_same_seed_writes_the_same_bytes_and_another_seed_other_clips(tmp_path: Path) -> None:
    clips = [
        write_hand_clips(tmp_path / folder, clips_per_class=1, seed=seed, num_frames=4)[0].read_bytes()
        for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert clips[0] == clips[1] != clips[2]


@pytest.mark.parametrize("wrong", [{"size": 33}, {"size": 16}, {"clips_per_class": 0}, {"num_frames": 1}])
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="expected"):
        write_hand_clips(tmp_path, **{"clips_per_class": 1, "seed": 0} | wrong)
