from pathlib import Path

import numpy as np
import pytest

from stadapter.errors import SettingsError
from stadapter.hands import CLASSES, PAIRS, write_hand_clips
from stadapter.video import VideoReader


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
