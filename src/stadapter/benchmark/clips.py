"""Loading a clip, for evaluation and for training, from videos made on the spot."""

# T frames, H W pixels

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray
from torch import Tensor

from stadapter import sampling, transforms
from stadapter.augmentation import Augmentation, Window, draw
from stadapter.benchmark.config import BenchmarkConfig
from stadapter.benchmark.released import Released
from stadapter.benchmark.timing import Call, Case, Check
from stadapter.clips import ClipConfig, load_clip, load_random_views
from stadapter.video import read_frames
from stadapter.view_store import ViewStore

AUGMENTATION = Augmentation(scale=(0.08, 1.0))
"""The crops of the released Something-Something-v2 run."""
_SEED = 5
_PIXEL_LIMIT = 1e-4
"""How far apart two float pipelines with the same arithmetic may be, in units of a normalised pixel."""
_FAST_LIMIT = 0.5
"""How far the fast path may be from the released one on average, in the same units: it is antialiased, in bytes."""
_VIEWS_AT_ONCE = 8
"""Views that training draws from one decoding if its store has room: those of this epoch and the next seven."""
_FRAMES_HELD_AS_FLOATS = 3
"""Copies of a whole video that the released evaluation holds at once."""


def cases(config: BenchmarkConfig, released: Released | None, device: torch.device, *, folder: Path) -> Iterator[Case]:
    """Every height, length and keyframe distance, for evaluation and for training; `folder` takes the videos."""
    for height in config.clip_heights:
        for num_frames in config.clip_frames:
            for gop in config.clip_gops:
                path = folder / f"{height}p-{num_frames}-frames-gop-{gop}.mp4"
                write_textured_video(path, height=height, num_frames=num_frames, gop=gop)
                yield _loading_case(path, config, released, training=False)
                yield _loading_case(path, config, released, training=True)
                yield _stored_case(path, config, released)
                path.unlink()


def write_textured_video(path: Path, *, height: int, num_frames: int, gop: int) -> None:
    """H.264 with B-frames: a moving textured picture, 16:9, keyframes every `gop` frames, at 30 frames per second."""
    width = 2 * round(height * 8 / 9)
    picture = _texture(height + 2 * num_frames, width + 3 * num_frames)
    options = {"preset": "veryfast", "crf": "23", "g": str(gop), "sc_threshold": "0", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for index in range(num_frames):
            window = picture[2 * index : 2 * index + height, 3 * index : 3 * index + width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(window), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _texture(height: int, width: int) -> NDArray[np.uint8]:
    """Random patches of three sizes laid over one another, (H, W, 3)."""
    generator = np.random.default_rng(_SEED)
    picture = np.zeros((height, width, 3))
    for cell, strength in ((64, 120), (16, 80), (4, 40)):
        coarse = generator.random((height // cell + 1, width // cell + 1, 3)) * strength
        picture += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
    return picture.astype(np.uint8)


def _clip_config(config: BenchmarkConfig, resize: Any = "fast") -> ClipConfig:
    return ClipConfig(num_frames=config.num_frames, size=224, resize=resize)


def _loading_case(path: Path, config: BenchmarkConfig, released: Released | None, *, training: bool) -> Case:
    """One clip loaded for evaluation, or for training, always with the same draws."""
    fast, exact = _clip_config(config), _clip_config(config, "released")
    wanted = _drawn_indices(path, config) if training else _test_indices(path, config)
    theirs, notes = _their_loading(path, config, released, training=training)

    def load(clip_config: ClipConfig) -> Tensor:
        if not training:
            return load_clip(path, clip_config)
        generator = np.random.default_rng(_SEED)
        return load_clip(path, clip_config, augmentation=AUGMENTATION, generator=generator)

    others: dict[str, Call] = {"ours, released resize": lambda: load(exact)}
    if theirs is not None:
        others["released"] = theirs

    def checks() -> list[Check]:
        found = load(exact)[0]  # (T, 3, H, W)
        bytes_as_floats = transforms.normalise(load(fast)[0], fast.mean, fast.std)
        apart = (bytes_as_floats - found).abs().mean().item()
        result = [
            _frames_check(path, wanted),
            Check("fast path, mean distance to the released resize", apart, _FAST_LIMIT),
        ]
        if theirs is not None:
            drawn = ", with the same draws" if training else ""
            result.append(_largest(f"released path{drawn}, against released", found, theirs()))
        return result

    return Case(
        "clips",
        f"{'training' if training else 'evaluation'}, {path.stem}",
        ours=lambda: load(fast),
        others=others,
        floors=_floors(path, wanted),
        checks=checks,
        facts={} if training else {"file_bytes": path.stat().st_size},
        notes=notes,
        clock="processor",
    )


def _stored_case(path: Path, config: BenchmarkConfig, released: Released | None) -> Case:
    """A training view at its cost in training: drawn with those of later epochs from one decoding, kept in a file."""
    fast = _clip_config(config)
    shape = (config.num_frames, 3, fast.size, fast.size)
    store = ViewStore(num_clips=1, view_shape=shape, max_bytes=2**30)
    theirs, notes = _their_loading(path, config, released, training=True)

    def draw(seeds: Sequence[int]) -> Tensor:
        generators = [np.random.default_rng(seed) for seed in seeds]
        return load_random_views(path, fast, augmentation=AUGMENTATION, generators=generators)

    def load() -> list[Tensor | None]:
        views = draw(range(_SEED, _SEED + _VIEWS_AT_ONCE))
        store.put(0, 1, views[1:])
        return [views[0].clone(), *(store.take(0, epoch) for epoch in range(1, _VIEWS_AT_ONCE))]

    def checks() -> list[Check]:
        found = [view for view in load() if view is not None]
        alone = torch.cat([draw([_SEED + number]) for number in range(_VIEWS_AT_ONCE)])
        return [Check("views, each loaded alone, largest distance", _distance(torch.stack(found), alone), 0)]

    return Case(
        "clips",
        f"training, one view of {_VIEWS_AT_ONCE} at once, {path.stem}",
        ours=load,
        others={"released": theirs} if theirs is not None else {},
        checks=checks,
        notes=notes,
        clock="processor",
        counts={"ours": _VIEWS_AT_ONCE},
    )


def _their_loading(
    path: Path, config: BenchmarkConfig, released: Released | None, *, training: bool
) -> tuple[Callable[[], Tensor] | None, tuple[str, ...]]:
    """The released data set loading this video, as (T, 3, H, W), or why it does not."""
    if released is None:
        return None, ()
    if released.clips is None:
        return None, ("the released data set could not be imported",)
    height, width = read_frames(path, [0]).shape[2:]
    frames = config.num_frames if training else _count(path)
    gib = frames * height * width * 3 * 4 * _FRAMES_HELD_AS_FLOATS / 2**30
    if gib > config.max_reference_gib:
        return None, (f"released: not run, as it would take about {gib:.0f} GiB",)
    listing = path.with_suffix(".txt")
    listing.write_text(f"{path.name} 0\n", encoding="utf-8")
    settings: dict[str, Any] = {"num_frames": config.num_frames, "spatial_size": 224, "random_sample": training}
    dataset = released.clips.VideoDataset(str(listing), str(path.parent), **settings)
    listing.unlink()
    if not training:
        return lambda: dataset[0][0][0].transpose(0, 1), ()
    indices, window = _drawn_indices(path, config), _drawn_window(height, width)
    dataset._random_sample_frame_idx = lambda length: indices

    def load() -> Tensor:
        with _drawing(released.transform, window):
            clip: Tensor = dataset[0][0]
            return clip.transpose(0, 1)

    return load, ()


@contextmanager
def _drawing(transform: Any, window: Window) -> Iterator[None]:
    """Make the released code crop where this program does, so that both do the same work."""
    original = transform._get_param_spatial_crop
    transform._get_param_spatial_crop = lambda *_, **__: (window.top, window.left, window.height, window.width)
    try:
        yield
    finally:
        transform._get_param_spatial_crop = original


def _drawn_seeds() -> tuple[int, int]:
    """The seeds of time and space that `load_clip` takes from its generator; the check fails if that changes."""
    time_seed, space_seed = np.random.default_rng(_SEED).integers(2**63, size=2)
    return int(time_seed), int(space_seed)


def _drawn_indices(path: Path, config: BenchmarkConfig) -> list[int]:
    generator = np.random.default_rng(_drawn_seeds()[0])
    return sampling.random_uniform_indices(_count(path), config.num_frames, generator)


def _drawn_window(height: int, width: int) -> Window:
    generator = np.random.default_rng(_drawn_seeds()[1])
    return draw(AUGMENTATION, height, width, 224, generator).window


def _test_indices(path: Path, config: BenchmarkConfig) -> list[int]:
    return sampling.uniform_indices(_count(path), config.num_frames)[0]


def _count(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


def _floors(path: Path, wanted: Sequence[int]) -> dict[str, Call]:
    """Decoding with a decoder that has done it before, and with a new one, which each file needs."""
    return {
        "decoding what must be": _decoding(path, wanted),
        "with a new decoder": _decoding(path, wanted, is_new=True),
    }


def _decoding(path: Path, indices: Sequence[int], *, is_new: bool = False) -> Callable[[], int]:
    """A call that decodes, from packets in memory, each wanted frame and what it refers to, and does nothing else.

    If a group of pictures holds wanted frames, it is decoded from its keyframe to the last of them; frames that no
    other refers to are skipped unless wanted.
    """
    container = av.open(str(path))
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    extradata = stream.codec_context.extradata
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = sorted(packet.pts or 0 for packet in packets)
    wanted = {times[index] for index in indices}
    keyframes = np.cumsum([packet.is_keyframe for packet in packets])
    groups = [[packets[i] for i in group] for _, group in groupby(range(len(packets)), key=lambda i: int(keyframes[i]))]

    def decode() -> int:
        context, num_found = stream.codec_context, 0
        if is_new:
            context = cast(VideoCodecContext, av.CodecContext.create(context.codec, "r"))
            context.extradata, context.thread_count = extradata, 1
        for group in groups:
            positions = [position for position, packet in enumerate(group) if packet.pts in wanted]
            if not positions:
                continue
            context.flush_buffers()
            for packet in group[: positions[-1] + 1]:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                num_found += sum(frame.pts in wanted for frame in context.decode(packet))
            num_found += sum(frame.pts in wanted for frame in context.decode(None))
        assert num_found == len(wanted), (num_found, len(wanted))
        return num_found

    return decode


def _frames_check(path: Path, indices: Sequence[int]) -> Check:
    """The frames that are read, compared with every frame decoded in order."""
    with av.open(str(path)) as container:
        shown = {
            index: torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            for index, frame in enumerate(container.decode(video=0))
            if index in indices
        }
    expected = torch.stack([shown[index] for index in indices])
    distance = _distance(read_frames(path, indices), expected)
    return Check("frames, against decoding all in order, largest distance", distance, 0)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found.int() - expected.int()).abs().max()) if found.shape == expected.shape else float("inf")


def _largest(what: str, found: Tensor, expected: Tensor) -> Check:
    if found.shape != expected.shape:
        return Check(f"{what}: shape {tuple(found.shape)} and {tuple(expected.shape)}", float("inf"), _PIXEL_LIMIT)
    return Check(f"{what}, largest distance", (found - expected).abs().max().item(), _PIXEL_LIMIT)


def write_loop_videos(folder: Path, count: int) -> list[Path]:
    """Videos of two classes for the training loop: all the same picture, so that only decoding and training count."""
    paths = [folder / ("left" if index % 2 else "right") / f"{index:03d}.mp4" for index in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path is paths[0]:
            write_textured_video(path, height=240, num_frames=64, gop=12)
        else:
            path.write_bytes(paths[0].read_bytes())
    return paths
