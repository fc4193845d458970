"""Windows lie inside frames and are drawn as asked for; what has no meaning is refused."""

from typing import Literal

import numpy as np
import pytest

from stadapter.augmentation import Augmentation, Window, draw, spatial_windows
from stadapter.errors import SettingsError


def test_three_spatial_windows_run_along_the_longer_side() -> None:
    assert [window.left for window in spatial_windows(48, 71, 3)] == [0, 11, 23]
    assert [window.top for window in spatial_windows(71, 48, 3)] == [0, 11, 23]
    assert spatial_windows(48, 71, 1) == [Window(0, 11, 48, 48)]
    with pytest.raises(SettingsError, match="num_spatial_views 2: expected"):
        spatial_windows(48, 71, 2)


@pytest.mark.parametrize("crop", ["random_resized", "short_side_jitter", "centre"])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (9, 200), (1, 1)])
def test_windows_lie_inside_frames_of_any_shape(
    crop: Literal["random_resized", "short_side_jitter", "centre"],
    fit: Literal["crop", "stretch"],
    height: int,
    width: int,
) -> None:
    scale = (1.0, 1.15) if crop == "short_side_jitter" else (0.08, 1.0)
    augmentation = Augmentation(crop=crop, scale=scale)
    for seed in range(50):
        window = draw(augmentation, height, width, 32, np.random.default_rng(seed), fit=fit).window
        assert window.top >= 0
        assert window.left >= 0
        assert 1 <= window.height <= height - window.top
        assert 1 <= window.width <= width - window.left


def test_a_draw_is_a_function_of_the_generator_and_takes_the_same_count_whatever_the_frame() -> None:
    augmentation = Augmentation(flip=True, colour_jitter=0.4)
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    assert draw(augmentation, 48, 64, 32, first) == draw(augmentation, 48, 64, 32, second)
    draw(augmentation, 480, 64, 32, first)
    draw(Augmentation(crop="centre"), 5, 7, 32, second)
    assert first.random() == second.random()


def test_draws_cover_their_ranges() -> None:
    augmentation = Augmentation(scale=(0.4, 1.0), flip=True, colour_jitter=0.4)
    draws = [draw(augmentation, 480, 480, 112, np.random.default_rng(seed)) for seed in range(300)]
    shares = [drawn.window.height * drawn.window.width / 480**2 for drawn in draws]
    ratios = [drawn.window.width / drawn.window.height for drawn in draws]
    assert 0.39 < min(shares) < 0.45
    assert 0.9 < max(shares) <= 1
    assert 0.74 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.35
    assert 0.6 <= min(drawn.brightness for drawn in draws) < 0.65
    assert 1.35 < max(drawn.saturation for drawn in draws) <= 1.4
    generator = np.random.default_rng(0)
    assert 450 < sum(draw(augmentation, 480, 480, 112, generator).flip for _ in range(1000)) < 550


def test_windows_have_the_shape_that_is_asked_for() -> None:
    augmentation = Augmentation(scale=(0.2, 0.2), ratio=(2.0, 2.0))
    window = draw(augmentation, 480, 480, 112, np.random.default_rng(0)).window
    assert window.width / window.height == pytest.approx(2, rel=0.01)


def test_windows_reach_every_edge_of_a_frame() -> None:
    augmentation = Augmentation(scale=(0.5, 0.5), ratio=(1.0, 1.0))
    windows = [draw(augmentation, 12, 12, 8, np.random.default_rng(seed)).window for seed in range(100)]
    assert {window.top for window in windows} == {window.left for window in windows} == set(range(5))
    assert {(window.height, window.width) for window in windows} == {(8, 8)}


def test_stretched_windows_have_the_shape_of_the_frame_on_average() -> None:
    draws = [
        draw(Augmentation(scale=(0.3, 0.5)), 240, 480, 112, np.random.default_rng(seed), fit="stretch")
        for seed in range(200)
    ]
    log_ratios = [np.log(drawn.window.width / drawn.window.height) for drawn in draws]
    assert np.exp(np.mean(log_ratios)) == pytest.approx(2, rel=0.05)


def test_where_no_window_fits_a_clip_shows_what_a_test_clip_shows() -> None:
    augmentation = Augmentation(scale=(1.0, 1.0), ratio=(5.0, 5.0))
    for fit, expected in (("crop", Window(0, 12, 48, 48)), ("stretch", Window(0, 0, 48, 72))):
        assert draw(augmentation, 48, 72, 32, np.random.default_rng(0), fit=fit).window == expected


def test_short_side_jitter_sees_the_share_that_a_crop_of_the_enlarged_frame_sees() -> None:
    augmentation = Augmentation(crop="short_side_jitter", scale=(1.5, 1.5))
    window = draw(augmentation, 480, 640, 112, np.random.default_rng(0)).window
    assert (window.height, window.width) == (320, 320)


def test_short_side_jitter_draws_every_length_with_both_ends() -> None:
    augmentation = Augmentation(crop="short_side_jitter", scale=(1.0, 1.02))
    windows = [draw(augmentation, 480, 640, 100, np.random.default_rng(seed)).window for seed in range(30)]
    assert {window.height for window in windows} == {480, round(480 / 1.01), round(480 / 1.02)}


@pytest.mark.parametrize(("crop", "scale"), [("random_resized", (0.2, 0.2)), ("short_side_jitter", (2.0, 2.0))])
def test_where_a_window_lies_is_drawn_for_rows_and_columns_apart(
    crop: Literal["random_resized", "short_side_jitter"], scale: tuple[float, float]
) -> None:
    augmentation = Augmentation(crop=crop, scale=scale, ratio=(1.0, 1.0))
    windows = [draw(augmentation, 480, 480, 112, np.random.default_rng(seed)).window for seed in range(50)]
    assert abs(np.corrcoef([window.top for window in windows], [window.left for window in windows])[0, 1]) < 0.4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0.5, 1.2)}, "random_resized expects"),
        ({"crop": "short_side_jitter"}, "short_side_jitter expects"),
        ({"ratio": (2.0, 1.0)}, r"ratio \(2\.0, 1\.0\): expected"),
        ({"ratio": (0.0, 1.0)}, r"ratio \(0\.0, 1\.0\): expected"),
        ({"colour_jitter": -0.1}, "colour_jitter -0.1: expected 0 to 1"),
        ({"colour_jitter": 1.5}, "colour_jitter 1.5: expected 0 to 1"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Augmentation(**settings)
