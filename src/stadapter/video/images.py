"""Videos that are folders of numbered images."""

import os
import re
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from stadapter.errors import VideoError
from stadapter.video.gathered import Gathered, Pixels, Region
from stadapter.video.info import VideoInfo
from stadapter.video.limits import MAX_FRAME_PIXELS, too_large
from stadapter.video.segment import Segment
from stadapter.wording import first_line

# H W pixels

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageFolder:
    """Numbered images in the order of their numbers.

    Image i, counting from 0, is shown at i / frames_per_second; without a rate it cannot be cut by seconds.
    """

    def __init__(self, path: Path, segment: Segment, frames_per_second: float | None) -> None:
        numbered = sorted((key[1], key[0], name) for name in os.listdir(path) if (key := image_number(name)))
        prefixes = sorted({prefix for _, prefix, _ in numbered})
        if not numbered:
            raise VideoError(f"{path.name}: a folder without numbered .jpg or .png images is not a video")
        if len(prefixes) > 1:
            raise VideoError(f"{path.name}: {len(prefixes)} image sequences in one folder {prefixes}; keep one")
        for (number, _, name), (next_number, _, next_name) in pairwise(numbered):
            if number == next_number:  # pictures and masks, perhaps
                raise VideoError(f"{path.name}: two images are number {number}, {name} and {next_name}; keep one")
        if not segment.is_whole:
            if not frames_per_second:
                raise VideoError(
                    f"{path.name}: a folder of images has no frame rate, so it cannot be cut by seconds; from Python, "
                    "set frames_per_second"
                )
            inside = segment.numbers(len(numbered), frames_per_second=frames_per_second)
            if not inside:
                raise VideoError(f"{path.name}: no frame between {segment}")
            numbered = numbered[inside.start : inside.stop]
        self.has_lost_frames = False
        self._files = [path / name for _, _, name in numbered]
        self.num_frames = len(self._files)

    def read(self, wanted: set[int], region: Region | None) -> Gathered:
        """The frames with these numbers, all of them."""
        gathered = Gathered(wanted, region)
        for index in sorted(wanted):
            gathered.put(index, _load(self._files[index]))
        return gathered

    def info(self) -> VideoInfo:
        """What is known of the folder, from its first image."""
        height, width, _ = _load(self._files[0]).shape
        return VideoInfo(self.num_frames, None, width, height, self._files[0].suffix.lower().lstrip("."), None)

    def decode_all(self) -> tuple[int, int]:
        """How many images can be read, and 0 for the damaged: a damaged image cannot be read."""
        num_decoded = 0
        for file in self._files:
            with suppress(VideoError):
                _load(file)
                num_decoded += 1
        return num_decoded, 0

    def close(self) -> None:
        """Do nothing: no file is open."""


def image_number(name: str) -> tuple[str, int] | None:
    """The prefix and number in an image's file name; None for any other name."""
    file = Path(name)
    number = re.search(r"(\d+)$", file.stem)
    if file.suffix.lower() not in IMAGE_SUFFIXES or number is None or name.startswith("."):
        return None
    return file.stem[: number.start()], int(number.group())


def _load(file: Path) -> Pixels:
    """RGB (H, W, 3), upright."""
    try:
        with _open_image(file) as image:
            if image.width * image.height > MAX_FRAME_PIXELS:
                raise ValueError(too_large(image.width, image.height))
            upright: Image.Image = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
                grey = (np.asarray(upright) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=-1)
            return np.array(upright.convert("RGB"))
    except Exception as error:  # each kind of damage raises its own type, as does too large an image
        raise VideoError(f"{file.parent.name}/{file.name}: not a readable image ({first_line(error)})") from error


def _open_image(file: Path) -> ImageFile:
    """A JPEG or PNG, its pixels not yet decoded.

    Pillow's own `Image.open` accepts any format by its content, some of which run programs, and warns of large images.
    """
    with file.open("rb") as opened:
        is_png = opened.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
    return PngImageFile(file) if is_png else JpegImageFile(file)
