"""Labelled clips as tensors; what is random in training is a pure function of (seed, epoch, position)."""

# B batch, V views, T frames, H W pixels

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stadapter.clips import ClipConfig, load_clip
from stadapter.errors import DataError, SettingsError, VideoError
from stadapter.manifest import Entry, Manifest
from stadapter.transforms import Augmentation

Failure = tuple[str, str]
"""Name of a clip that could not be read, and why."""


class Sample(TypedDict):
    """One clip."""

    clip: Tensor | None
    """(T, 3, H, W) in training, (V, T, 3, H, W) in evaluation; None there when it could not be read."""
    label: int
    """Position of the class in the labels."""
    index: int
    """Position of the clip in the manifest; of the replacement, where one took its place."""
    failures: list[Failure]
    """Clips that could not be read on the way to this one."""


class Batch(TypedDict):
    """The readable clips of several samples."""

    clips: Tensor
    """(B, T, 3, H, W) or (B, V, T, 3, H, W); of shape (0,) when no clip could be read."""
    labels: Tensor
    """int64 (B,)"""
    indices: Tensor
    """int64 (B,), positions in the manifest."""
    failures: list[Failure]
    """Clips that could not be read, of all the samples."""


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
        labels: Sequence[str],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        max_bad_tries: int = 10,
    ) -> None:
        """Prepare to read; opens nothing.

        Args:
            manifest: the clips.
            clip_config: frames, size and views.
            labels: class names; a clip's label is its position here.
            augmentation: random view and colours for training; None for evaluation.
            seed: with the epoch and the clip's position it decides all that is random.
            max_bad_tries: how many unreadable clips in a row end in an error.

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
        self.targets = _targets(manifest, labels)
        # In shared memory, so that workers kept alive between epochs see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that random choices are made for."""
        return int(self._epoch)

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
            failures.append((self.entries[index].name, str(error)))
        return Sample(clip=clip, label=self.targets[index], index=index, failures=failures)

    def _training_sample(self, index: int) -> Sample:
        failures: list[Failure] = []
        chosen = index
        for attempt in range(self.max_bad_tries if len(self) > 1 else 1):
            generator = np.random.default_rng((self.seed, self.epoch, index, attempt))
            if attempt > 0:
                chosen = (index + 1 + int(generator.integers(len(self) - 1))) % len(self)  # any other clip
            try:
                clip = self._load(self.entries[chosen], generator)[0]
            except (VideoError, OSError) as error:
                failures.append((self.entries[chosen].name, str(error)))
                continue
            return Sample(clip=clip, label=self.targets[chosen], index=chosen, failures=failures)
        name, message = failures[-1]
        raise DataError(
            f"{len(failures)} clips in a row could not be read, last {name} ({message}); "
            f"expected mostly readable videos: check the data folder"
        )

    def _load(self, entry: Entry, generator: np.random.Generator | None = None) -> Tensor:
        return load_clip(
            entry.path,
            self.clip_config,
            start_seconds=entry.start_seconds,
            end_seconds=entry.end_seconds,
            augmentation=self.augmentation,
            generator=generator,
        )


def epoch_order(num_clips: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(num_clips): the order in which an epoch visits the clips.

    >>> epoch_order(4, seed=0, epoch=1) == epoch_order(4, seed=0, epoch=1)
    True
    """
    sequence = np.random.SeedSequence((seed, epoch), spawn_key=(1,))  # not the stream of any clip
    return [int(index) for index in np.random.default_rng(sequence).permutation(num_clips)]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the clips that could be read, and gather the failures of all."""
    kept = [sample for sample in samples if sample["clip"] is not None]
    clips = [sample["clip"] for sample in samples if sample["clip"] is not None]
    return Batch(
        clips=torch.stack(clips) if clips else torch.empty(0),
        labels=torch.tensor([sample["label"] for sample in kept], dtype=torch.int64),
        indices=torch.tensor([sample["index"] for sample in kept], dtype=torch.int64),
        failures=[failure for sample in samples for failure in sample["failures"]],
    )


def _targets(manifest: Manifest, labels: Sequence[str]) -> list[int]:
    positions = {label: position for position, label in enumerate(labels)}
    if unknown := [label for label in manifest.labels if label not in positions]:
        raise DataError(
            f"{len(unknown)} classes of the data are not among the labels: {', '.join(unknown[:5])}; "
            f"expected some of {', '.join(labels)}"
        )
    targets = []
    for entry in manifest.entries:
        if entry.label is None:
            raise DataError(f"{entry.name} has no label; expected one of {', '.join(labels)}")
        targets.append(positions[entry.label])
    return targets
