"""From frames to squares: cropping, resizing and recolouring pixels."""

# T frames, H W pixels

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from stadapter.augmentation import Draw, Window
from stadapter.randaugment import Operation

_LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in how bright a colour looks (ITU-R BT.601)."""


def change(drawn: Draw, frames: torch.Tensor, size: int) -> torch.Tensor:
    """Resize, mirror and recolour cropped uint8 frames (T, 3, H, W) to uint8 (T, 3, size, size).

    RandAugment comes after the crop and the flip, as in timm.
    """
    frames = resize_fast(frames, size, size)  # (T, 3, size, size)
    return recolour(rand_augment(mirror(frames, drawn), drawn.operations), drawn)


def crop(frames: torch.Tensor, window: Window) -> torch.Tensor:
    """The window of every frame (T, 3, H, W), without a copy."""
    return frames[..., *window.slices]


def resize_fast(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic, antialiased, on uint8 (T, 3, H, W), to uint8 (T, 3, height, width).

    Frames laid out in memory as (T, H, W, 3) are resized many times faster than float ones.
    """
    if frames.shape[-2:] == (height, width):
        return frames
    return F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True, align_corners=False)


def resize_released(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic without antialiasing on float (T, 3, H, W), the released pipeline's arithmetic."""
    return F.interpolate(frames, size=(height, width), mode="bicubic", align_corners=False)


def short_side_resize(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Float frames (T, 3, H, W) resized as released: the shorter side to `size`, the longer rounded down."""
    height, width = frames.shape[-2:]
    if height < width:
        return resize_released(frames, size, width * size // height)
    return resize_released(frames, height * size // width, size)


def normalise(frames: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> torch.Tensor:
    """uint8 (..., 3, H, W) to float32: scaled to [0, 1], then minus `mean` and divided by `std`, per channel."""
    offset = torch.tensor(mean, device=frames.device).view(3, 1, 1)
    spread = torch.tensor(std, device=frames.device).view(3, 1, 1)
    return (frames.float() / 255 - offset) / spread


def mirror(frames: torch.Tensor, drawn: Draw) -> torch.Tensor:
    """Frames (T, 3, H, W), mirrored left to right if so drawn."""
    return frames.flip(-1) if drawn.flip else frames


def rand_augment(frames: torch.Tensor, operations: Sequence[Operation]) -> torch.Tensor:
    """Apply the operations to uint8 frames (T, 3, H, W), the same to each; shape and dtype stay the same."""
    if not operations:
        return frames
    changed = []
    for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():  # (H, W, 3)
        picture = Image.fromarray(frame)
        for operation in operations:
            picture = operation(picture)
        changed.append(np.asarray(picture))
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2)


def recolour(frames: torch.Tensor, drawn: Draw) -> torch.Tensor:
    """uint8 frames (T, 3, H, W) with brightness, contrast and saturation changed as drawn.

    Contrast is changed around the mean brightness of the whole clip, so that every frame changes alike.
    """
    if drawn.brightness == drawn.contrast == drawn.saturation == 1:
        return frames
    colour = frames.contiguous().float().mul_(drawn.brightness).clamp_(0, 255)  # channel by channel: many times faster
    middle = _grey(colour).mean()
    colour.sub_(middle).mul_(drawn.contrast).add_(middle).clamp_(0, 255)
    grey = _grey(colour)[:, None]  # (T, 1, H, W)
    colour.sub_(grey).mul_(drawn.saturation).add_(grey)
    return colour.round_().clamp_(0, 255).to(torch.uint8)


def _grey(colour: torch.Tensor) -> torch.Tensor:
    """How bright the pixels (T, 3, H, W) look, (T, H, W)."""
    red, green, blue = colour.unbind(1)
    shares = torch.tensor(_LUMA)
    return (red * shares[0]).add_(green * shares[1]).add_(blue * shares[2])
