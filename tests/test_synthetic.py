"""The synthetic clips are real files whose classes can only be told by time."""

from pathlib import Path

import numpy as np
import pytest

from stadapter.errors import SettingsError
from stadapter.manifest import read_manifest
from stadapter.synthetic import CLASSES, draw_clip, write_clips
from stadapter.video import read_frames


def test_clips_are_written_as_a_folder_per_class(tmp_path: Path) -> None:
    paths = write_clips(tmp_path, classes=("left", "grow"), clips_per_class=3, num_frames=5)
    manifest = read_manifest(tmp_path)
    assert sorted(paths) == [entry.path for entry in manifest.entries]
    assert manifest.counts() == {"grow": 3, "left": 3}


def test_files_hold_the_drawn_frames(tmp_path: Path) -> None:
    for path in write_clips(tmp_path, clips_per_class=1, size=48, num_frames=7):
        drawn = draw_clip(path.parent.name, 0, size=48, num_frames=7)
        decoded = read_frames(path, range(7)).permute(0, 2, 3, 1).numpy()  # (T, H, W, 3)
        assert decoded.shape == (7, 48, 48, 3)
        assert np.abs(decoded.astype(int) - drawn.astype(int)).mean() < 8  # H.264 and half-size colour
        with pytest.raises(Exception, match="7"):
            read_frames(path, [7])


@pytest.mark.parametrize(("forward", "backward"), [("left", "right"), ("up", "down"), ("grow", "shrink")])
def test_a_pair_of_classes_is_each_other_in_reverse(forward: str, backward: str) -> None:
    one, other = draw_clip(forward, 2, num_frames=9), draw_clip(backward, 2, num_frames=9)
    assert np.array_equal(one, other[::-1])
    assert not np.array_equal(one, other)


def test_left_moves_left_and_up_moves_up() -> None:
    def centre(frame: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.argwhere(frame.min(-1) >= 180).mean(0)  # row, column of the bright square

    left, up = draw_clip("left", 0), draw_clip("up", 0)
    assert centre(left[0])[1] > centre(left[-1])[1] + 20
    assert centre(up[0])[0] > centre(up[-1])[0] + 20


def test_clips_depend_on_seed_and_number_only(tmp_path: Path) -> None:
    few = write_clips(tmp_path / "few", clips_per_class=1)
    many = write_clips(tmp_path / "many", clips_per_class=2)
    assert few[0].read_bytes() == many[0].read_bytes()
    assert many[0].read_bytes() != many[1].read_bytes()
    assert not np.array_equal(draw_clip("left", 0, seed=0), draw_clip("left", 0, seed=1))


def test_every_class_can_be_drawn() -> None:
    assert len({draw_clip(name, 0).tobytes() for name in CLASSES}) == len(CLASSES)


def test_settings_without_meaning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no motion is called spiral; expected some of left, right"):
        write_clips(tmp_path, classes=("spiral",))
    with pytest.raises(SettingsError, match="size is 33 pixels"):
        write_clips(tmp_path, size=33)
    with pytest.raises(SettingsError, match="at least one of each"):
        write_clips(tmp_path, clips_per_class=0)
