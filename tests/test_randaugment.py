import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from stadapter.augmentation import Augmentation, draw
from stadapter.errors import SettingsError
from stadapter.randaugment import _OPERATIONS, Policy, draw_operations, parse_policy
from stadapter.transforms import change, crop, rand_augment

PUBLISHED = "rand-m7-n4-mstd0.5-inc1"


def picture(height: int = 24, width: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip(num_frames: int = 3) -> torch.Tensor:
    frame = torch.from_numpy(np.array(picture())).permute(2, 0, 1)
    return frame.repeat(num_frames, 1, 1, 1)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_the_published_policy_is_read() -> None:
    assert parse_policy(PUBLISHED) == Policy(magnitude=7.0, num_operations=4, magnitude_std=0.5)
    assert parse_policy("rand-inc1-n3-m9") == Policy(magnitude=9.0, num_operations=3, magnitude_std=0.0)
    assert parse_policy("rand-inc1") == Policy(magnitude=10.0, num_operations=2, magnitude_std=0.0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "m7-n4", "augmix-m7-inc1", "rand-m7-n4", "rand-m11-inc1", "rand-m7-n0-inc1", "rand-m7-n1.5-inc1"),
        *("rand-m7-x2-inc1", "rand-m7-m8-inc1", "rand-m7-inc0"),
    ],
)
def test_a_policy_that_cannot_be_read_is_refused_by_its_text(text: str) -> None:
    with pytest.raises(SettingsError, match="rand_augment"):
        parse_policy(text)
    if text:
        with pytest.raises(SettingsError, match="rand_augment"):
            Augmentation(rand_augment=text)


@pytest.mark.parametrize("seed", range(20))
def test_every_frame_of_a_clip_changes_alike(seed: int) -> None:
    operations = draw_operations(parse_policy(PUBLISHED), np.random.default_rng(seed))
    changed = rand_augment(clip(), operations)
    assert changed.dtype == torch.uint8
    assert changed.shape == (3, 3, 24, 32)
    assert torch.equal(changed[0], changed[1])
    assert torch.equal(changed[0], changed[2])


def test_a_draw_is_a_pure_function_of_the_generator_and_takes_as_many_values_whatever_it_draws() -> None:
    states = []
    for seed in (1, 1, 2):
        generator = np.random.default_rng(seed)
        operations = draw_operations(parse_policy(PUBLISHED), generator)
        states.append((generator.random(), rand_augment(clip(), operations)))
    assert states[0][0] == states[1][0]
    assert torch.equal(states[0][1], states[1][1])
    assert states[0][0] != states[2][0]


def test_half_of_the_drawn_operations_are_carried_out() -> None:
    generator = np.random.default_rng(0)
    counts = [len(draw_operations(parse_policy(PUBLISHED), generator)) for _ in range(500)]
    assert 1.85 < np.mean(counts) < 2.15
    assert set(counts) == {0, 1, 2, 3, 4}


def test_no_drawn_strength_is_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    strengths: list[float] = []
    for name in _OPERATIONS:
        monkeypatch.setitem(_OPERATIONS, name, lambda strength, sign: strengths.append(strength))
    draw_operations(parse_policy("rand-m5-n50-mstd5-inc1"), np.random.default_rng(0))
    assert (min(strengths), max(strengths)) == (0.0, 1.0)


def test_the_frames_given_are_not_written_to() -> None:
    frames = clip()
    before = frames.clone()
    for make in _OPERATIONS.values():
        rand_augment(frames, [make(0.7, 1.0)])
    assert torch.equal(frames, before)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y", "color", "contrast"])
def test_an_operation_of_strength_zero_changes_nothing(name: str) -> None:
    assert np.abs(pixels(_OPERATIONS[name](0.0, 1.0)(picture())) - pixels(picture())).max() <= 1


def test_strengths_mean_what_they_mean_in_timm() -> None:
    """The arguments that timm's auto_augment.py computes at magnitude 7 of 10 for its increasing operations."""
    source = picture()
    expected = {
        "posterize": ImageOps.posterize(source, 2),
        "solarize": ImageOps.solarize(source, 256 - 179),
        "color": ImageEnhance.Color(source).enhance(1.63),
        "brightness": ImageEnhance.Brightness(source).enhance(1.63),
        "rotate": source.rotate(21, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)),
        "auto_contrast": ImageOps.autocontrast(source),
    }
    for name, image in expected.items():
        assert np.array_equal(pixels(_OPERATIONS[name](0.7, 1.0)(source)), pixels(image)), name
    added = pixels(_OPERATIONS["solarize_add"](0.7, 1.0)(source))
    dark = pixels(source) < 128
    assert np.array_equal(added, np.where(dark, np.minimum(255, pixels(source) + 77), pixels(source)))


def test_the_sign_says_to_which_side() -> None:
    source = picture()
    turned = source.rotate(-21, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    assert np.array_equal(pixels(_OPERATIONS["rotate"](0.7, -1.0)(source)), pixels(turned))
    paler = ImageEnhance.Color(source).enhance(0.37)
    assert np.array_equal(pixels(_OPERATIONS["color"](0.7, -1.0)(source)), pixels(paler))


def test_both_sides_are_drawn_about_as_often() -> None:
    source, generator = picture(), np.random.default_rng(0)
    ends = [pixels(_OPERATIONS["rotate"](1.0, sign)(source)) for sign in (-1.0, 1.0)]
    policy = parse_policy("rand-m10-n1-inc1")
    changed = [pixels(each(source)) for _ in range(1000) for each in draw_operations(policy, generator)]
    left, right = (sum(np.array_equal(end, one) for one in changed) for end in ends)
    assert left > 8
    assert right > 8


def test_a_sheared_picture_slides_along_the_axis_that_is_named() -> None:
    stripes = np.zeros((24, 24, 3), np.uint8)
    stripes[::2] = 255  # rows that are alike everywhere
    along, across = (_OPERATIONS[name](0.5, 1.0)(Image.fromarray(stripes)) for name in ("shear_x", "shear_y"))
    assert np.array_equal(pixels(along)[:, :10], stripes[:, :10])
    assert not np.array_equal(pixels(across)[:, :10], stripes[:, :10])


def test_a_translation_moves_by_a_share_of_the_side_and_fills_with_grey() -> None:
    moved = pixels(_OPERATIONS["translate_x"](1.0, 1.0)(picture(20, 40)))
    assert np.abs(moved[:, :22] - pixels(picture(20, 40))[:, 18:]).max() <= 1
    assert (moved[:, -17:] == 128).all()


@pytest.mark.parametrize("name", ["shear", "translate"])
def test_an_operation_down_is_the_one_to_the_side_on_a_picture_that_lies_on_its_side(name: str) -> None:
    source, turned = picture(20, 40), picture(20, 40).transpose(Image.Transpose.TRANSPOSE)
    down, aside = (_OPERATIONS[f"{name}_{axis}"](1.0, 1.0) for axis in "yx")
    assert np.abs(pixels(down(source)) - pixels(aside(turned)).swapaxes(0, 1)).max() <= 1


def test_a_training_clip_goes_through_the_policy() -> None:
    plain, augmented = (Augmentation(crop="centre", rand_augment=policy) for policy in (None, "rand-m10-n8-inc1"))
    frames = clip().contiguous()
    results = []
    for augmentation in (plain, augmented):
        drawn = draw(augmentation, 24, 32, 16, np.random.default_rng(0))
        results.append(change(drawn, crop(frames, drawn.window), 16))
    assert results[0].shape == results[1].shape == (3, 3, 16, 16)
    assert not torch.equal(results[0], results[1])
