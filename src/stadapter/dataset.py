"""Labelled clips as tensors; what is random in training is a pure function of (seed, epoch, position)."""

# B batch, V views, T frames, K heads, H W pixels, N tokens, D width

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from stadapter.clips import ClipConfig, load_clip, load_random_views
from stadapter.errors import DataError, SettingsError, VideoError, counted, listed
from stadapter.labels import Labels, LabelSpace
from stadapter.layouts import LABEL_KINDS
from stadapter.manifest import Entry, Manifest
from stadapter.processes import Turns
from stadapter.token_cache import TokenCache
from stadapter.transforms import Augmentation
from stadapter.view_store import ViewStore

Failure = tuple[str, str]
"""Name of a clip that could not be read, and why."""


class Sample(TypedDict):
    """One clip."""

    clip: Tensor | None
    """(T, 3, H, W) in training, (V, T, 3, H, W) in evaluation; None if it, and any in its place, could not be read."""
    label: tuple[int, ...]
    """For each head the position of the class among its classes."""
    index: int
    """Position of the clip in the manifest; of the replacement, where one took its place."""
    failures: list[Failure]
    """Clips that could not be read on the way to this one."""
    key: NotRequired[str]
    """With a token cache: the name of this view's tokens in it."""
    is_found: NotRequired[bool]
    """With a token cache: whether `clip` is these tokens (T, N, D), and nothing was decoded."""


class Batch(TypedDict):
    """The readable clips of several samples."""

    clips: Tensor
    """(B, T, 3, H, W) or (B, V, T, 3, H, W); of shape (0,) when no clip could be read, or all were found."""
    labels: Tensor
    """int64 (B, K)"""
    indices: Tensor
    """int64 (B,), positions in the manifest."""
    failures: list[Failure]
    """Clips that could not be read, of all the samples."""
    tokens: NotRequired[Tensor]
    """With a token cache: (C, T, N, D) of the clips that were found there, which `clips` does not have."""
    is_found: NotRequired[Tensor]
    """With a token cache: bool (B,), which of the clips were."""
    keys: NotRequired[list[str]]
    """With a token cache: the names that the tokens of `clips` will have there."""


class VideoDataset(Dataset[Sample]):
    """The clips of a manifest.

    With an `augmentation` (training) a clip is one random view, and one that cannot be read is replaced by
    another. Without (evaluation) it is all test views, and one that cannot be read is None. Either way its
    name is in `failures`.
    """

    def __init__(
        self,
        manifest: Manifest,
        clip_config: ClipConfig,
        *,
        labels: Labels,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        max_bad_tries: int = 10,
        store: ViewStore | None = None,
        num_epochs: int | None = None,
        views_per_clip: int | None = None,
        tokens: TokenCache | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Prepare to read; opens nothing.

        Args:
            manifest: the clips.
            clip_config: frames, size and views.
            labels: class names, or those of each head; a clip's label is its position here.
            augmentation: random view and colours for training; None for evaluation.
            seed: with the epoch and the clip's position it decides all that is random.
            max_bad_tries: after how many unreadable clips in a row a training sample is None.
            store: where views of later epochs are kept when a video is decoded; for training on the fast road.
            num_epochs: how many epochs there will be, if that is known: no view is drawn for a later one.
            views_per_clip: after so many epochs the same views come again, in training; None draws fresh ones always.
            tokens: where what the model makes of a view may be found, which then takes the place of the view.
            turns: asked before a video is decoded; what is kept of one is read at any time.

        Raises:
            SettingsError: `max_bad_tries` below 1.
            DataError: a clip without a label, or with one that is not in `labels`.
        """
        if max_bad_tries < 1:
            raise SettingsError(f"max_bad_tries is {max_bad_tries}; expected 1 or more")
        self.entries = manifest.entries
        self.clip_config = clip_config
        self.augmentation = augmentation
        self.seed = seed
        self.max_bad_tries = max_bad_tries
        self.store = store
        self.num_epochs = num_epochs
        self.views_per_clip = views_per_clip
        self.tokens = tokens
        self.turns = turns
        self.targets = _targets(manifest, LabelSpace.of(labels))
        # In shared memory, so that workers kept alive between epochs see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that random choices are made for."""
        return int(self._epoch)

    @property
    def view_number(self) -> int:
        """Which view of each clip the epoch shows: one of its own, or the same as some epochs before."""
        return self.epoch % self.views_per_clip if self.views_per_clip is not None else self.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, in this process and in running workers, before iterating over the loader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        if self.augmentation is None:
            return self._evaluation_sample(index)
        return self._training_sample(index)

    def _evaluation_sample(self, index: int) -> Sample:
        clip: Tensor | None = None
        failures: list[Failure] = []
        try:
            clip = self._load(self.entries[index])
        except (VideoError, OSError) as error:
            failures.append((_title(self.entries[index]), str(error)))
        return Sample(clip=clip, label=self.targets[index], index=index, failures=failures)

    def _training_sample(self, index: int) -> Sample:
        # Indices from len(self) on are further visits of the same clips in one epoch, as balanced_order gives them.
        failures: list[Failure] = []
        clip_index = chosen = index % len(self)
        for attempt in range(self.max_bad_tries if len(self) > 1 else 1):
            draw = (self.seed, self.view_number, index, attempt)
            generator = np.random.default_rng(draw)
            if attempt > 0:
                chosen = (index + 1 + int(generator.integers(len(self) - 1))) % len(self)  # any other clip
            sample = Sample(clip=None, label=self.targets[chosen], index=chosen, failures=failures)
            try:
                if self.tokens is not None:
                    self._look_up(sample, self.tokens, draw)
                if sample["clip"] is None and attempt == 0 and index == clip_index and self._stores_views:
                    sample["clip"] = self._stored_view(index)
                elif sample["clip"] is None:
                    sample["clip"] = self._load(self.entries[chosen], generator)[0]
            except (VideoError, OSError) as error:
                failures.append((_title(self.entries[chosen]), str(error)))
                continue
            return sample
        return Sample(clip=None, label=self.targets[clip_index], index=clip_index, failures=failures)

    def _look_up(self, sample: Sample, tokens: TokenCache, draw: tuple[int, ...]) -> None:
        """Give a sample the key of its view, which `draw` decides, and its tokens if they are kept."""
        entry = self.entries[sample["index"]]
        times = (entry.start_seconds, entry.end_seconds, entry.frames_per_second)
        sample["key"] = tokens.key(entry.path, draw=draw, times=times)
        sample["clip"] = tokens.take(sample["key"])
        sample["is_found"] = sample["clip"] is not None

    @property
    def _stores_views(self) -> bool:
        return self.store is not None and self.store.epochs_ahead > 0

    def _stored_view(self, index: int) -> Tensor:
        """The view (T, 3, H, W) of this epoch: from the store, or drawn together with those of the next epochs."""
        view_number, store = self.view_number, self.store
        assert store is not None
        view = store.take(index, view_number)
        if view is not None:
            return view
        numbers = store.epochs_to_draw(index, view_number)
        ends = (numbers.stop, self.num_epochs, self.views_per_clip)
        numbers = range(view_number, min(end for end in ends if end is not None))
        entry, augmentation = self.entries[index], self.augmentation
        assert augmentation is not None
        self._wait_for_turn()
        views = load_random_views(
            entry.path,
            self.clip_config,
            augmentation=augmentation,
            generators=[np.random.default_rng((self.seed, each, index, 0)) for each in numbers],
            start_seconds=entry.start_seconds,
            end_seconds=entry.end_seconds,
            frames_per_second=entry.frames_per_second,
        )  # (views, T, 3, H, W)
        store.put(index, view_number + 1, views[1:])
        return views[0].clone()

    def _load(self, entry: Entry, generator: np.random.Generator | None = None) -> Tensor:
        self._wait_for_turn()
        return load_clip(
            entry.path,
            self.clip_config,
            start_seconds=entry.start_seconds,
            end_seconds=entry.end_seconds,
            frames_per_second=entry.frames_per_second,
            augmentation=self.augmentation,
            generator=generator,
        )

    def _wait_for_turn(self) -> None:
        if self.turns is not None:
            self.turns.wait()


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the clips that could be read, and gather the failures of all.

    In a decoding process the tensors are put into shared memory here: where that is full, the error reaches the
    training process. In the thread that sends them it would end this one.
    """
    kept = [sample for sample in samples if sample["clip"] is not None]
    fresh = [sample for sample in kept if not sample.get("is_found")]
    batch = Batch(
        clips=_stack(fresh),
        labels=_shared(torch.tensor([sample["label"] for sample in kept], dtype=torch.int64)),  # (B, K)
        indices=_shared(torch.tensor([sample["index"] for sample in kept], dtype=torch.int64)),
        failures=[failure for sample in samples for failure in sample["failures"]],
    )
    if any("key" in sample for sample in kept):
        batch["tokens"] = _stack([sample for sample in kept if sample["is_found"]])
        batch["is_found"] = _shared(torch.tensor([sample["is_found"] for sample in kept]))
        batch["keys"] = [sample["key"] for sample in fresh]
    return batch


def _stack(samples: Sequence[Sample]) -> Tensor:
    """What the samples hold, one below the other; of shape (0,) where there are none."""
    clips = [sample["clip"] for sample in samples if sample["clip"] is not None]
    return _shared(torch.stack(clips) if clips else torch.empty(0))


def _shared(x: Tensor) -> Tensor:
    if get_worker_info() is not None:
        x.share_memory_()  # type: ignore[no-untyped-call]
    return x


def _title(entry: Entry) -> str:
    """The name of a clip, with its times where it is a segment."""
    if entry.start_seconds is None and entry.end_seconds is None:
        return entry.name
    start, end = (f"{time:g}" if time is not None else "" for time in (entry.start_seconds, entry.end_seconds))
    return f"{entry.name} [{start}-{end} s]"


def _targets(manifest: Manifest, space: LabelSpace) -> list[tuple[int, ...]]:
    if manifest.entries and set(manifest.label_space.names) != set(space.names):
        ours, theirs = " and ".join(space.names), " and ".join(manifest.label_space.names)
        columns = ",".join(f"label:{head}" for head in space.heads) or "label"
        kind = "+".join(space.heads) or "action, verb or noun"
        kitchens = f", or EPIC-Kitchens with --label-kind {kind}" if kind in LABEL_KINDS or not space.heads else ""
        raise DataError(f"clips with a {theirs} each; expected a {ours} each: columns {columns} of a CSV{kitchens}")
    if unknown := space.unknown(manifest.label_space):
        raise DataError(
            f"{counted(len(unknown), 'class')} of the data not among the labels: {listed(unknown)}; "
            f"expected some of {listed(space.labels, 20)}"
        )
    places = {
        label: (head, place) for head, classes in enumerate(space.labels_by_head) for place, label in enumerate(classes)
    }
    targets = []
    for entry in manifest.entries:
        if not entry.classes:
            raise DataError(f"{entry.name} has no label; expected one of {', '.join(space.labels)}")
        targets.append(tuple(place for _, place in sorted(places[label] for label in entry.classes)))
    return targets
