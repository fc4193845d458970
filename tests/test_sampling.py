"""Frame numbers: equal to the released ones, inside the video, and drawn from the generator alone."""

import doctest
import json
from pathlib import Path

import numpy as np
import pytest

from stadapter import sampling
from stadapter.errors import SettingsError
from stadapter.sampling import dense_indices, random_dense_indices, random_uniform_indices, uniform_indices


def test_indices_equal_the_released_ones_for_every_recorded_length(shared: Path) -> None:
    recorded = json.loads((shared / "golden/pipeline/frame_indices.json").read_text())
    assert len(recorded) > 200
    for key, expected in recorded.items():
        kind, *numbers = key.split("/")
        road = {"uniform": uniform_indices, "dense": dense_indices}[kind]
        assert road(*map(int, numbers)) == expected, key


def test_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(sampling)
    assert result.attempted == 4
    assert result.failed == 0


@pytest.mark.parametrize("total_frames", [1, 3, 8, 33, 301])
@pytest.mark.parametrize("num_views", [1, 2, 5])
def test_views_stay_inside_the_video_and_run_forwards(total_frames: int, num_views: int) -> None:
    views = uniform_indices(total_frames, 8, num_views) + dense_indices(total_frames, 8, 4, num_views)
    assert len(views) == 2 * num_views
    for view in views:
        assert len(view) == 8
        assert view == sorted(view)
        assert 0 <= view[0] <= view[-1] < total_frames


def test_several_uniform_views_see_different_frames() -> None:
    first, second = uniform_indices(100, 4, 2)
    assert all(before < after for before, after in zip(first, second, strict=True))


def test_dense_views_reach_both_ends() -> None:
    views = dense_indices(100, 4, 8, num_views=3)
    assert views[0][0] == 0
    assert views[-1][-1] == 99


@pytest.mark.parametrize("total_frames", [1, 5, 40, 300])
def test_random_indices_are_a_function_of_the_seed_and_stay_inside(total_frames: int) -> None:
    for draw in (
        lambda rng: random_uniform_indices(total_frames, 8, rng),
        lambda rng: random_dense_indices(total_frames, 8, 4, rng),
    ):
        seen = set()
        for seed in range(30):
            indices = draw(np.random.default_rng(seed))
            assert indices == draw(np.random.default_rng(seed))
            assert indices == sorted(indices)
            assert 0 <= indices[0] <= indices[-1] < total_frames
            seen.update(indices)
        assert {0, total_frames - 1} <= seen or total_frames == 300


def test_random_uniform_indices_take_one_frame_from_each_part() -> None:
    for seed in range(20):
        indices = random_uniform_indices(81, 8, np.random.default_rng(seed))
        assert all(10 * part <= index <= 10 * (part + 1) for part, index in enumerate(indices))


def test_random_dense_indices_keep_their_stride() -> None:
    indices = random_dense_indices(300, 8, 16, np.random.default_rng(0))
    assert np.diff(indices).tolist() == [16] * 7


def test_random_dense_indices_start_anywhere_from_the_first_place_to_the_last() -> None:
    starts = {random_dense_indices(31, 8, 4, np.random.default_rng(seed))[0] for seed in range(60)}
    assert starts == {0, 1, 2}


def test_counts_below_one_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="total_frames 0: expected"):
        uniform_indices(0, 8)
    with pytest.raises(SettingsError, match="stride_frames 0: expected"):
        dense_indices(10, 8, 0)
    with pytest.raises(SettingsError, match="num_frames -1: expected at least 1"):
        random_uniform_indices(10, -1, np.random.default_rng(0))
    with pytest.raises(SettingsError, match="total_frames 0: expected"):
        random_dense_indices(0, 8, 4, np.random.default_rng(0))
