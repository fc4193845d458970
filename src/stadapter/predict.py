"""A trained classifier at work: from a video to a class name."""

# B batch, V views, T frames, H W pixels, C classes

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stadapter.artefact import load_artefact, save_artefact
from stadapter.clips import ClipConfig, clip_from_array, load_clip
from stadapter.errors import ArtefactError, SettingsError, STAdapterError, VideoError
from stadapter.evaluation import Report, evaluate
from stadapter.field_types import check_number
from stadapter.machine import choose_device
from stadapter.manifest import Manifest, read_manifest
from stadapter.model import VideoClassifier, prepare_trunk
from stadapter.scores import check_finite_scores, check_normalisation, view_scores
from stadapter.tuning import Tuning
from stadapter.video import LeftOpen, probe
from stadapter.video.segment import Segment
from stadapter.vit import ImageViT
from stadapter.wording import percent

Video: TypeAlias = "str | os.PathLike[str] | VideoPart | npt.NDArray[np.uint8] | Tensor"
"""A video file or folder of numbered images, a part of one, or frames: uint8 (T, H, W, 3), RGB."""

MAX_ACTIONS = 100
"""How many combinations of several heads' classes are reported: as many as EPIC-Kitchens-100 evaluates."""
MAX_WINDOWS = 1_000_000
"""Most windows of one video: so many take hours to classify."""
_VIEWS_AT_ONCE = 8
_SHOWN_SCORES = 5
_SLACK = 1e-6
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class VideoPart:
    """The part of a video between two times.

    Raises:
        SettingsError: something else than the path of a video, or a time that is no number.
    """

    video: str | os.PathLike[str]
    """A file, or a folder of numbered images."""
    start_seconds: float | None = None
    """Default: the start of the video."""
    end_seconds: float | None = None
    """Default: its end."""
    frames_per_second: float | None = None
    """The rate of a folder of images, which has no parts without it."""

    def __post_init__(self) -> None:
        _check_path(self.video)
        for name in ("start_seconds", "end_seconds", "frames_per_second"):
            check_number(name, getattr(self, name), or_none=True)


def _check_path(video: object) -> None:
    if not isinstance(video, str | os.PathLike):
        raise SettingsError(
            f"{type(video).__name__} found; expected the path of a video: parts of an array are cut by its frames"
        )


def video_windows(
    video: str | os.PathLike[str],
    *,
    window_seconds: float,
    stride_seconds: float | None = None,
    frames_per_second: float | None = None,
) -> list[VideoPart]:
    """A long video as windows of one length, for `Classifier.predict_many`.

    They start every `stride_seconds`, by default one right after the other; the last one ends with the video and may
    overlap the one before. A video no longer than a window is one window. A folder of images needs
    `frames_per_second`.

    Raises:
        SettingsError: a length or a stride that is not above 0, or something else than the path of a video.
        VideoError: the video cannot be read, its duration is unknown, or it would make more than `MAX_WINDOWS`.
    """
    _check_path(video)
    stride = stride_seconds if stride_seconds is not None else window_seconds
    for name, value in (("window_seconds", window_seconds), ("stride_seconds", stride)):
        check_number(name, value)
        if not 0 < value < math.inf:
            raise SettingsError(f"{name} {value}: expected a number of seconds above 0")
    if frames_per_second is not None and not 0 < frames_per_second < math.inf:
        raise SettingsError(f"frames_per_second {frames_per_second}: expected a number above 0")
    info = probe(video)
    duration = info.duration_seconds
    if duration is None and frames_per_second is not None:
        duration = info.num_frames / frames_per_second
    if duration is None:
        raise VideoError(
            f"{os.path.basename(video)}: duration unknown, so it cannot be cut into windows; for a folder of images, "
            "give frames_per_second from Python"
        )
    last = max(0.0, (duration - window_seconds) / stride + _SLACK)
    if not last < MAX_WINDOWS:
        raise VideoError(
            f"{os.path.basename(video)}: a window every {stride:g} s of {duration:.1f} s; expected at most "
            f"{MAX_WINDOWS:,} windows: choose longer ones, or a longer stride"
        )
    starts = [number * stride for number in range(int(last) + 1)]
    if starts[-1] + window_seconds < duration - _SLACK:
        starts.append(duration - window_seconds)
    return [VideoPart(video, round(start, 6), round(start + window_seconds, 6), frames_per_second) for start in starts]


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one video. With several heads: about the action, one class of each head."""

    video: str
    """The path as it was given; "array" for frames."""
    label: str
    """The class with the highest score."""
    score: float
    """Its probability, 0 to 1, averaged over the views; for an action, the product over the heads."""
    scores: dict[str, float]
    """The probability of every class, highest first; for actions, the 100 highest."""
    heads: "dict[str, Prediction]" = field(default_factory=dict)
    """What each head says, by its name, if there are several."""
    start_seconds: float | None = None
    """Start and end of the part that was asked for, if one was."""
    end_seconds: float | None = None

    @property
    def title(self) -> str:
        """The video, and which part of it."""
        return Segment(self.start_seconds, self.end_seconds).titled(self.video)

    def top(self, count: int) -> dict[str, float]:
        """The `count` highest scores by class, highest first."""
        return dict(islice(self.scores.items(), count))

    def __str__(self) -> str:
        named = ({"": self} | self.heads).items()
        parts = (f"{head}: {part._shown()}".removeprefix(": ") for head, part in named)
        return f"{self.title}: {'; '.join(parts)}"

    def _shown(self) -> str:
        return ", ".join(f"{label} {percent(score)}" for label, score in self.top(_SHOWN_SCORES).items())


@dataclass(frozen=True)
class PredictionFailure:
    """A video that could not be classified."""

    video: str
    """The path as it was given; "array" for frames."""
    error: str
    """Why."""
    start_seconds: float | None = None
    """Start and end of the part that was asked for, if one was."""
    end_seconds: float | None = None

    @property
    def title(self) -> str:
        """The video, and which part of it."""
        return Segment(self.start_seconds, self.end_seconds).titled(self.video)

    def __str__(self) -> str:
        return self.error if os.path.basename(self.video) in self.error else f"{self.title}: {self.error}"


@dataclass(frozen=True)
class Classifier:
    """A trained video classifier with its own preprocessing.

    classifier = Classifier.load("runs/gestures")
    print(classifier.predict("clip.mp4").label)
    """

    model: VideoClassifier
    """The network, in eval mode; the tensors that were trained still require a gradient."""
    clip_config: ClipConfig
    """How a video becomes a clip."""
    receipt: dict[str, Any] = field(default_factory=dict, repr=False)
    """How the classifier was trained: settings, data hash, seed, versions, metrics."""

    def __post_init__(self) -> None:
        check_normalisation(self.model, self.clip_config)

    def __repr__(self) -> str:
        return f"Classifier({self.model.label_space} on {self.model.trunk.info.name}, {self.model.mean.device})"

    @classmethod
    def load(
        cls,
        run: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        backbone: ImageViT | str | os.PathLike[str] | None = None,
        tuning: Tuning | None = None,
    ) -> Self:
        """Load a trained classifier from its run folder.

        Args:
            run: a run folder, or the Hub id of one.
            device: where to compute, such as "cuda"; "auto" takes a GPU if there is one. Default: where a loaded
                `backbone` is, else the CPU.
            dtype: what to compute in: torch.float32 (default), torch.bfloat16 or torch.float16.
            backbone: where the trunk is now, if not where it was in training; or a trunk from `load_backbone`, which
                any number of classifiers can share. They hold its weights only once as long as they compute in fp32
                where it is: with another `device` or `dtype` each has its own copy.
            tuning: the strategy, with the settings that it had, if it is not one of this package's.

        Raises:
            ArtefactError: not a run folder, of a newer format, damaged, incomplete, or made for another trunk.
            BackboneError: the trunk cannot be found or loaded.
            SettingsError: the device does not exist, or the dtype is not supported.
        """
        dtype = dtype if dtype is not None else torch.float32
        if dtype not in _DTYPES:
            raise SettingsError(f"dtype {dtype}: expected one of {', '.join(map(str, _DTYPES))}")
        chosen = choose_device(device) if device is not None else None
        artefact = load_artefact(run, backbone=backbone, tuning=tuning)
        model = artefact.model
        model.to(chosen if chosen is not None else next(model.trunk.parameters()).device)
        prepare_trunk(model, next(model.parameters()).device, dtype if dtype != torch.float32 else None)
        return cls(model=model.eval(), clip_config=artefact.clip_config, receipt=artefact.receipt)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a run folder, from which `load` and the command line take the classifier; for a model trained by hand.

        Files of an earlier run in it are replaced. Only what the strategy trains is written, not the trunk.

        Returns:
            The folder.

        Raises:
            ArtefactError: the model learns more than its strategy trains, its weights are not finite numbers, or the
                folder cannot be written.
            SettingsError: a strategy of somebody's own has a setting that JSON does not know.
        """
        try:
            return save_artefact(folder, self.model, self.clip_config, receipt=self.receipt)
        except OSError as error:
            raise ArtefactError(f"{os.fspath(folder)}: cannot be written ({error.strerror or error})") from error

    @property
    def dtype(self) -> torch.dtype:
        """What the trunk computes in."""
        return self.model.dtype

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the network's logits; with several heads, each after the name of its head."""
        return self.model.labels

    @property
    def num_scores(self) -> int:
        """How many scores a prediction has: one per class, or with several heads those of at most 100 actions."""
        space = self.model.label_space
        return min(space.num_actions, MAX_ACTIONS) if space.heads else space.num_actions

    def predict(
        self,
        video: Video,
        *,
        start_seconds: float | None = None,
        end_seconds: float | None = None,
        frames_per_second: float | None = None,
    ) -> Prediction:
        """Classify one video, or the part of a file between two times.

        Args:
            video: a file, a folder of numbered images, a part of one, or frames: uint8 (T, H, W, 3), RGB.
            start_seconds: start of the part; default: the start of the file.
            end_seconds: end of the part; default: the end of the file.
            frames_per_second: the rate of a folder of images, which has no parts without it.

        Raises:
            VideoError: it cannot be read, or is not uint8 frames.
            SettingsError: times for frames, which have none, or for a part, which has its own.
            STAdapterError: the scores are not finite numbers.
        """
        if (start_seconds, end_seconds, frames_per_second) != (None, None, None):
            if not isinstance(video, str | os.PathLike):
                own = "a part has its own times" if isinstance(video, VideoPart) else "cut an array by its frames"
                raise SettingsError(f"start_seconds, end_seconds and frames_per_second are for files; {own}")
            video = VideoPart(video, start_seconds, end_seconds, frames_per_second)
        return self._named(video, self._scores([_load(video, self.clip_config)], _VIEWS_AT_ONCE)[0])

    def predict_many(self, videos: Iterable[Video], *, batch_size: int = 8) -> Iterator[Prediction | PredictionFailure]:
        """Classify videos in order; one that cannot be read does not end the batch.

        While the network looks at one batch, the next is read.

        Args:
            videos: as for `predict`; taken as they are needed.
            batch_size: videos read at once, and views put through the network at once.
        """
        if batch_size < 1:
            raise SettingsError(f"batch_size {batch_size}: expected at least 1 video")
        if isinstance(videos, str | os.PathLike | VideoPart):
            given = videos if isinstance(videos, VideoPart) else os.fspath(videos)
            raise SettingsError(f"videos {given!r}: expected several, in a list; predict takes one")
        return self._predict_batches(iter(videos), batch_size)

    def evaluate(
        self,
        data: Manifest | str | os.PathLike[str],
        *,
        batch_size: int = 8,
        num_workers: int = 0,
        time_check: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Classify labelled clips with all test views, and say how often that was correct.

        Args:
            data: what `read_manifest` reads, or its result; all its clips are classified.
            batch_size, num_workers, time_check, progress: as for `evaluate`, which this calls.

        Raises:
            DataError: it does not exist or cannot be understood; or as raised by `evaluate`.
        """
        manifest = data if isinstance(data, Manifest) else read_manifest(data)
        return evaluate(
            self.model,
            manifest.named(self.labels),
            self.clip_config,
            batch_size=batch_size,
            num_workers=num_workers,
            time_check=time_check,
            progress=progress,
        )

    def _predict_batches(self, videos: Iterator[Video], size: int) -> Iterator[Prediction | PredictionFailure]:
        left_open = LeftOpen()
        with (
            closing(left_open),
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="stadapter-read") as reader,
        ):
            batches = _batches(videos, size)
            batch = next(batches)
            reading = reader.submit(self._read_batch, batch, left_open)
            while batch:
                clips = reading.result()
                videos_read = batch
                try:
                    batch = next(batches)
                except BaseException:  # raised by the source of the videos: those it gave before are classified
                    yield from self._predict_batch(videos_read, clips, size)
                    raise
                reading = reader.submit(self._read_batch, batch, left_open)
                yield from self._predict_batch(videos_read, clips, size)

    def _read_batch(self, videos: Sequence[Video], left_open: LeftOpen) -> list[Tensor | str]:
        """The clip of every video, or why there is none."""
        return [self._read(video, left_open) for video in videos]

    def _read(self, video: Video, left_open: LeftOpen) -> Tensor | str:
        try:
            return _load(video, self.clip_config, left_open)
        except (STAdapterError, OSError) as error:
            return str(error)

    def _predict_batch(
        self, videos: Sequence[Video], clips: Sequence[Tensor | str], size: int
    ) -> Iterator[Prediction | PredictionFailure]:
        read = [clip for clip in clips if isinstance(clip, Tensor)]
        scores = iter(self._scores(read, size) if read else ())
        for video, clip in zip(videos, clips, strict=True):
            if isinstance(clip, str):
                yield PredictionFailure(_name(video), clip, *_times(video))
                continue
            try:
                yield self._named(video, next(scores))
            except STAdapterError as error:
                yield PredictionFailure(_name(video), str(error), *_times(video))

    def _scores(self, clips: Sequence[Tensor], views_at_once: int) -> Tensor:
        """The probability of every class (B, C) for clips (V, T, 3, H, W)."""
        return view_scores(self.model, torch.stack(list(clips)), views_at_once=views_at_once)

    def _named(self, video: Video, scores: Tensor) -> Prediction:
        name, (start, end) = _name(video), _times(video)
        check_finite_scores(scores[None], [name])
        space = self.model.label_space
        heads = {}
        for head, classes, part in zip(space.names, space.classes, space.split(scores), strict=True):
            ranked = sorted(zip(classes, part.tolist(), strict=True), key=lambda pair: -pair[1])
            heads[head] = Prediction(name, *ranked[0], dict(ranked), start_seconds=start, end_seconds=end)
        if not space.heads:
            return heads[head]
        products, places = space.likeliest(scores[None], self.num_scores)  # (1, n), (1, n, K)
        actions = list(zip(map(space.text, places[0].tolist()), products[0].tolist(), strict=True))
        return Prediction(name, *actions[0], dict(actions), heads, start, end)


def _load(video: Video, config: ClipConfig, left_open: LeftOpen | None = None) -> Tensor:
    """The test views (V, T, 3, H, W) of a video."""
    if isinstance(video, VideoPart):
        return load_clip(
            video.video,
            config,
            start_seconds=video.start_seconds,
            end_seconds=video.end_seconds,
            frames_per_second=video.frames_per_second,
            left_open=left_open,
        )
    return load_clip(video, config) if isinstance(video, str | os.PathLike) else clip_from_array(video, config)


def _batches(videos: Iterator[Video], size: int) -> Iterator[list[Video]]:
    """The videos, `size` at a time, then an empty list; if taking one fails, those before it come first."""
    batch: list[Video] = []
    while True:
        try:
            batch.append(next(videos))
        except StopIteration:
            break
        except BaseException:
            if batch:
                yield batch
            raise
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
    yield []


def _name(video: Video) -> str:
    path = video.video if isinstance(video, VideoPart) else video
    return os.fspath(path) if isinstance(path, str | os.PathLike) else "array"


def _times(video: Video) -> tuple[float | None, float | None]:
    return (video.start_seconds, video.end_seconds) if isinstance(video, VideoPart) else (None, None)
