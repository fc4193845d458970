"""Which frames of a video make a clip: pure integer arithmetic, no pixels."""

from itertools import pairwise

import numpy as np

from stadapter.errors import SettingsError


def uniform_indices(total_frames: int, num_frames: int, num_views: int = 1) -> list[list[int]]:
    """One frame number from each of `num_frames` equal parts of the whole video, once per temporal view.

    View v of V takes the frame (v + 1) / (V + 1) of the way through each part; a single view takes the middle, as in
    temporal segment networks (arXiv 1608.00859). Numbers repeat if the video is shorter than the clip.

    >>> uniform_indices(100, 4)
    [[12, 37, 62, 86]]
    >>> uniform_indices(3, 4)
    [[0, 0, 1, 2]]

    Raises SettingsError if a count is below one.
    """
    _require_positive(total_frames=total_frames, num_frames=num_frames, num_views=num_views)
    edges = _part_edges(total_frames, num_frames)
    return [
        [start + (end - start) * (view + 1) // (num_views + 1) for start, end in pairwise(edges)]
        for view in range(num_views)
    ]


def dense_indices(total_frames: int, num_frames: int, stride_frames: int, num_views: int = 1) -> list[list[int]]:
    """Every `stride_frames`-th frame number, in each of `num_views` windows spread evenly from start to end.

    A single view is the centred window. A video shorter than the window repeats its last frame.

    >>> dense_indices(100, 4, 8)
    [[37, 45, 53, 61]]
    >>> dense_indices(100, 4, 8, num_views=2)
    [[0, 8, 16, 24], [75, 83, 91, 99]]

    Raises SettingsError if a count is below one.
    """
    _require_positive(
        total_frames=total_frames, num_frames=num_frames, stride_frames=stride_frames, num_views=num_views
    )
    room = _room(total_frames, num_frames, stride_frames)
    # The start of a single view is rounded down, those of several half to even: the released arithmetic.
    starts = [room // 2]
    if num_views > 1:
        starts = [round(room / (num_views - 1) * view) for view in range(num_views)]
    return [_window(start, total_frames, num_frames, stride_frames) for start in starts]


def random_uniform_indices(total_frames: int, num_frames: int, generator: np.random.Generator) -> list[int]:
    """One random frame number from each of `num_frames` equal parts of the whole video, in ascending order.

    Raises SettingsError if a count is below one.
    """
    _require_positive(total_frames=total_frames, num_frames=num_frames)
    edges = np.array(_part_edges(total_frames, num_frames))
    return [int(index) for index in generator.integers(edges[:-1], edges[1:], endpoint=True)]


def random_dense_indices(
    total_frames: int, num_frames: int, stride_frames: int, generator: np.random.Generator
) -> list[int]:
    """Every `stride_frames`-th frame number in a window that starts at random.

    A video shorter than the window starts at 0 and repeats its last frame.
    Raises SettingsError if a count is below one.
    """
    _require_positive(total_frames=total_frames, num_frames=num_frames, stride_frames=stride_frames)
    start = int(generator.integers(_room(total_frames, num_frames, stride_frames), endpoint=True))
    return _window(start, total_frames, num_frames, stride_frames)


def _part_edges(total_frames: int, num_frames: int) -> list[int]:
    # The float product and round-half-to-even are the released arithmetic: exact fractions would differ.
    part = (total_frames - 1) / num_frames
    return [round(part * edge) for edge in range(num_frames + 1)]


def _room(total_frames: int, num_frames: int, stride_frames: int) -> int:
    """How many frames the window can slide by."""
    return max(total_frames - ((num_frames - 1) * stride_frames + 1), 0)


def _window(start: int, total_frames: int, num_frames: int, stride_frames: int) -> list[int]:
    return [min(start + step * stride_frames, total_frames - 1) for step in range(num_frames)]


def _require_positive(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise SettingsError(f"{name} {value}: expected at least 1")
