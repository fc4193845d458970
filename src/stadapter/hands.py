"""A drawn hand that moves over clutter: real video files whose classes differ only in the order of their frames.

The classes come in pairs, each the other played backwards. Clip i of both classes of a pair shows the same hand in the
same places over the same background, so a model blind to order cannot get more than half of them right.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stadapter.errors import SettingsError
from stadapter.synthetic import write_video

PAIRS = (("left", "right"), ("up", "down"), ("clockwise", "anticlockwise"), ("opening", "closing"))
"""The classes; the second of each pair is the first played backwards."""
CLASSES = tuple(name for pair in PAIRS for name in pair)
_SMOOTH = 3
"""Pictures are drawn this many times larger, then averaged down."""
_FINGERS = (-62.0, -24.0, 0.0, 22.0, 44.0)
"""Directions of thumb and fingers of an open hand, in degrees from where the hand points."""


@dataclass(frozen=True)
class _Hand:
    """What a hand looks like; lengths as fractions of the picture's side."""

    skin: tuple[int, int, int]
    edge: tuple[int, int, int]
    palm: float
    elbow: tuple[float, float]
    """Where the arm comes from, outside the picture."""


@dataclass(frozen=True)
class _Pose:
    """Where a hand is in one frame."""

    x: float
    y: float
    openness: float
    """0 is a fist with one finger pointing, 1 is five spread fingers."""


def write_hand_clips(
    folder: str | os.PathLike[str],
    *,
    clips_per_class: int,
    seed: int,
    size: int = 96,
    num_frames: int = 24,
    frames_per_second: int = 12,
) -> list[Path]:
    """Write `<folder>/<class>/<class>_<i>.mp4`, H.264 clips of `size` x `size` pixels; return the paths.

    Clips of another seed show other hands, backgrounds and paths.

    Raises:
        SettingsError: a size that is odd or too small, or nothing to write.
    """
    if size < 32 or size % 2:
        raise SettingsError(f"size is {size} pixels; expected an even number, 32 or more")
    if clips_per_class < 1 or num_frames < 2:
        raise SettingsError(f"{clips_per_class} clips of {num_frames} frames; expected at least 1 clip of 2 frames")
    paths = []
    for number, pair in enumerate(PAIRS):
        for index in range(clips_per_class):
            frames = _draw_clip(number, np.random.default_rng((seed, number, index)), size, num_frames)
            for name, ordered in zip(pair, (frames, frames[::-1]), strict=True):
                path = Path(folder) / name / f"{name}_{index:03d}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, ordered, frames_per_second=frames_per_second)
                paths.append(path)
    return paths


def _draw_clip(pair: int, generator: np.random.Generator, size: int, num_frames: int) -> NDArray[np.uint8]:
    """A clip of the first class of a pair: uint8 (num_frames, size, size, 3)."""
    background = _clutter(generator, size * _SMOOTH)
    hand = _draw_hand(generator)
    poses = _way(PAIRS[pair][0], generator, num_frames)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for frame, pose in zip(frames, poses, strict=True):
        picture = background.copy()
        _paint(picture, hand, pose)
        frame[:] = np.asarray(picture.reduce(_SMOOTH))
    return frames


def _way(name: str, generator: np.random.Generator, num_frames: int) -> list[_Pose]:
    """The poses of a clip; its speed varies the same way from either end."""
    time = np.linspace(0.0, 1.0, num_frames)
    ease = generator.uniform(0.0, 0.5)
    time = (1 - ease) * time + ease * (0.5 - 0.5 * np.cos(np.pi * time))
    across, x, y = generator.uniform(0.3, 0.7), generator.uniform(0.4, 0.6), generator.uniform(0.4, 0.6)
    reach, sway = generator.uniform(0.28, 0.38), generator.uniform(-0.06, 0.06)
    openness = generator.uniform(0.0, 0.15)
    if name == "left":
        return [_Pose(x + reach * (1 - 2 * t), across + sway * t, openness) for t in time]
    if name == "up":
        return [_Pose(across + sway * t, y + reach * (1 - 2 * t), openness) for t in time]
    if name == "clockwise":
        radius, start = generator.uniform(0.22, 0.3), generator.uniform(0, 2 * math.pi)
        angles = start + 2 * math.pi * time
        return [_Pose(x + radius * math.cos(a), y + radius * math.sin(a), openness) for a in angles]
    return [_Pose(x + sway * t, y + sway * (1 - t), t) for t in time]


def _draw_hand(generator: np.random.Generator) -> _Hand:
    light = generator.uniform(0.7, 1.0)
    skin = np.array([255, 205, 170]) * light + generator.uniform(-12, 12, 3)
    side = generator.uniform(0.2, 0.8)
    elbow = ((side, 1.35), (-0.35, side), (1.35, side))[generator.choice(3, p=(0.6, 0.2, 0.2))]
    return _Hand(
        skin=_colour(skin), edge=_colour(skin * 0.55), palm=generator.uniform(0.105, 0.14), elbow=(elbow[0], elbow[1])
    )


def _paint(picture: Image.Image, hand: _Hand, pose: _Pose) -> None:
    """Draw the arm, the fingers and the palm, each with a darker edge."""
    draw, side = ImageDraw.Draw(picture), picture.width
    centre = np.array([pose.x, pose.y])
    pointing = math.degrees(math.atan2(pose.y - hand.elbow[1], pose.x - hand.elbow[0]))
    parts = [(np.array(hand.elbow), centre, hand.palm * 0.55)]
    for number, direction in enumerate(_FINGERS):
        folded = 1.0 if number == 2 else 0.2 + 0.7 * pose.openness  # the middle one always points
        angle = math.radians(pointing + direction * (0.3 + 0.7 * pose.openness))
        tip = centre + hand.palm * (0.9 + 1.6 * folded) * np.array([math.cos(angle), math.sin(angle)])
        parts.append((centre, tip, hand.palm * 0.3))
    for colour, border in ((hand.edge, 0.012), (hand.skin, 0.0)):
        for start, end, radius in parts:
            _stroke(draw, start * side, end * side, (radius + border) * side, colour)
        _stroke(draw, centre * side, centre * side, (hand.palm + border) * side, colour)


def _stroke(
    draw: ImageDraw.ImageDraw,
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    radius: float,
    colour: tuple[int, int, int],
) -> None:
    """A line with round ends, lengths in pixels."""
    draw.line([*start, *end], fill=colour, width=max(1, round(2 * radius)))
    for x, y in (start, end):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)


def _clutter(generator: np.random.Generator, side: int) -> Image.Image:
    """A background of soft patches, things lying about, and noise: side x side pixels."""
    coarse = generator.uniform(25, 115, (4, 4, 1)) + generator.uniform(-25, 25, (4, 4, 3))  # more light than colour
    picture = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(int(generator.integers(5, 11))):
        x, y = generator.uniform(0, side, 2)
        width, height = generator.uniform(0.04, 0.22, 2) * side
        colour = _colour(generator.uniform(15, 130) + generator.uniform(-40, 40, 3))
        box = [x - width, y - height, x + width, y + height]
        kind = int(generator.integers(3))
        if kind == 0:
            draw.rectangle(box, fill=colour)
        elif kind == 1:
            draw.ellipse(box, fill=colour)
        else:
            draw.line(box, fill=colour, width=max(1, round(0.1 * (width + height))))
    noise = generator.normal(0, 6, (side // _SMOOTH, side // _SMOOTH, 1)).repeat(_SMOOTH, 0).repeat(_SMOOTH, 1)
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def _colour(values: Sequence[float] | NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (int(min(255, max(0, value))) for value in values)
    return red, green, blue
