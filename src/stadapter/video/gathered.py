"""What every source of frames returns: the wanted frames, each in its place."""

# T frames, U different frames, H W pixels

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Region = Callable[[int, int], tuple[slice, slice]]
"""From the height and width of frames to the rows and columns to keep of them."""


class Gathered:
    """The wanted frames, each cropped and put in its place as it arrives: no other whole frame is held.

    wanted {7, 2, 5}     pixels (U, H, W, 3)     [ frame 2 | frame 5 | frame 7 ]
    """

    def __init__(self, wanted: Iterable[int], region: Region | None) -> None:
        self.missing = set(wanted)
        self._place = {index: place for place, index in enumerate(sorted(self.missing))}
        self._region = region

    def put(self, index: int, pixels: Pixels) -> None:
        """Keep a frame (H, W, 3); one that differs in size from the first, as in rare videos, is resized to match."""
        if len(self.missing) == len(self._place):
            self._height, self._width = pixels.shape[:2]
            whole = slice(self._height), slice(self._width)
            self._part = whole if self._region is None else self._region(self._height, self._width)
            first = pixels[self._part]
            self._pixels = np.empty((len(self._place), *first.shape), np.uint8)
        if pixels.shape[:2] != (self._height, self._width):
            resized = Image.fromarray(pixels).resize((self._width, self._height), Image.Resampling.BICUBIC)
            pixels = np.array(resized)
        self._pixels[self._place[index]] = pixels[self._part]
        self.missing.discard(index)

    def in_order(self, wanted: Sequence[int]) -> Pixels:
        """The frames with these numbers, (T, H, W, 3)."""
        places = [self._place[index] for index in wanted]
        return self._pixels if places == list(range(len(self._pixels))) else self._pixels[places]
