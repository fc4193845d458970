"""A few training steps on the run's own clips, to measure what they take: nothing is kept or written."""

# B clips, V views, T frames

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import nn

from stadapter.dataset import EvaluationClips, TrainingClips
from stadapter.errors import TrainingError
from stadapter.memory import available_memory_bytes, forget_peak_memory, peak_memory_bytes, readable_memory_errors
from stadapter.model import Finisher, prepare_trunk
from stadapter.samples import Batch, Failure, Sample, collate
from stadapter.scores import view_scores
from stadapter.training.preparation import Prepared
from stadapter.training.progress import Meter
from stadapter.training.schedule import make_optimizer

MAX_CLIPS = 16
MAX_TIMED_STEPS, ENOUGH_SECONDS = 8, 10.0
LARGEST_GROWTH = 4
"""How many times larger than the last trial the next may be: beyond that, extrapolating the last two is a guess."""
SHARE_OF_MEMORY = 0.8
"""The share of the available memory that a trial may be expected to take."""


@dataclass(frozen=True)
class Reading:
    """Clips read as a training reads them, and the time it took."""

    batch: Batch
    """Those that could be read, or one black clip if none could."""
    seconds: tuple[float, ...]
    """For each of them, one decoding process's time per clip and epoch; empty if none could be read."""
    failures: tuple[Failure, ...]


@dataclass(frozen=True)
class Trial:
    """Training steps on batches of one size."""

    num_clips: int
    num_frames: int
    seconds: tuple[float, ...]
    """Per step: forward, backward and weight update; the first step is left out if there is time."""
    peak_bytes: int
    """Peak memory in use: on a GPU what was allocated there, on a CPU what the process held."""
    processor_share: float = 1.0
    """Processor cores this process had during the timed steps, as a share of their time; above 1 with several."""

    @property
    def size(self) -> int:
        """Frames of the batch: time and memory grow with these."""
        return self.num_clips * self.num_frames

    @property
    def step_seconds(self) -> float:
        """The time of a step: the median of the timed ones."""
        return statistics.median(self.seconds)


def read_training_clips(dataset: TrainingClips, *, num_epochs: int, seconds: float) -> Reading:
    """Read up to 16 clips from all over a data set, in this process and one thread, like a decoding process.

    If views are kept for later epochs, a clip's time is divided over all of the `num_epochs` it is read for.

    Args:
        dataset: the clips.
        num_epochs: how often the run will visit each.
        seconds: no clip is started after this long.
    """
    span = dataset.store.epochs_ahead + 1 if dataset.store is not None else 1
    visits = min(span, num_epochs)

    def read(index: int) -> Sample:
        first = -index % span  # an epoch in which this clip is read for as many epochs as there is room for
        dataset.num_epochs = first + visits
        dataset.set_epoch(first)
        return dataset[index]

    return _read_some(dataset, read, seconds=seconds, visits=visits)


def read_evaluation_clips(dataset: EvaluationClips, *, seconds: float) -> Reading:
    """Likewise read clips to evaluate on, with all their views."""
    return _read_some(dataset, dataset.__getitem__, seconds=seconds, visits=1)


def _read_some(
    dataset: TrainingClips | EvaluationClips, read: Callable[[int], Sample], *, seconds: float, visits: int
) -> Reading:
    end = time.monotonic() + seconds
    samples: list[Sample] = []
    taken: list[float] = []
    with _one_thread():
        for index in _spread(len(dataset), MAX_CLIPS):
            started = time.monotonic()
            samples.append(read(index))
            taken.append((time.monotonic() - started) / visits)
            if time.monotonic() > end:
                break
    failures = tuple(failure for sample in samples for failure in sample["failures"])
    if all(sample["clip"] is None for sample in samples):
        clip = dataset.clip_config
        dtype = torch.uint8 if clip.resize == "fast" else torch.float32
        samples[0]["clip"] = torch.zeros(clip.num_frames, 3, clip.size, clip.size, dtype=dtype)
        taken.clear()
    return Reading(collate(samples), tuple(taken[1:] or taken), failures)  # the first starts with cold caches


class Stepper:
    """The step of the training loop, in this process only."""

    def __init__(self, run: Prepared) -> None:
        """Put the model on its device, as training does; it can still be trained afterwards, unchanged."""
        self.run, self.device = run, run.accelerator.device
        self.model = run.model.to(self.device)
        self._finisher = Finisher(self.model, size=run.clip_config.size)
        prepare_trunk(self.model, self.device, run.autocast_dtype)
        # With a learning rate of 0 the arithmetic is that of training, but the weights do not change.
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._optimizer = make_optimizer(trained, lr=0.0, weight_decay=run.config.weight_decay)
        for parameter in trained.values():  # optimizer state exists before any step, and is counted as such
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._meter = Meter(self.device, num_heads=run.model.label_space.num_heads)

    def memory(self) -> tuple[int, int | None]:
        """Bytes in use now, as counted by `Trial.peak_bytes`, and bytes still available, if known."""
        forget_peak_memory(self.device)
        return peak_memory_bytes(self.device), available_memory_bytes(self.device)

    def step(self, batch: Batch) -> None:
        """Complete one step; on tokens if the batch has them."""
        loss, logits = self.run.loss(batch, self._finisher if "tokens" in batch else self.model)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.run.config.gradient_clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.run.config.gradient_clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._meter.add(loss.detach(), self.run.model.label_space.named(logits.detach()) == batch["labels"])
        self._wait()

    def found(self, batch: Batch) -> Batch:
        """A batch as it arrives when the tokens of all its clips are kept."""
        count = len(batch["clips"])
        kept = Batch(clips=torch.empty(0), labels=batch["labels"], indices=batch["indices"], failures=[])
        kept["tokens"] = self.run.frozen_part.compute(batch["clips"])
        kept["is_found"], kept["keys"] = torch.ones(count, dtype=torch.bool), []
        return kept

    def classify(self, batch: Batch) -> None:
        """Complete one forward pass as in evaluation."""
        clips = batch["clips"][:, None]  # (B, V, T, 3, H, W) with one view
        view_scores(self.model, clips, views_at_once=len(clips))
        self._wait()

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def try_steps(stepper: Stepper, batch: Batch, *, num_clips: int, seconds: float) -> list[Trial]:
    """Steps on more and more clips, to a whole batch if time and memory allow.

    The first is on one clip of one frame. The last two predict what larger ones take, since time and memory have a
    fixed part and one proportional to the frames; what would take longer than there is time, or more memory than there
    is to spare, is not tried.

    Args:
        stepper: what takes the steps.
        batch: clips (·, T, 3, H, W), which make up a batch, repeated if need be.
        num_clips: B of a whole batch.
        seconds: time for all of it.

    Returns:
        The trials, the largest last; before them one of no frames, with the memory in use before any step.

    Raises:
        TrainingError: there is not enough memory for one clip of one frame.
    """
    end = time.monotonic() + seconds
    held, available = stepper.memory()
    limit = held + SHARE_OF_MEMORY * available if available is not None else math.inf

    def fits(size: tuple[int, int]) -> bool:
        frames = size[0] * size[1]
        if frames > LARGEST_GROWTH * trials[-1].size:
            return False
        in_time = 3 * extrapolated(trials, frames, attrgetter("step_seconds")) <= end - time.monotonic()
        return in_time and extrapolated(trials, frames, attrgetter("peak_bytes")) <= limit

    sizes = _sizes(num_clips, batch["clips"].shape[1])
    trials = [Trial(0, 0, (0.0,), held)]
    while sizes:
        fitting = [size for size in sizes if fits(size)] if trials[-1].size else sizes[:1]
        if not fitting:
            break
        chosen = fitting[-1]
        sizes = sizes[sizes.index(chosen) + 1 :]
        try:
            with readable_memory_errors():
                trials.append(_try(stepper, _part(batch, *chosen, stepper.device), is_last=not sizes, end=end))
        except TrainingError:
            if not trials[-1].size:
                raise
            break
    return trials


def time_forward(stepper: Stepper, batch: Batch, trial: Trial, *, seconds: float) -> float:
    """Seconds to classify one frame of a clip, on batches of the size of a trial.

    If there is no time to try it, a third of a training step: that also goes back through the trunk, for up to twice
    the arithmetic.
    """
    if trial.step_seconds > seconds:
        return trial.step_seconds / 3 / trial.size
    part = _part(batch, trial.num_clips, trial.num_frames, stepper.device)
    stepper.model.eval()
    try:
        stepper.classify(part)
        started = time.monotonic()
        stepper.classify(part)
        return (time.monotonic() - started) / trial.size
    finally:
        stepper.model.train()


def time_on_tokens(stepper: Stepper, batch: Batch, trial: Trial, *, seconds: float) -> float | None:
    """Seconds to train on one frame of a clip when its tokens are kept, on batches of the size of a trial.

    None if no tokens are kept, or there is no time to try it.
    """
    if not stepper.run.frozen_part.room_bytes or 3 * trial.step_seconds > seconds:
        return None
    part = stepper.found(_part(batch, trial.num_clips, trial.num_frames, stepper.device))
    times = [_timed_step(stepper, part)[0] for _ in range(4)]
    return statistics.median(times[1:]) / trial.size


def extrapolated(trials: Sequence[Trial], size: int, figure: Callable[[Trial], float]) -> float:
    """A figure at another size in frames: linear in the last two of several trials, and never decreasing.

    >>> one, two = Trial(1, 1, (0.2,), 500), Trial(1, 2, (0.3,), 600)
    >>> round(extrapolated([one, two], 64, attrgetter("step_seconds")), 3)
    6.5
    >>> extrapolated([one, two], 64, attrgetter("peak_bytes"))
    6800.0
    """
    before, last = trials[-2:]
    slope = (figure(last) - figure(before)) / (last.size - before.size)
    return figure(last) + max(0.0, slope) * (size - last.size)


def _try(stepper: Stepper, batch: Batch, *, is_last: bool, end: float) -> Trial:
    """One warm-up step, then a timed one; of a whole batch more, for ten seconds or up to eight steps."""
    forget_peak_memory(stepper.device)
    times = [_timed_step(stepper, batch)]
    end = min(end, time.monotonic() + ENOUGH_SECONDS)
    most = 1 + (MAX_TIMED_STEPS if is_last else 1)
    while len(times) < most and time.monotonic() < end:
        times.append(_timed_step(stepper, batch))
    seconds, processor = zip(*(times[1:] or times), strict=True)
    num_clips, num_frames = batch["clips"].shape[:2]
    peak = peak_memory_bytes(stepper.device)
    return Trial(num_clips, num_frames, seconds, peak, sum(processor) / max(sum(seconds), 1e-9))


def _timed_step(stepper: Stepper, batch: Batch) -> tuple[float, float]:
    """Take a step; returns its time, and the processor time it had."""
    started, processor = time.monotonic(), time.process_time()
    stepper.step(batch)
    return time.monotonic() - started, time.process_time() - processor


def _sizes(num_clips: int, num_frames: int) -> list[tuple[int, int]]:
    """Numbers of clips and frames that double from one frame to a whole batch.

    >>> _sizes(6, 3)
    [(1, 1), (1, 2), (1, 3), (2, 3), (4, 3), (6, 3)]
    """
    frames = [(1, count) for count in _doubling(num_frames)]
    return [*frames, *((count, num_frames) for count in _doubling(num_clips)[1:])]


def _doubling(last: int) -> list[int]:
    powers = itertools.takewhile(lambda power: power < last, (2**exponent for exponent in itertools.count()))
    return [*powers, last]


def _part(batch: Batch, num_clips: int, num_frames: int, device: torch.device) -> Batch:
    """Clips of a batch, cut short, and repeated if there are too few; labels on the device."""
    places = torch.arange(num_clips) % len(batch["clips"])
    clips, labels = batch["clips"][places, :num_frames], batch["labels"][places]
    return Batch(clips=clips, labels=labels.to(device), indices=batch["indices"][places], failures=[])


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` different positions among `count`, evenly spaced.

    >>> _spread(10, 4), _spread(2, 4)
    ([1, 3, 6, 8], [0, 1])
    """
    chosen = min(count, most)
    return [(2 * place + 1) * count // (2 * chosen) for place in range(chosen)]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
