"""Resizes are close to their definitions; one draw per clip, from the generator alone, inside the frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stadapter import transforms
from stadapter.augmentation import Augmentation, Draw, Window, draw, enclosing

PLAIN = Draw(Window(0, 0, 48, 64), flip=False, brightness=1, contrast=1, saturation=1)


def smooth_frames(num_frames: int = 4, height: int = 240, width: int = 320) -> torch.Tensor:
    """uint8 (T, 3, H, W) with the memory layout of decoded frames: coarse colours, some noise."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (num_frames, 3, 12, 16))).float()
    frames = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    frames += torch.from_numpy(rng.normal(0, 6, frames.shape)).float()
    frames = frames.clamp(0, 255).to(torch.uint8)
    return frames.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [32, 112, 224])
def test_fast_resize_is_close_to_the_float_one(size: int) -> None:
    frames = smooth_frames()
    exact = F.interpolate(frames.float(), size=(size, size), mode="bicubic", antialias=True, align_corners=False).clamp(
        0, 255
    )
    fast = transforms.resize_fast(frames, size, size)
    assert fast.dtype == torch.uint8
    assert (fast.float() - exact).abs().mean() <= 0.5


def test_fast_resize_of_a_crop_does_not_depend_on_memory_layout() -> None:
    cropped = transforms.crop(smooth_frames(), Window(10, 20, 200, 180))
    assert torch.equal(transforms.resize_fast(cropped, 64, 64), transforms.resize_fast(cropped.contiguous(), 64, 64))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(64, 96, (32, 48)), (112, 64, (56, 32)), (50, 50, (32, 32)), (48, 70, (32, 46)), (70, 48, (46, 32))],
)
def test_short_side_resize_rounds_the_longer_side_down(height: int, width: int, expected: tuple[int, int]) -> None:
    assert transforms.short_side_resize(torch.zeros(2, 3, height, width), 32).shape[-2:] == expected


def applied(drawn: Draw, frames: torch.Tensor, size: int) -> torch.Tensor:
    return transforms.change(drawn, transforms.crop(frames, drawn.window), size)


def test_a_clip_is_changed_alike_on_every_frame() -> None:
    frame = smooth_frames(1)
    augmentation = Augmentation(flip=True, colour_jitter=0.5)
    drawn = draw(augmentation, 240, 320, 64, np.random.default_rng(3))
    changed = applied(drawn, frame.expand(5, -1, -1, -1), 64)
    assert changed.shape == (5, 3, 64, 64)
    assert changed.dtype == torch.uint8
    assert all(torch.equal(changed[0], other) for other in changed[1:])


def test_without_randomness_a_clip_is_only_resized() -> None:
    frames = smooth_frames(2, 48, 48)
    drawn = draw(Augmentation(crop="centre"), 48, 48, 32, np.random.default_rng(0))
    assert torch.equal(applied(drawn, frames, 32), transforms.resize_fast(frames, 32, 32))


def test_a_mirrored_clip_is_the_clip_turned_left_to_right() -> None:
    frames = smooth_frames(2, 48, 64)
    mirrored = applied(replace(PLAIN, flip=True), frames, 64)
    assert torch.equal(mirrored, applied(PLAIN, frames, 64).flip(-1))


def test_operations_see_a_clip_that_is_mirrored_already() -> None:
    frames, size = smooth_frames(1, 48, 48), 48
    drawn = replace(PLAIN, window=Window(0, 0, 48, 48), flip=True, operations=(lambda picture: picture.rotate(30),))
    mirrored = transforms.mirror(frames, drawn)
    assert torch.equal(applied(drawn, frames, size), transforms.rand_augment(mirrored, drawn.operations))


def test_colour_changes_do_what_their_names_say() -> None:
    frames = (smooth_frames(2, 24, 32) // 2) + 40
    darker = transforms.recolour(frames, replace(PLAIN, brightness=0.5)).float()
    assert darker.mean().item() == pytest.approx(frames.float().mean().item() / 2, rel=0.01)
    assert transforms.recolour(frames, replace(PLAIN, contrast=0.5)).float().std() < 0.6 * frames.float().std()
    grey = transforms.recolour(frames, replace(PLAIN, saturation=0.0))
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(transforms.recolour(frames, PLAIN), frames)


@pytest.mark.parametrize("strengths", [(1.3, 1.4, 0.6), (0.7, 0.5, 1.4), (1.0, 1.0, 1.01)])
def test_colours_are_changed_by_the_written_arithmetic_whatever_the_layout(
    strengths: tuple[float, float, float],
) -> None:
    brightness, contrast, saturation = strengths
    planes = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 20, 30), dtype=np.uint8))
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    colour = (planes.float() * brightness).clamp(0, 255)
    middle = (colour * luma).sum(-3).mean()
    colour = (middle + (colour - middle) * contrast).clamp(0, 255)
    grey = (colour * luma).sum(-3, keepdim=True)
    expected = (grey + (colour - grey) * saturation).round().clamp(0, 255).to(torch.uint8)
    drawn = replace(PLAIN, brightness=brightness, contrast=contrast, saturation=saturation)
    interleaved = planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(transforms.recolour(planes, drawn), expected)
    assert torch.equal(transforms.recolour(interleaved, drawn), expected)


def test_windows_are_found_again_in_the_part_that_holds_them_all() -> None:
    windows = [Window(10, 4, 20, 30), Window(2, 14, 8, 25)]
    part = enclosing(windows)
    assert part == Window(2, 4, 28, 35)
    frames = smooth_frames(2)
    for window in windows:
        within = transforms.crop(transforms.crop(frames, part), window.within(part))
        assert torch.equal(within, transforms.crop(frames, window))


def test_arguments_are_not_written_to() -> None:
    frames = smooth_frames(2)
    before = frames.clone()
    drawn = draw(Augmentation(flip=True, colour_jitter=1.0), 240, 320, 32, np.random.default_rng(1))
    applied(drawn, frames, 32)
    transforms.normalise(frames, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.equal(frames, before)


def test_normalise_scales_to_one_then_subtracts_and_divides() -> None:
    frames = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    normalised = transforms.normalise(frames, (0.5, 0.5, 0.2), (0.5, 0.25, 1.0))
    torch.testing.assert_close(normalised.flatten(), torch.tensor([-1.0, 2.0, 0.0]))
