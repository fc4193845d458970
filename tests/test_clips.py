"""One path from a video to a clip: equal to the released views, the same for files and arrays, seeded in training."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from stadapter import transforms
from stadapter.augmentation import Augmentation, draw
from stadapter.clips import ClipConfig, clip_from_array, load_clip, load_frames, load_random_views
from stadapter.errors import SettingsError, VideoError
from stadapter.sampling import random_uniform_indices, uniform_indices
from stadapter.transforms import rand_augment
from stadapter.video import VideoReader, read_frames
from stadapter.video.packets import Packets

SMALL = ClipConfig(num_frames=4, size=32)
EVERYTHING = Augmentation(flip=True, colour_jitter=0.4)


def write_video(path: Path, num_frames: int = 20, container_options: dict[str, str] | None = None) -> Path:
    """A bright bar that wanders over a dark gradient, 64 x 48 pixels."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "6"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(num_frames):
            pixels = np.tile(np.linspace(0, 120, 64, dtype=np.uint8)[None, :, None], (48, 1, 3))
            pixels[:, (3 * index) % 60 : (3 * index) % 60 + 4, 0] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def clip_path(tmp_path: Path) -> Path:
    return write_video(tmp_path / "clip.mp4")


def decoded(path: Path, num_frames: int = 20) -> npt.NDArray[np.uint8]:
    return read_frames(path, range(num_frames)).permute(0, 2, 3, 1).numpy()


def test_released_views_equal_the_released_pipeline(shared: Path) -> None:
    golden = shared / "golden/pipeline"
    with safe_open(golden / "views.safetensors", "pt") as views:
        settings = json.loads(views.metadata()["config"])
        names = list(views.keys())
        assert len(names) == 15
        for name in names:
            view_name, video_name = name.split("/")
            view = settings["views"][view_name]
            config = ClipConfig(
                num_frames=view["num_frames"],
                size=settings["spatial_size"],
                stride_frames=view["sampling_rate"] or None,
                num_temporal_views=view.get("num_temporal_views", 1),
                num_spatial_views=view["num_spatial_views"],
                resize="released",
                mean=tuple(settings["mean"]),
                std=tuple(settings["std"]),
            )
            ours = load_clip(golden / f"{video_name}.mp4", config)
            expected = views.get_tensor(name).transpose(1, 2)  # (V, 3, T, H, W) -> (V, T, 3, H, W)
            assert ours.shape == expected.shape
            assert (ours - expected).norm() / expected.norm() <= 1e-5, name


def test_the_fast_road_shows_what_the_released_one_shows(clip_path: Path) -> None:
    config = replace(SMALL, num_spatial_views=3, num_temporal_views=2)
    fast = load_clip(clip_path, config)
    released = load_clip(clip_path, replace(config, resize="released"))
    assert fast.dtype == torch.uint8
    assert fast.shape == released.shape == (6, 4, 3, 32, 32)
    normalised = transforms.normalise(fast, config.mean, config.std)
    # Antialiasing softens the bar's edges; views in another order would be far off.
    assert (normalised - released).abs().mean() < 0.15 * released.abs().mean()


@pytest.mark.parametrize("resize", ["fast", "released"])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_an_array_gives_the_same_clip_as_its_file(resize: str, fit: str, clip_path: Path) -> None:
    config = replace(SMALL, resize=resize, fit=fit, num_temporal_views=2)
    expected = load_clip(clip_path, config)
    frames = decoded(clip_path)
    frames.flags.writeable = False
    assert torch.equal(clip_from_array(frames, config), expected)
    assert torch.equal(clip_from_array(read_frames(clip_path, range(20)), config), expected)
    assert expected.is_contiguous()


def test_an_array_played_backwards_is_read_as_it_stands(clip_path: Path) -> None:
    backwards = decoded(clip_path)[::-1]
    assert torch.equal(clip_from_array(backwards, SMALL), clip_from_array(backwards.copy(), SMALL))


def test_stretching_keeps_what_cropping_cuts_off() -> None:
    frames = np.zeros((4, 48, 96, 3), np.uint8)
    frames[:, :, :8] = 255  # a bar at the left edge
    assert clip_from_array(frames, SMALL).max() == 0
    assert clip_from_array(frames, replace(SMALL, fit="stretch")).max() == 255


@pytest.mark.parametrize("resize", ["fast", "released"])
def test_a_training_clip_is_stretched_as_test_clips_are(resize: Literal["fast", "released"], tmp_path: Path) -> None:
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[:, :8] = 255  # a bar at the left edge
    for index in range(2):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    config = replace(SMALL, fit="stretch", resize=resize)
    seen = load_clip(tmp_path, config, augmentation=Augmentation(crop="centre"), generator=np.random.default_rng(0))
    torch.testing.assert_close(seen, load_clip(tmp_path, config))


def test_frames_to_look_at_are_whole(clip_path: Path) -> None:
    for config in (SMALL, replace(SMALL, num_temporal_views=2)):
        first_view = uniform_indices(20, 4, config.num_temporal_views)[0]
        assert torch.equal(load_frames(clip_path, config), read_frames(clip_path, first_view))


@pytest.mark.parametrize("resize", ["fast", "released"])
@pytest.mark.parametrize("stride_frames", [None, 2])
def test_a_training_clip_is_a_function_of_the_seed(resize: str, stride_frames: int | None, clip_path: Path) -> None:
    config = replace(SMALL, resize=resize, stride_frames=stride_frames)
    clips = [
        load_clip(clip_path, config, augmentation=EVERYTHING, generator=np.random.default_rng((0, 3, seed)))
        for seed in (1, 1, 2)
    ]
    assert clips[0].shape == (1, 4, 3, 32, 32)
    assert clips[0].dtype == (torch.uint8 if resize == "fast" else torch.float32)
    assert torch.equal(clips[0], clips[1])
    assert not torch.equal(clips[0], clips[2])


@pytest.mark.parametrize("num_views", [1, 3])
def test_training_views_are_those_of_whole_frames(num_views: int, clip_path: Path) -> None:
    augmentation = Augmentation(scale=(0.08, 0.5), flip=True, colour_jitter=0.4)
    frames, views, expected = decoded(clip_path), [], []
    for seed in range(1, num_views + 1):  # that draw no frame twice
        time_seed, space_seed = np.random.default_rng(seed).integers(2**63, size=2)
        drawn = draw(
            augmentation, *frames.shape[1:3], SMALL.size, np.random.default_rng(int(space_seed)), fit=SMALL.fit
        )
        indices = random_uniform_indices(len(frames), SMALL.num_frames, np.random.default_rng(int(time_seed)))
        views.append(np.random.default_rng(seed))
        chosen = transforms.crop(torch.from_numpy(frames[indices]).permute(0, 3, 1, 2), drawn.window)
        expected.append(transforms.change(drawn, chosen, SMALL.size))
    found = load_random_views(clip_path, SMALL, augmentation=augmentation, generators=views)
    assert torch.equal(found, torch.stack(expected))
    assert found.is_contiguous()


def test_rand_augment_changes_whole_frames_on_the_released_road(clip_path: Path) -> None:
    config, frames = replace(SMALL, resize="released"), decoded(clip_path)
    augmentation = Augmentation(scale=(0.08, 0.5), flip=True, rand_augment="rand-m10-n8-inc1")
    time_seed, space_seed = np.random.default_rng(0).integers(2**63, size=2)
    drawn = draw(augmentation, *frames.shape[1:3], config.size, np.random.default_rng(int(space_seed)))
    indices = random_uniform_indices(len(frames), config.num_frames, np.random.default_rng(int(time_seed)))
    changed = rand_augment(torch.from_numpy(frames[indices]).permute(0, 3, 1, 2), drawn.operations)
    seen = transforms.normalise(transforms.crop(changed, drawn.window), config.mean, config.std)
    expected = transforms.mirror(transforms.resize_released(seen, config.size, config.size), drawn)
    found = load_clip(clip_path, config, augmentation=augmentation, generator=np.random.default_rng(0))
    assert torch.equal(found[0], expected)


def test_views_that_rand_augment_changes_and_views_that_it_leaves_are_drawn_together_as_alone(clip_path: Path) -> None:
    config = replace(SMALL, resize="released")
    augmentation = Augmentation(scale=(0.08, 0.5), rand_augment="rand-m10-n1-inc1")
    spaces = [int(np.random.default_rng(seed).integers(2**63, size=2)[1]) for seed in range(6)]
    drawn = [draw(augmentation, 48, 64, config.size, np.random.default_rng(space)) for space in spaces]
    assert {len(each.operations) for each in drawn} == {0, 1}
    together = load_random_views(
        clip_path, config, augmentation=augmentation, generators=[np.random.default_rng(seed) for seed in range(6)]
    )
    for seed in range(6):
        alone = load_clip(clip_path, config, augmentation=augmentation, generator=np.random.default_rng(seed))
        assert torch.equal(together[seed], alone[0]), seed


def test_only_what_views_show_is_kept_of_a_frame(clip_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    read = VideoReader.read

    def spy(self: VideoReader, *arguments: Any, **named: Any) -> torch.Tensor:
        frames = read(self, *arguments, **named)
        shapes.append(tuple(frames.shape[2:]))
        return frames

    monkeypatch.setattr(VideoReader, "read", spy)
    augmentation = Augmentation(scale=(0.1, 0.1), ratio=(1.0, 1.0))
    load_clip(clip_path, SMALL, augmentation=augmentation, generator=np.random.default_rng(0))
    load_clip(clip_path, SMALL)
    height, width = decoded(clip_path).shape[1:3]
    assert shapes[0][0] * shapes[0][1] < 0.12 * height * width
    assert shapes[1] == (min(height, width),) * 2


def test_what_a_video_holds_does_not_move_the_generator(clip_path: Path, tmp_path: Path) -> None:
    short = write_video(tmp_path / "short.mp4", 2)
    after = []
    for path in (clip_path, short):
        generator = np.random.default_rng(0)
        load_clip(path, SMALL, augmentation=EVERYTHING, generator=generator)
        after.append(generator.random())
    assert after[0] == after[1]


def test_augmentation_without_randomness_shows_what_the_test_view_shows() -> None:
    still = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8).repeat(6, 0)
    expected = clip_from_array(still, SMALL)[0]
    frames = torch.from_numpy(still).permute(0, 3, 1, 2)
    drawn = draw(Augmentation(crop="centre"), 48, 64, 32, np.random.default_rng(0))
    assert torch.equal(transforms.change(drawn, transforms.crop(frames[:4], drawn.window), 32), expected)


def test_a_segment_is_a_video_of_its_own(clip_path: Path) -> None:
    part = load_clip(clip_path, SMALL, start_seconds=0.2, end_seconds=0.6)
    assert torch.equal(part, clip_from_array(decoded(clip_path)[5:15], SMALL))


def test_a_folder_of_images_is_loaded_like_a_file(clip_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    with av.open(str(clip_path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            frame.to_image().save(folder / f"{index:05}.png")
    assert torch.equal(load_clip(folder, SMALL), load_clip(clip_path, SMALL))
    for augmentation in (None, EVERYTHING):
        parts = [
            load_clip(
                path,
                SMALL,
                start_seconds=0.2,
                end_seconds=0.6,
                frames_per_second=25,
                augmentation=augmentation,
                generator=np.random.default_rng(0),
            )
            for path in (folder, clip_path)
        ]
        assert torch.equal(*parts)


def test_a_short_video_repeats_frames_or_is_refused_as_asked(tmp_path: Path) -> None:
    path = write_video(tmp_path / "short.mp4", 3)
    clip = load_clip(path, replace(SMALL, num_frames=8))
    assert torch.equal(clip[0, 0], clip[0, 1])
    with pytest.raises(VideoError, match=r"short\.mp4: 3 frames decoded, 8 asked for; set short_clips"):
        load_clip(path, replace(SMALL, num_frames=8, short_clips="error"))
    assert load_clip(path, replace(SMALL, num_frames=3, short_clips="error")).shape[1] == 3


@pytest.mark.parametrize("augmentation", [None, EVERYTHING])
def test_a_truncated_video_gives_a_clip_of_the_frames_that_came(
    augmentation: Augmentation | None, tmp_path: Path
) -> None:
    whole = write_video(tmp_path / "whole.ts", 40)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    clip = load_clip(cut, SMALL, augmentation=augmentation, generator=np.random.default_rng(0))
    assert clip.shape == (1, 4, 3, 32, 32)


@pytest.mark.parametrize("num_left", [10, 19])
def test_frames_are_chosen_again_when_fewer_came_than_promised(
    num_left: int, clip_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, config = Packets.decode, replace(SMALL, num_frames=20, stride_frames=1)

    def decode_part(self: Packets, *arguments: Any, **named: Any) -> Any:
        return (frame for frame in decode(self, *arguments, **named) if frame.pts < num_left * 512)

    monkeypatch.setattr(Packets, "decode", decode_part)
    clip = load_clip(clip_path, config)
    monkeypatch.undo()
    assert torch.equal(clip, clip_from_array(decoded(clip_path)[:num_left], config))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 48, 64), np.uint8),
        np.zeros((4, 48, 64, 3), np.float32),
        np.zeros((4, 48, 64, 4), np.uint8),
        torch.zeros(4, 3, 48, 64),
    ],
)
def test_arrays_of_another_kind_are_refused_with_what_was_found(
    frames: npt.NDArray[np.uint8] | torch.Tensor,
) -> None:
    with pytest.raises(VideoError, match=r"found; expected RGB frames as uint8 \(T, H, W, 3\)"):
        clip_from_array(frames, SMALL)


@pytest.mark.parametrize("frames", [None, [np.zeros((48, 64, 3), np.uint8)], b"clip.mp4"])
def test_what_is_no_array_is_refused_with_what_to_do(frames: Any) -> None:
    with pytest.raises(VideoError, match=rf"^{type(frames).__name__} found; .*numpy\.stack"):
        clip_from_array(frames, SMALL)


@pytest.mark.parametrize("shape", [(0, 48, 64, 3), (4, 0, 64, 3), (4, 3, 48, 0)])
def test_an_array_without_frames_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(VideoError, match="no frames in shape"):
        clip_from_array(np.zeros(shape, np.uint8), SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames 0: expected"),
        ({"size": 0}, "size 0: expected"),
        ({"stride_frames": 0}, "stride_frames 0: expected"),
        ({"num_spatial_views": 2}, "num_spatial_views 2: expected"),
        ({"fit": "stretch", "num_spatial_views": 3}, "shows the whole frame"),
        ({"mean": (0.5, math.nan, 0.5)}, "mean .*: expected three finite numbers"),
        ({"std": (0.5, 0, 0.5)}, "std .*: expected three numbers above 0"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ClipConfig(**settings)


@pytest.mark.parametrize("config", [None, {"num_frames": 8}])
def test_clips_are_made_as_a_clip_config_says(clip_path: Path, config: Any) -> None:
    with pytest.raises(SettingsError, match="expected a ClipConfig"):
        load_clip(clip_path, config)


@pytest.mark.parametrize("generator", [0, torch.Generator()], ids=["a number", "of torch"])
def test_a_generator_of_another_kind_is_refused(clip_path: Path, generator: Any) -> None:
    with pytest.raises(SettingsError, match="augmentation needs a generator"):
        load_clip(clip_path, SMALL, augmentation=EVERYTHING, generator=generator)


def test_augmentation_without_a_generator_is_refused(clip_path: Path) -> None:
    with pytest.raises(SettingsError, match="augmentation needs a generator"):
        load_clip(clip_path, SMALL, augmentation=EVERYTHING)
