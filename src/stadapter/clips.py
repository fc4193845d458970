"""The one path from a video to a clip tensor, for training, evaluation, prediction and serving alike."""

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stadapter import sampling, transforms
from stadapter.augmentation import (
    Augmentation,
    Draw,
    Fit,
    Window,
    centre_window,
    check_spatial_views,
    draw,
    enclosing,
    spatial_windows,
)
from stadapter.errors import SettingsError, VideoError
from stadapter.field_types import check_limits, check_types
from stadapter.transforms import rand_augment
from stadapter.video import LeftOpen, Region, VideoReader

# V views, S spatial views, T frames, U different frames, H W pixels


@dataclass(frozen=True)
class ClipConfig:
    """How a video becomes a clip; saved with a trained adapter, so that it is used as it was trained."""

    num_frames: int = 8
    """Number of frames in a clip."""
    size: int = 224
    """Height and width of a clip in pixels."""
    stride_frames: int | None = None
    """Distance between a clip's frames, in frames; none spreads them evenly over the whole video."""
    num_temporal_views: int = 1
    """Number of clips taken along time when testing."""
    num_spatial_views: int = 1
    """Number of crops taken along the longer side when testing: 1 (centre) or 3."""
    resize: Literal["fast", "released"] = "fast"
    """fast: antialiased, on bytes. released: as released checkpoints need it, in float, not antialiased."""
    fit: Fit = "crop"
    """crop: cut to a square. stretch: squeeze the whole frame to a square; nothing at the edges is lost."""
    short_clips: Literal["repeat", "error"] = "repeat"
    """What to do with a video that has fewer frames than a clip: repeat frames, or refuse it."""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Red, green and blue subtracted from pixels in 0 to 1, if resize is released: the trunk's own are expected there,
    CLIP's by default. Clips of the fast path are normalised by the model, with those of its trunk."""
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Red, green and blue that the difference is divided by."""

    @property
    def num_views(self) -> int:
        """Number of views of a clip when testing."""
        return self.num_temporal_views * self.num_spatial_views

    def __post_init__(self) -> None:
        check_types(self)
        check_limits(self, dict.fromkeys(("num_frames", "size", "stride_frames", "num_temporal_views"), (1, math.inf)))
        check_spatial_views(self.num_spatial_views)
        if not all(map(math.isfinite, self.mean)):
            raise SettingsError(f"mean {self.mean}: expected three finite numbers")
        if not all(0 < each < math.inf for each in self.std):
            raise SettingsError(f"std {self.std}: expected three numbers above 0")
        if self.fit == "stretch" and self.num_spatial_views != 1:
            raise SettingsError('fit="stretch" shows the whole frame: it has one spatial view, not 3; use fit="crop"')


def load_clip(
    path: str | os.PathLike[str],
    config: ClipConfig,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    frames_per_second: float | None = None,
    augmentation: Augmentation | None = None,
    generator: np.random.Generator | None = None,
    left_open: LeftOpen | None = None,
) -> torch.Tensor:
    """A video as (views, T, 3, size, size): uint8 on the fast path, normalised float32 on the released one.

    Without `augmentation` these are the test views: all temporal views for each spatial view. With it, one
    random view is drawn from `generator`, whose state afterwards does not depend on what the video holds.
    `left_open` is for test views, as for `VideoReader`.

    Raises VideoError if the video cannot be read or, with short_clips="error", is shorter than a clip; SettingsError if
    an argument is not what it should be.
    """
    if not isinstance(config, ClipConfig):
        raise SettingsError(f"{config!r}: expected a ClipConfig, such as ClipConfig(num_frames=8, size=224)")
    if augmentation is None:
        with VideoReader(
            path, start_seconds, end_seconds, frames_per_second=frames_per_second, left_open=left_open
        ) as reader:
            positions, frames = _read_views(reader, config, None, _test_region(config))
        return _test_views(frames, positions, config)
    if not isinstance(generator, np.random.Generator):
        raise SettingsError("augmentation needs a generator: pass numpy.random.default_rng(seed)")
    return load_random_views(
        path,
        config,
        augmentation=augmentation,
        generators=[generator],
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        frames_per_second=frames_per_second,
    )


def load_frames(
    path: str | os.PathLike[str],
    config: ClipConfig,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    frames_per_second: float | None = None,
) -> torch.Tensor:
    """The uncropped frames of a video's first test view, for people to look at: uint8 (T, 3, H, W).

    Raises VideoError as `load_clip` does.
    """
    with VideoReader(path, start_seconds, end_seconds, frames_per_second=frames_per_second) as reader:
        positions, frames = _read_views(reader, config, None, None)
    return frames[positions[0]]


def load_random_views(
    path: str | os.PathLike[str],
    config: ClipConfig,
    *,
    augmentation: Augmentation,
    generators: Sequence[np.random.Generator],
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    frames_per_second: float | None = None,
) -> torch.Tensor:
    """Several training views of a video, decoded once: (views, T, 3, size, size), one for each generator.

    Each is the view that `load_clip` would draw from its generator by itself; decoding, which costs most, is shared,
    except for a file that has lost frames.

    Raises VideoError as `load_clip` does.
    """
    seeds = [_Seeds(*(int(seed) for seed in generator.integers(2**63, size=2))) for generator in generators]

    def read(seeds: Sequence[_Seeds]) -> tuple[torch.Tensor, bool]:
        """The views for these seeds, and whether what each shows depends on the others."""
        drawn: list[Draw] = []

        def region(height: int, width: int) -> tuple[slice, slice]:
            spaces = (np.random.default_rng(seed.space) for seed in seeds)
            draws = [draw(augmentation, height, width, config.size, each, fit=config.fit) for each in spaces]
            part = _seen(draws, config, height, width)
            drawn[:] = [replace(each, window=each.window.within(part)) for each in draws]
            return part.slices

        with VideoReader(path, start_seconds, end_seconds, frames_per_second=frames_per_second) as reader:
            positions, frames = _read_views(reader, config, [seed.time for seed in seeds], region)
        views = [_train_view(frames, view, config, each) for view, each in zip(positions, drawn, strict=True)]
        return torch.stack(views) if len(views) > 1 else views[0][None], reader.has_lost_frames and len(views) > 1

    views, are_mixed = read(seeds)
    return torch.cat([read([seed])[0] for seed in seeds]) if are_mixed else views


def clip_from_array(frames: npt.NDArray[np.uint8] | torch.Tensor, config: ClipConfig) -> torch.Tensor:
    """Decoded frames as test views, exactly as `load_clip` would make them from a file.

    Frames are uint8 RGB: (T, H, W, 3), or (T, 3, H, W) as `read_frames` gives them.
    Raises VideoError for any other shape or type, or for no frames.
    """
    if not isinstance(frames, np.ndarray | torch.Tensor):
        raise VideoError(
            f"{type(frames).__name__} found; expected the path of a video, or its frames as a single uint8 array "
            "(T, H, W, 3): numpy.stack makes one from a list"
        )
    shape = tuple(frames.shape)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or str(frames.dtype).split(".")[-1] != "uint8":
        raise VideoError(
            f"array: {frames.dtype} {shape} found; expected RGB frames as uint8 (T, H, W, 3) or (T, 3, H, W)"
        )
    if 0 in shape:
        raise VideoError(f"array: no frames in shape {shape}")
    wanted, positions = _different(_views("array", shape[0], config, None))
    chosen = torch.as_tensor(frames[wanted])  # a copy: arrays may be read-only or run backwards
    if shape[3] == 3:
        chosen = chosen.permute(0, 3, 1, 2)  # (U, 3, H, W)
    return _test_views(chosen, positions, config)


class _Seeds(NamedTuple):
    """Separate seeds for time and space, so that neither depends on how many numbers the other draws."""

    time: int
    space: int


def _read_views(
    reader: VideoReader, config: ClipConfig, time_seeds: Sequence[int] | None, region: Region | None
) -> tuple[list[list[int]], torch.Tensor]:
    """Decode the distinct frames of all views once; return their positions per view, and `region` (U, 3, H, W)."""
    while True:
        num_frames = reader.num_frames
        views = _views(reader.path.name, num_frames, config, time_seeds)
        wanted, positions = _different(views)
        try:
            return positions, reader.read(wanted, region=region)
        except VideoError:
            # A truncated file shows its true length only when decoded: choose again among the frames that exist.
            if not 0 < reader.num_frames < num_frames:
                raise


def _views(name: str, total_frames: int, config: ClipConfig, time_seeds: Sequence[int] | None) -> list[list[int]]:
    """Frame numbers of each temporal view: the test views, or a random one for each seed."""
    if total_frames < config.num_frames and config.short_clips == "error":
        raise VideoError(
            f"{name}: {total_frames} frames decoded, {config.num_frames} asked for; "
            'set short_clips="repeat" (--short-clips repeat), or remove it from the data'
        )
    if time_seeds is not None:
        return [_random_indices(total_frames, config, np.random.default_rng(seed)) for seed in time_seeds]
    if config.stride_frames is None:
        return sampling.uniform_indices(total_frames, config.num_frames, config.num_temporal_views)
    return sampling.dense_indices(total_frames, config.num_frames, config.stride_frames, config.num_temporal_views)


def _random_indices(total_frames: int, config: ClipConfig, generator: np.random.Generator) -> list[int]:
    if config.stride_frames is None:
        return sampling.random_uniform_indices(total_frames, config.num_frames, generator)
    return sampling.random_dense_indices(total_frames, config.num_frames, config.stride_frames, generator)


def _different(views: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The distinct frame numbers in ascending order, and the views as positions among them."""
    wanted = sorted({index for view in views for index in view})
    position = {index: place for place, index in enumerate(wanted)}
    return wanted, [[position[index] for index in view] for view in views]


def _test_region(config: ClipConfig) -> Region | None:
    """The part of a frame that test views show, unless that is all of it; cropping it equals cropping the whole."""
    if config.resize == "released" or config.fit == "stretch" or config.num_spatial_views > 1:
        return None
    return lambda height, width: centre_window(height, width).slices


def _seen(draws: Sequence[Draw], config: ClipConfig, height: int, width: int) -> Window:
    """The part of a frame that the drawn views need."""
    if config.resize == "released" and any(each.operations for each in draws):
        return Window(0, 0, height, width)  # RandAugment on this path depends on the whole frame
    return enclosing([each.window for each in draws])


def _test_views(frames: torch.Tensor, views: list[list[int]], config: ClipConfig) -> torch.Tensor:
    """Frames (U, 3, H, W) as (S * temporal views, T, 3, size, size)."""
    crops = _released_crops(frames, config) if config.resize == "released" else _fast_crops(frames, config)
    first = crops[0]
    clips = first.new_empty(len(crops) * len(views), len(views[0]), *first.shape[1:])
    for clip, (resized, view) in zip(clips, itertools.product(crops, views), strict=True):
        for frame, position in zip(clip, view, strict=True):
            frame.copy_(resized[position])  # which also changes the memory layout: one copy for both
    return clips


def _fast_crops(frames: torch.Tensor, config: ClipConfig) -> list[torch.Tensor]:
    height, width = frames.shape[-2:]
    if config.fit == "stretch":
        return [transforms.resize_fast(frames, config.size, config.size)]
    windows = spatial_windows(height, width, config.num_spatial_views)
    return [transforms.resize_fast(transforms.crop(frames, window), config.size, config.size) for window in windows]


def _released_crops(frames: torch.Tensor, config: ClipConfig) -> list[torch.Tensor]:
    frames = transforms.normalise(frames, config.mean, config.std)
    if config.fit == "stretch":
        return [transforms.resize_released(frames, config.size, config.size)]
    frames = transforms.short_side_resize(frames, config.size)
    height, width = frames.shape[-2:]
    return [transforms.crop(frames, window) for window in spatial_windows(height, width, config.num_spatial_views)]


def _train_view(frames: torch.Tensor, view: Sequence[int], config: ClipConfig, drawn: Draw) -> torch.Tensor:
    """The frames of `view` among (U, 3, H, W) as (T, 3, size, size), cropped, mirrored and recoloured as drawn."""
    wanted, (places,) = _different([list(view)])  # a repeated frame is transformed once
    if config.resize == "fast":
        frames = _select(transforms.crop(frames, drawn.window), wanted)
        return _select(transforms.change(drawn, frames, config.size), places).contiguous()
    frames = rand_augment(_select(frames, wanted), drawn.operations)  # on whole frames, as released
    frames = transforms.recolour(transforms.crop(frames, drawn.window), drawn)
    frames = transforms.normalise(frames, config.mean, config.std)
    frames = transforms.mirror(transforms.resize_released(frames, config.size, config.size), drawn)
    return _select(frames, places).contiguous()


def _select(frames: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Some of the frames (U, 3, H, W), in memory as (H, W, 3); not copied if they are all of them, in order."""
    if places == list(range(len(frames))):
        return frames
    return frames.permute(0, 2, 3, 1)[places].permute(0, 3, 1, 2)
