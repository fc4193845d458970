"""A training run laid out in advance: how many steps, which clips in which batch, at which learning rate.

All of it is a pure function of the settings and the position in the run: resuming it needs no state.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler

from stadapter.wording import counted

MIN_STEPS = 600
"""A small data set is not learned with fewer optimizer steps than this."""
MIN_EPOCHS = 8


@dataclass(frozen=True)
class Plan:
    """How many optimizer steps a run has."""

    steps_per_epoch: int
    epochs: int
    batches_per_epoch: int
    """Batches per process; more than the steps if the gradients of several batches are accumulated."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def __str__(self) -> str:
        return f"{counted(self.total_steps, 'step')}: {counted(self.epochs, 'epoch')} of {self.steps_per_epoch}"


def make_plan(
    *, num_clips: int, batch_size: int, epochs: int | None = None, accumulation_steps: int = 1, num_processes: int = 1
) -> Plan:
    """Count the steps; without `epochs`, as many epochs as give a small data set enough of them.

    >>> make_plan(num_clips=149, batch_size=8)
    Plan(steps_per_epoch=19, epochs=32, batches_per_epoch=19)
    """
    batches = math.ceil(math.ceil(num_clips / batch_size) / num_processes)
    steps = math.ceil(batches / accumulation_steps)
    return Plan(steps, epochs if epochs is not None else max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps)), batches)


class EpochBatches(Sampler[list[int]]):
    """The batches of an epoch, in an order that is a pure function of (seed, epoch); can start partway through.

    With `balanced_targets`, the class of every clip or those of its heads, every class (or combination of them) comes
    equally often; otherwise every clip comes once. Several processes take the batches in turn; the first clips of the
    epoch are then repeated at its end until all have equally many batches, and full ones.
    """

    def __init__(
        self,
        num_clips: int,
        *,
        batch_size: int,
        seed: int,
        balanced_targets: Sequence[tuple[int, ...]] | None = None,
        num_processes: int = 1,
    ) -> None:
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        self.balanced_targets, self.num_processes = balanced_targets, num_processes
        # accelerate would fill up too, but with the first clips after a resume, which are different ones.
        self.num_visits = num_clips
        if num_processes > 1:
            self.num_visits += -num_clips % (batch_size * num_processes)
        self.drop_last = False
        self.epoch = self.first_batch = 0

    def start(self, epoch: int, first_batch: int) -> None:
        """Choose what the next iteration covers: an epoch, starting at one of its batches."""
        self.epoch, self.first_batch = epoch, first_batch

    def loss_weight(self, number: int, *, accumulation_steps: int) -> float:
        """The factor on the loss of a process's batch `number` that makes all clips of a step count the same.

        accelerate divides every loss by `accumulation_steps`, although the last step of an epoch may have fewer batches
        and the last batch fewer clips.
        """
        visits = self.num_visits // self.num_processes
        first = number - number % accumulation_steps  # batch of the step
        clips = min(self.batch_size, visits - number * self.batch_size)
        clips_of_step = min(accumulation_steps * self.batch_size, visits - first * self.batch_size)
        return accumulation_steps * clips / clips_of_step

    def __len__(self) -> int:
        return math.ceil(self.num_visits / self.batch_size) - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        if self.balanced_targets is not None:
            order = balanced_order(self.balanced_targets, self.seed, self.epoch)
        else:
            order = epoch_order(self.num_clips, self.seed, self.epoch)
        visits = list(itertools.islice(itertools.cycle(order), self.num_visits))
        for start in range(self.first_batch * self.batch_size, self.num_visits, self.batch_size):
            yield visits[start : start + self.batch_size]


_NOT_DECAYED = ("time_embedding", "position_embedding", "cls_token", "class_embedding", "register_tokens")
"""Parts of the names of what is added to tokens, not multiplied with them: pulling it to 0 would not be smoothing.
TimeSformer and AIM exempt theirs too."""


def make_optimizer(trained: Mapping[str, nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trained parameters, by name; vectors (biases, norms) and embeddings are not decayed.

    Fused: one pass over what it reads and writes, instead of one per operation (docs/log.md).
    """

    def is_decayed(name: str) -> bool:
        return trained[name].ndim > 1 and not any(part in name for part in _NOT_DECAYED)

    decayed = [parameter for name, parameter in trained.items() if is_decayed(name)]
    kept = [parameter for name, parameter in trained.items() if not is_decayed(name)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def learning_rate_share(step: int, total: int, warmup_fraction: float) -> float:
    """The learning rate of 0-based `step` of `total`, as a share of its highest: linear warm-up, then a cosine to 0.

    >>> [round(learning_rate_share(step, 10, 0.2), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    warmup = warmup_fraction * total
    if step < warmup:
        return (step + 1) / math.ceil(warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def seed_dropout(*key: int) -> None:
    """Make randomness inside the model a pure function of a key, as the clips' order and views already are."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def epoch_order(num_clips: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(num_clips): the order in which an epoch visits the clips.

    >>> epoch_order(4, seed=0, epoch=1) == epoch_order(4, seed=0, epoch=1)
    True
    """
    sequence = np.random.SeedSequence((seed, epoch), spawn_key=(1,))  # not any clip's stream
    return [int(index) for index in np.random.default_rng(sequence).permutation(num_clips)]


def balanced_order(targets: Sequence[tuple[int, ...]], seed: int, epoch: int) -> list[int]:
    """As many clips as there are, equally many of every class that has any (give or take one), in random order.

    From a large class other clips are taken in every epoch; those of a small class are repeated: visit number v of clip
    i is i + v * len(targets), for which `TrainingClips` gives a separate view. With several heads their combinations
    are balanced: what is balanced for one head is not for another.

    >>> sorted(balanced_order([(0,), (0,), (0,), (1,)], seed=0, epoch=0))[-2:]  # the only clip of class 1, twice
    [3, 7]
    """
    generator = np.random.default_rng(np.random.SeedSequence((seed, epoch), spawn_key=(2,)))
    of_class: dict[tuple[int, ...], list[int]] = {}
    for index, target in enumerate(targets):
        of_class.setdefault(target, []).append(index)
    order: list[int] = []
    classes = sorted(of_class)
    for turn, place in enumerate(generator.permutation(len(classes))):
        clips = of_class[classes[place]]
        wanted = (len(targets) + turn) // len(of_class)  # these add up to len(targets)
        for visit in range(math.ceil(wanted / len(clips))):
            remaining = wanted - visit * len(clips)
            order += [clips[place] + visit * len(targets) for place in generator.permutation(len(clips))[:remaining]]
    return [order[place] for place in generator.permutation(len(order))]
