"""What a clip shows of its frames: the windows of test views, and the random draw for a training clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stadapter.errors import SettingsError
from stadapter.field_types import check_limits, check_types
from stadapter.randaugment import Operation, draw_operations, parse_policy

# H W pixels

Fit = Literal["crop", "stretch"]

_CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training clip, drawn once per clip and the same for every frame."""

    crop: Literal["random_resized", "short_side_jitter", "centre"] = "random_resized"
    """random_resized: a window of random area and shape; short_side_jitter: a square, as released; centre: fixed."""
    scale: tuple[float, float] = (0.4, 1.0)
    """For random_resized the window's share of the area, 0 to 1; for short_side_jitter short side / size, from 1."""
    ratio: tuple[float, float] = (0.75, 1.3333)
    """Smallest and largest width over height of a random_resized window."""
    flip: bool = False
    """Mirror half of the clips left to right. Leave this off if direction is part of the class."""
    colour_jitter: float = 0.0
    """Strength, 0 to 1: brightness, contrast and saturation are scaled by 1 - strength to 1 + strength."""
    rand_augment: str | None = None
    """RandAugment policy in timm's form, such as rand-m7-n4-mstd0.5-inc1; its operations may turn and shear a clip."""

    def __post_init__(self) -> None:
        check_types(self)
        low, high = self.scale
        if self.crop == "random_resized" and not 0 < low <= high <= 1:
            raise SettingsError(f"scale {self.scale}: random_resized expects 0 < low <= high <= 1 (share of the area)")
        if self.crop == "short_side_jitter" and not 1 <= low <= high:
            raise SettingsError(
                f"scale {self.scale}: short_side_jitter expects 1 <= low <= high (1.0 1.15 as released)"
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise SettingsError(f"ratio {self.ratio}: expected 0 < low <= high")
        check_limits(self, {"colour_jitter": (0, 1)})
        if self.rand_augment is not None:
            parse_policy(self.rand_augment)


@dataclass(frozen=True)
class Window:
    """A rectangle of a frame, in whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def within(self, part: "Window") -> "Window":
        """The same pixels in a frame that was cropped to `part`."""
        return replace(self, top=self.top - part.top, left=self.left - part.left)


@dataclass(frozen=True)
class Draw:
    """What was drawn for one clip."""

    window: Window
    flip: bool
    brightness: float
    contrast: float
    saturation: float
    operations: tuple[Operation, ...] = ()
    """Those of RandAugment."""


def draw(
    augmentation: Augmentation,
    height: int,
    width: int,
    size: int,
    generator: np.random.Generator,
    *,
    fit: Fit = "crop",
) -> Draw:
    """Draw once for a clip of `height` x `width` pixels that will become `size` x `size`.

    With fit="stretch", windows and their ratios are measured on the frame squeezed to a square, so that
    training clips are squeezed like test clips. The draw is a pure function of the generator's state, and
    always takes the same number of values from it.
    """
    flip_draw, *colour_draws = generator.random(4)
    crop_draws = generator.random((_CROP_TRIES, 4))
    if augmentation.crop == "random_resized":
        window = _random_resized_window(augmentation, height, width, crop_draws, fit)
    elif augmentation.crop == "short_side_jitter":
        window = _jittered_window(augmentation, height, width, size, crop_draws[0], fit)
    else:
        window = centre_window(height, width, fit)
    brightness, contrast, saturation = (
        1 + augmentation.colour_jitter * (2 * float(value) - 1) for value in colour_draws
    )
    operations = (
        draw_operations(parse_policy(augmentation.rand_augment), generator) if augmentation.rand_augment else ()
    )
    return Draw(
        window, augmentation.flip and bool(flip_draw < 0.5), brightness, contrast, saturation, tuple(operations)
    )


def centre_window(height: int, width: int, fit: Fit = "crop") -> Window:
    """The largest centred square, or the whole frame if it will be stretched."""
    if fit == "stretch":
        return Window(0, 0, height, width)
    side = min(height, width)
    return Window((height - side) // 2, (width - side) // 2, side, side)


def enclosing(windows: Sequence[Window]) -> Window:
    """The smallest window that holds all of these."""
    top, left = min(each.top for each in windows), min(each.left for each in windows)
    bottom, right = max(each.top + each.height for each in windows), max(each.left + each.width for each in windows)
    return Window(top, left, bottom - top, right - left)


def check_spatial_views(num_views: int | None) -> None:
    """Refuse another number of crops than there can be; None stands for a default.

    Raises:
        SettingsError: neither 1 nor 3.
    """
    if num_views not in (None, 1, 3):
        raise SettingsError(f"num_spatial_views {num_views}: expected 1 (centre) or 3 (the whole frame)")


def spatial_windows(height: int, width: int, num_views: int) -> list[Window]:
    """Squares as wide as the shorter side: one in the centre, or three at the start, middle and end of the longer side.

    Raises SettingsError unless there are 1 or 3 views.
    """
    check_spatial_views(num_views)
    if num_views == 1:
        return [centre_window(height, width)]
    side = min(height, width)
    margin = max(height, width) - side
    starts = (0, margin // 2, margin)
    if height > width:
        return [Window(start, 0, side, side) for start in starts]
    return [Window(0, start, side, side) for start in starts]


def _random_resized_window(augmentation: Augmentation, height: int, width: int, draws: np.ndarray, fit: Fit) -> Window:
    """The first drawn window that fits the frame (Inception-style crop), or else the centre."""
    low, high = augmentation.scale
    log_ratio = np.log(augmentation.ratio)
    # On a squeezed frame a square window has the frame's own shape.
    shape = width / height if fit == "stretch" else 1.0
    for area_draw, ratio_draw, top_draw, left_draw in draws:
        area = (low + (high - low) * area_draw) * height * width
        ratio = shape * math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio_draw)
        window_width, window_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < window_width <= width and 0 < window_height <= height:
            return _placed(height, width, window_height, window_width, top_draw, left_draw)
    return centre_window(height, width, fit)


def _jittered_window(
    augmentation: Augmentation, height: int, width: int, size: int, draws: np.ndarray, fit: Fit
) -> Window:
    """What a random `size` crop sees of a frame whose short side was resized to a random length."""
    low, high = (round(size * scale) for scale in augmentation.scale)
    short_side = low + min(int(draws[0] * (high - low + 1)), high - low)
    base = centre_window(height, width, fit)
    window_height = max(round(base.height * size / short_side), 1)
    window_width = max(round(base.width * size / short_side), 1)
    return _placed(height, width, window_height, window_width, draws[2], draws[3])


def _placed(
    height: int, width: int, window_height: int, window_width: int, top_draw: float, left_draw: float
) -> Window:
    top = min(int(top_draw * (height - window_height + 1)), height - window_height)
    left = min(int(left_draw * (width - window_width + 1)), width - window_width)
    return Window(top, left, window_height, window_width)
