"""Small real videos of a moving square, made on the spot: data for tests and first steps.

The classes come in pairs, each the other played backwards, and clip i of every class has the same background and
square, so no single frame tells the two of a pair apart: only a model that sees time can.
"""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from stadapter.errors import SettingsError

# Where the square goes, as fractions of the free path: (x, y, side) at the start and at the end of the clip.
_MOTIONS = {
    "left": ((1.0, 0.5, 0.25), (0.0, 0.5, 0.25)),
    "right": ((0.0, 0.5, 0.25), (1.0, 0.5, 0.25)),
    "up": ((0.5, 1.0, 0.25), (0.5, 0.0, 0.25)),
    "down": ((0.5, 0.0, 0.25), (0.5, 1.0, 0.25)),
    "grow": ((0.5, 0.5, 0.1), (0.5, 0.5, 0.6)),
    "shrink": ((0.5, 0.5, 0.6), (0.5, 0.5, 0.1)),
}
CLASSES = tuple(_MOTIONS)
"""The available classes; left and right, up and down, grow and shrink are each other in reverse."""


def write_clips(
    folder: str | os.PathLike[str],
    *,
    classes: Sequence[str] = ("left", "right", "up", "down"),
    clips_per_class: int = 4,
    seed: int = 0,
    size: int = 64,
    num_frames: int = 16,
    frames_per_second: int = 10,
) -> list[Path]:
    """Write `<folder>/<class>/<class>_<i>.mp4`, H.264 clips of `size` x `size` pixels; return the paths.

    Clip i of a class depends only on `seed` and i.

    Raises:
        SettingsError: an unknown class, a size that is odd or too small, or nothing to write.
    """
    if unknown := [name for name in classes if name not in _MOTIONS]:
        raise SettingsError(f"no motion is called {', '.join(unknown)}; expected some of {', '.join(CLASSES)}")
    if size < 16 or size % 2:
        raise SettingsError(f"size is {size} pixels; expected an even number, 16 or more")
    if clips_per_class < 1 or num_frames < 1:
        raise SettingsError(f"{clips_per_class} clips of {num_frames} frames; expected at least one of each")
    paths = []
    for name in classes:
        for index in range(clips_per_class):
            path = Path(folder) / name / f"{name}_{index:02d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = draw_clip(name, index, seed=seed, size=size, num_frames=num_frames)
            write_video(path, frames, frames_per_second=frames_per_second)
            paths.append(path)
    return paths


def draw_clip(name: str, index: int, *, seed: int = 0, size: int = 64, num_frames: int = 16) -> NDArray[np.uint8]:
    """The frames of clip `index` of class `name`: uint8 (num_frames, size, size, 3)."""
    generator = np.random.default_rng((seed, index))
    coarse = generator.integers(0, 160, (4, 4, 3), dtype=np.uint8)
    background = np.kron(coarse, np.ones((size // 4 + 1, size // 4 + 1, 1), np.uint8))[:size, :size]
    colour = generator.integers(180, 256, 3, dtype=np.uint8)
    shift = generator.uniform(-0.15, 0.15, 2)  # of the way across, the same in all frames
    start, end = np.array(_MOTIONS[name])
    frames = np.repeat(background[None], num_frames, axis=0)
    for frame, progress in zip(frames, np.linspace(0.0, 1.0, num_frames), strict=True):
        x, y, side = start + (end - start) * progress
        pixels = max(2, round(side * size))
        left, top = np.clip((np.array([x, y]) + shift) * (size - pixels), 0, size - pixels).round().astype(int)
        frame[top : top + pixels, left : left + pixels] = colour
    return frames


def write_video(path: str | os.PathLike[str], frames: NDArray[np.uint8], *, frames_per_second: int = 10) -> None:
    """Encode uint8 (T, H, W, 3) frames with even H and W as a nearly lossless H.264 file."""
    with av.open(os.fspath(path), "w") as container:
        # A fixed quantiser: with rate control x264 does not write the same bytes every time.
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second), options={"qp": "10", "threads": "1"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
