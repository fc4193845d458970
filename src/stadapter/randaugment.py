"""RandAugment (Cubuk et al., 2020, arXiv 1909.13719) in timm's convention, drawn once per clip.

A policy is written as in timm, such as "rand-m7-n4-mstd0.5-inc1": magnitude 7 of 10, 4 operations, a standard deviation
of 0.5 on the magnitude, and only operations that grow stronger with it. Each operation is carried out with probability
1/2; which ones, how strongly and in which direction is drawn once, and is the same for every frame of a clip.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from stadapter.errors import SettingsError

_HIGHEST = 10.0
"""Magnitudes go from 0 to this."""
_FILL = (128, 128, 128)
_PROBABILITY = 0.5
_PART = re.compile(r"(mstd|inc|m|n)(\d+(?:\.\d+)?)")

Operation = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Policy:
    """What a string such as "rand-m7-n4-mstd0.5-inc1" says."""

    magnitude: float
    """Mean strength, 0 to 10."""
    num_operations: int
    """Operations drawn for a clip, with replacement."""
    magnitude_std: float
    """Standard deviation of the strength, drawn for each operation."""


def parse_policy(text: str) -> Policy:
    """Read a policy; its parts may come in any order.

    Raises:
        SettingsError: not of that form, a magnitude above 10, no operation, or without inc1.

    >>> parse_policy("rand-m7-n4-mstd0.5-inc1")
    Policy(magnitude=7.0, num_operations=4, magnitude_std=0.5)
    """
    head, *parts = text.split("-")
    found = [_PART.fullmatch(part) for part in parts]
    values = {match[1]: float(match[2]) for match in found if match is not None}
    if head != "rand" or None in found or len(values) != len(parts):
        raise SettingsError(
            f"rand_augment {text!r}: expected timm's form such as rand-m7-n4-mstd0.5-inc1, with m (magnitude, 0 to "
            "10), n (operations), mstd (spread of the magnitude) and inc1"
        )
    policy = Policy(values.get("m", _HIGHEST), int(values.get("n", 2)), values.get("mstd", 0.0))
    if values.get("inc") != 1:
        raise SettingsError(f"rand_augment {text!r}: expected operations that grow with the magnitude; add -inc1")
    if policy.magnitude > _HIGHEST or policy.num_operations < 1 or policy.num_operations != values.get("n", 2):
        raise SettingsError(f"rand_augment {text!r}: expected a magnitude m of 0 to 10 and at least 1 operation n")
    return policy


def draw_operations(policy: Policy, generator: np.random.Generator) -> list[Operation]:
    """Draw once for a clip: operations on RGB pictures, to be applied to every frame in this order.

    Always takes the same number of values from the generator.
    """
    chosen = generator.integers(len(_OPERATIONS), size=policy.num_operations)
    uniform = generator.random((policy.num_operations, 2))
    strengths = policy.magnitude + policy.magnitude_std * generator.standard_normal(policy.num_operations)
    operations = list(_OPERATIONS.values())
    return [
        operations[index](min(_HIGHEST, max(0.0, float(strength))) / _HIGHEST, -1.0 if sign_draw < 0.5 else 1.0)
        for index, (happens, sign_draw), strength in zip(chosen, uniform, strengths, strict=True)
        if happens < _PROBABILITY
    ]


# Each makes an operation from a strength (0 to 1) and a sign (-1 or 1).


def _auto_contrast(strength: float, sign: float) -> Operation:
    return ImageOps.autocontrast


def _equalize(strength: float, sign: float) -> Operation:
    return ImageOps.equalize


def _invert(strength: float, sign: float) -> Operation:
    return ImageOps.invert


def _rotate(strength: float, sign: float) -> Operation:
    return lambda picture: picture.rotate(sign * 30 * strength, Image.Resampling.BICUBIC, fillcolor=_FILL)


def _posterize(strength: float, sign: float) -> Operation:
    # From 4 bits per colour down to none, which is black, as in timm.
    bits = 4 - int(4 * strength)
    table = [value & ~(2 ** (8 - bits) - 1) for value in range(256)]
    return lambda picture: picture.point(table * 3)


def _solarize(strength: float, sign: float) -> Operation:
    return partial(ImageOps.solarize, threshold=256 - int(256 * strength))


def _solarize_add(strength: float, sign: float) -> Operation:
    added = int(110 * strength)
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return lambda picture: picture.point(table * 3)


def _enhance(
    kind: type[ImageEnhance.Color | ImageEnhance.Contrast | ImageEnhance.Brightness | ImageEnhance.Sharpness],
) -> Callable[[float, float], Operation]:
    return lambda strength, sign: lambda picture: kind(picture).enhance(1 + sign * 0.9 * strength)


def _shear(axis: str) -> Callable[[float, float], Operation]:
    def make(strength: float, sign: float) -> Operation:
        slope = sign * 0.3 * strength
        matrix = (1, slope, 0, 0, 1, 0) if axis == "x" else (1, 0, 0, slope, 1, 0)
        return lambda picture: _affine(picture, matrix)

    return make


def _translate(axis: str) -> Callable[[float, float], Operation]:
    def make(strength: float, sign: float) -> Operation:
        share = sign * 0.45 * strength  # of the picture's side

        def translate(picture: Image.Image) -> Image.Image:
            x, y = (share * picture.width, 0.0) if axis == "x" else (0.0, share * picture.height)
            return _affine(picture, (1, 0, x, 0, 1, y))

        return translate

    return make


def _affine(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    kept = Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    return picture.transform(picture.size, *kept, fillcolor=_FILL)


_OPERATIONS: dict[str, Callable[[float, float], Operation]] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _shear("x"),
    "shear_y": _shear("y"),
    "translate_x": _translate("x"),
    "translate_y": _translate("y"),
}
"""timm's 15 increasing operations, in its order."""
