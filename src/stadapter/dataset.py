"""Labelled clips as tensors; all randomness in training is a pure function of (seed, epoch, position)."""

# V views, T frames, H W pixels, N tokens, D width

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stadapter.augmentation import Augmentation
from stadapter.clips import ClipConfig, load_clip, load_random_views
from stadapter.errors import DataError, VideoError
from stadapter.labels import LABEL_KINDS, Labels, LabelSpace
from stadapter.manifest import Entry, Manifest
from stadapter.processes import Turns
from stadapter.samples import Failure, Sample
from stadapter.token_cache import TokenCache
from stadapter.view_store import ViewStore
from stadapter.wording import counted, listed

_MAX_TRIES = 10
"""After this many unreadable clips in a row a training sample is None."""


class EvaluationClips(Dataset[Sample]):
    """The clips of a manifest with all their test views; one that cannot be read is None and is named in `failures`."""

    def __init__(
        self,
        manifest: Manifest,
        clip_config: ClipConfig,
        *,
        labels: Labels,
        tokens: TokenCache | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Prepare to read; opens nothing.

        Args:
            manifest: the clips.
            clip_config: frames, size and views.
            labels: class names, or those of each head; a clip's label is its position in this list.
            tokens: where the model's tokens for a clip may be found, which then replace its views.
            turns: asked before a video is decoded.

        Raises:
            DataError: a clip without a label, or with one that is not in `labels`.
        """
        self.entries = manifest.entries
        self.clip_config = clip_config
        self.tokens = tokens
        self.turns = turns
        self.targets = _targets(manifest, LabelSpace.of(labels))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        entry, config = self.entries[index], self.clip_config
        sample = Sample(clip=None, label=self.targets[index], index=index, failures=[])
        try:
            if self.tokens is not None:
                views = (config.num_temporal_views, config.num_spatial_views)
                _look_up(sample, self.tokens, entry, test_views=views)
            if sample["clip"] is None:
                _wait_for_turn(self.turns)
                sample["clip"] = load_clip(
                    entry.path,
                    config,
                    start_seconds=entry.start_seconds,
                    end_seconds=entry.end_seconds,
                    frames_per_second=entry.frames_per_second,
                )  # (V, T, 3, H, W)
        except (VideoError, OSError) as error:
            sample["failures"].append((entry.title, str(error)))
        return sample


class TrainingClips(Dataset[Sample]):
    """The clips of a manifest, one random view of each; one that cannot be read is replaced by another and is named in
    `failures`."""

    def __init__(
        self,
        manifest: Manifest,
        clip_config: ClipConfig,
        *,
        labels: Labels,
        augmentation: Augmentation,
        seed: int = 0,
        store: ViewStore | None = None,
        num_epochs: int | None = None,
        views_per_clip: int | None = None,
        tokens: TokenCache | None = None,
        turns: Turns | None = None,
    ) -> None:
        """Prepare to read; opens nothing.

        Args:
            manifest: the clips.
            clip_config: frames and size.
            labels: class names, or those of each head; a clip's label is its position in this list.
            augmentation: random view and colours.
            seed: with the epoch and the clip's position it determines all randomness.
            store: where views for later epochs are kept when a video is decoded; for the fast path.
            num_epochs: how many epochs there will be, if known: no view is drawn for a later one.
            views_per_clip: the same views recur after this many epochs; None always draws fresh ones.
            tokens: where the model's tokens for a view may be found, which then replace the view.
            turns: asked before a video is decoded; what is already kept of a video is read at any time.

        Raises:
            DataError: a clip without a label, or with one that is not in `labels`.
        """
        self.entries = manifest.entries
        self.clip_config = clip_config
        self.augmentation = augmentation
        self.seed = seed
        self.store = store
        self.num_epochs = num_epochs
        self.views_per_clip = views_per_clip
        self.tokens = tokens
        self.turns = turns
        self.targets = _targets(manifest, LabelSpace.of(labels))
        # In shared memory, so that workers kept alive between epochs see the new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that random choices are made for."""
        return int(self._epoch)

    @property
    def view_number(self) -> int:
        """Which view of each clip the epoch shows: a new one, or the same as some epochs before."""
        return self.epoch % self.views_per_clip if self.views_per_clip is not None else self.epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, in this process and in running workers, before iterating over the loader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Sample:
        # Indices from len(self) upwards are further visits to the same clips in one epoch, as from balanced_order.
        failures: list[Failure] = []
        clip_index = chosen = index % len(self)
        for attempt in range(_MAX_TRIES if len(self) > 1 else 1):
            draw = (self.seed, self.view_number, index, attempt)
            generator = np.random.default_rng(draw)
            if attempt > 0:
                chosen = (index + 1 + int(generator.integers(len(self) - 1))) % len(self)  # any other clip
            sample = Sample(clip=None, label=self.targets[chosen], index=chosen, failures=failures)
            try:
                if self.tokens is not None:
                    _look_up(sample, self.tokens, self.entries[chosen], draw=draw)
                if sample["clip"] is None and attempt == 0 and index == clip_index and self._stores_views:
                    sample["clip"] = self._stored_view(index)
                elif sample["clip"] is None:
                    sample["clip"] = self._views(chosen, [generator])[0]
            except (VideoError, OSError) as error:
                failures.append((self.entries[chosen].title, str(error)))
                continue
            return sample
        return Sample(clip=None, label=self.targets[clip_index], index=clip_index, failures=failures)

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
        draws = [(self.seed, each, index, 0) for each in numbers]
        try:
            views = self._views(index, list(map(np.random.default_rng, draws)))
        except VideoError:
            if len(draws) == 1:
                raise
            # A later epoch's view that cannot be read does not affect this one.
            views = self._views(index, [np.random.default_rng(draws[0])])
        store.put(index, view_number + 1, views[1:])
        return views[0].clone()

    def _views(self, index: int, generators: list[np.random.Generator]) -> Tensor:
        """One random view for each generator, (V, T, 3, H, W)."""
        entry = self.entries[index]
        _wait_for_turn(self.turns)
        return load_random_views(
            entry.path,
            self.clip_config,
            augmentation=self.augmentation,
            generators=generators,
            start_seconds=entry.start_seconds,
            end_seconds=entry.end_seconds,
            frames_per_second=entry.frames_per_second,
        )


def _look_up(sample: Sample, tokens: TokenCache, entry: Entry, **views: tuple[int, ...]) -> None:
    """Give a sample the key of what it shows, the `views` of an entry, and its tokens if they are kept."""
    times = (entry.start_seconds, entry.end_seconds, entry.frames_per_second)
    sample["key"] = tokens.key(entry.path, times=times, **views)
    sample["clip"] = tokens.take(sample["key"])
    sample["is_found"] = sample["clip"] is not None


def _wait_for_turn(turns: Turns | None) -> None:
    if turns is not None:
        turns.wait()


def _targets(manifest: Manifest, space: LabelSpace) -> list[tuple[int, ...]]:
    if manifest.entries and set(manifest.label_space.names) != set(space.names):
        ours, theirs = (
            f"labels for {' and '.join(each.heads)}" if each.heads else "one label each"
            for each in (space, manifest.label_space)
        )
        columns = ",".join(f"label:{head}" for head in space.heads) or "label"
        kind = "+".join(space.heads) or "action, verb or noun"
        kitchens = f", or EPIC-Kitchens with --label-kind {kind}" if kind in LABEL_KINDS or not space.heads else ""
        raise DataError(f"clips have {theirs}; expected {ours}: columns {columns} of a CSV{kitchens}")
    if unknown := space.unknown(manifest.label_space):
        raise DataError(
            f"{counted(len(unknown), 'class')} of the data missing from the labels: {listed(unknown)}; "
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
