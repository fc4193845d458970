"""What a training would take, found by a short trial before anything starts: arithmetic, memory, steps, time."""

import math
import time
from dataclasses import dataclass
from operator import attrgetter

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from stadapter.costs import CheckpointingCost, gmacs_per_view, gmacs_text
from stadapter.dataset import EvaluationClips
from stadapter.evaluation.timecheck import CHANGED_ORDERS
from stadapter.machine import random_devices, share_of_cores, takes_turns
from stadapter.model import ParameterCount
from stadapter.samples import Failure
from stadapter.training.checkpoint import read_checkpoint
from stadapter.training.preparation import Prepared
from stadapter.training.trial import (
    Reading,
    Stepper,
    Trial,
    extrapolated,
    read_evaluation_clips,
    read_training_clips,
    time_forward,
    time_on_tokens,
    try_steps,
)
from stadapter.training.validation import TIME_CHECK_CLIPS, is_due
from stadapter.wording import bytes_text, counted, duration, listed, percent

SECONDS = 60.0
"""Time for the short trial; with a large trunk on a slow machine a single step may take longer."""
BUSY_SHARE = 0.8
"""An idle machine gives a step on the CPU at least a whole core; with less, other programs took part of its time."""
_SHARE_OF_READING = 1 / 6


@dataclass(frozen=True)
class Estimate:
    """What a training would take. Times are in seconds of one of the processes that share the work."""

    run: Prepared
    parameters: ParameterCount
    gmacs_per_view: float
    """See `costs.COUNTED`."""
    num_workers: int
    """Decoding processes."""
    trials: tuple[Trial, ...]
    """The steps that were tried, as `try_steps` returns them: one of no frames first, the largest last."""
    reading_seconds: float | None
    """To read a training clip, per epoch, in one decoding process; None if none could be read."""
    held_out_reading_seconds: float | None
    """The same for a held-out clip and all its views."""
    forward_seconds: float
    """To classify one frame."""
    failures: tuple[Failure, ...]
    """Clips among those tried that could not be read."""
    available_bytes: int | None
    """Memory that was available in addition to what the loaded model holds, when the trial began."""
    held_bytes: int
    """What the loaded model, or on a CPU the whole process, held at that time."""
    steps_done: int = 0
    """Steps already done by a training that is resumed."""
    on_tokens_seconds: float | None = None
    """To train on one frame once its tokens are kept; None if none are."""
    checkpointing: CheckpointingCost | None = None
    """What gradient checkpointing costs and saves per step on a batch of one process, whether it is on or not."""

    @property
    def is_whole(self) -> bool:
        """Whether a whole batch was tried; if not, time and memory are scaled."""
        return self.trials[-1].size == self.frames_per_batch

    @property
    def frames_per_batch(self) -> int:
        """Frames in a batch of one process."""
        return self.run.clips_per_batch * self.run.clip_config.num_frames

    @property
    def peak_bytes(self) -> int:
        """Memory of a step: allocated on the GPU, or held by the training process on a CPU."""
        return round(extrapolated(self.trials, self.frames_per_batch, attrgetter("peak_bytes")))

    @property
    def fits(self) -> bool:
        """Whether there is enough memory; true if the system does not say."""
        return self.available_bytes is None or self.peak_bytes <= self.held_bytes + self.available_bytes

    @property
    def batch_seconds(self) -> float:
        """Forward and backward pass of a batch."""
        return extrapolated(self.trials, self.frames_per_batch, attrgetter("step_seconds"))

    @property
    def batch_reading_seconds(self) -> float:
        """Decoding a batch, with all decoding processes together."""
        return self.run.clips_per_batch * (self.reading_seconds or 0.0) / max(1, self.num_workers)

    @property
    def seconds_per_step(self) -> float:
        """An optimizer step, with decoding in parallel or in turns."""
        seconds = self._together(self.run.clips_per_batch * (self.reading_seconds or 0.0), self.batch_seconds)
        return seconds * self.run.config.accumulation_steps

    @property
    def steps_left(self) -> int:
        """Steps still to take."""
        return self.run.plan.total_steps - self.steps_done

    @property
    def training_seconds(self) -> float:
        """All remaining steps; the last of an epoch may have fewer batches than the others."""
        plan, batches = self.run.plan, self.run.config.accumulation_steps
        epochs_done, steps_done = divmod(self.steps_done, plan.steps_per_epoch)
        done = epochs_done * plan.batches_per_epoch + steps_done * batches
        fresh = max(0, min(self.fresh_epochs, plan.epochs) * plan.batches_per_epoch - done)
        later = plan.epochs * plan.batches_per_epoch - done - fresh
        return (fresh * self.seconds_per_step + later * self.seconds_per_later_step) / batches

    @property
    def fresh_epochs(self) -> int:
        """Epochs that show views for the first time; all of them if nothing is kept."""
        views = self.run.config.views_per_clip
        return views if views is not None and self.on_tokens_seconds is not None else self.run.plan.epochs

    @property
    def seconds_per_later_step(self) -> float:
        """An optimizer step on kept tokens; reading them is not counted."""
        return (self.on_tokens_seconds or 0.0) * self.frames_per_batch * self.run.config.accumulation_steps

    @property
    def validation_seconds(self) -> float:
        """The held-out clips at the end: every view, in every frame order if the check whether time matters is on."""
        if self.run.val_set is None:
            return 0.0
        # Frozen blocks see the frames only once for all orders.
        again = 1 - self.run.frozen_part.num_blocks / len(self.run.model.trunk.blocks)
        return self._held_out_seconds(passes=1 + (self.num_orders - 1) * again)

    @property
    def validations_on_the_way(self) -> int:
        """How often the held-out clips are evaluated before the end."""
        of_epoch = self.run.plan.steps_per_epoch
        next_epoch = math.ceil(self.steps_done / of_epoch)
        return sum(is_due(self.run, epoch * of_epoch) for epoch in range(next_epoch, self.run.plan.epochs))

    @property
    def on_the_way_seconds(self) -> float:
        """All of these validations, with every view in its own order only."""
        times = self.validations_on_the_way
        return times * self._held_out_seconds(passes=1) if times else 0.0

    @property
    def seconds(self) -> float:
        """Everything that remains of the run."""
        return self.training_seconds + self.on_the_way_seconds + self.validation_seconds

    def _held_out_seconds(self, *, passes: float) -> float:
        """Every held-out clip with every view, run through the model this many times."""
        assert self.run.val_set is not None
        clip = self.run.clip_config
        arithmetic = self.forward_seconds * clip.num_frames * clip.num_views * passes
        num_processes: int = self.run.accelerator.num_processes
        each = self._together(self.held_out_reading_seconds or 0.0, arithmetic)
        return len(self.run.val_set.entries) / num_processes * each

    @property
    def num_orders(self) -> int:
        """How often a view is classified: once, or also with its frames in other orders."""
        assert self.run.val_set is not None
        asked = len(self.run.val_set.entries) <= TIME_CHECK_CLIPS and self.run.clip_config.num_frames > 1
        return 1 + (len(CHANGED_ORDERS) if asked else 0)

    def _together(self, reading: float, arithmetic: float) -> float:
        """The time both take together, given the seconds of one decoding process and those of the model.

        On a GPU, and on cores of their own, decoding processes work in parallel with the model; otherwise they take
        turns with it, or share some of its cores.
        """
        if self.num_workers == 0:
            return reading + arithmetic
        longest = max(reading / self.num_workers, arithmetic)
        if self.run.accelerator.device.type != "cpu":
            return longest
        num_processes: int = self.run.accelerator.num_processes
        cores = share_of_cores(num_processes)
        if takes_turns(num_processes):
            return arithmetic + reading / min(cores, self.num_workers)
        if cores - torch.get_num_threads() >= self.num_workers:
            return longest
        return max(reading / self.num_workers, arithmetic + reading / cores)


def estimate(run: Prepared, *, seconds: float = SECONDS) -> Estimate:
    """Read some clips, take some steps on them, and estimate the whole run; nothing is written or learned.

    With several processes only this one is measured: what they lose by waiting for each other is not counted.

    Args:
        run: a prepared training; its model is put on its device and cast as for training; its weights do not change.
        seconds: time for the short trial.

    Raises:
        TrainingError: there is not enough memory for a single frame.
        ArtefactError: the training to resume left no checkpoint, or a damaged one.
    """
    started = time.monotonic()
    steps_done = read_checkpoint(run.folder)[0].step if run.config.resume else 0
    gmacs = gmacs_per_view(run.model, num_frames=run.clip_config.num_frames, size=run.clip_config.size)
    share = seconds * _SHARE_OF_READING
    reading = read_training_clips(run.training_clips(run.view_store()), num_epochs=run.plan.epochs, seconds=share)
    held_out = None
    if run.val_set is not None:
        dataset = EvaluationClips(run.val_set, run.clip_config, labels=run.model.label_space)
        held_out = read_evaluation_clips(dataset, seconds=share / 2)
    with torch.random.fork_rng(random_devices(run.accelerator.device)):
        stepper = Stepper(run)
        held, available = stepper.memory()
        left = seconds - (time.monotonic() - started)
        trials = try_steps(stepper, reading.batch, num_clips=run.clips_per_batch, seconds=left)
        left = seconds - (time.monotonic() - started)
        forward = time_forward(stepper, reading.batch, trials[-1], seconds=left)
        left = seconds - (time.monotonic() - started)
        on_tokens = time_on_tokens(stepper, reading.batch, trials[-1], seconds=left)
    return Estimate(
        run=run,
        parameters=run.model.count_parameters(),
        gmacs_per_view=gmacs,
        num_workers=stepper.run.num_workers,
        trials=tuple(trials),
        reading_seconds=_mean(reading),
        held_out_reading_seconds=_mean(held_out) if held_out is not None else None,
        forward_seconds=forward,
        failures=(*reading.failures, *(held_out.failures if held_out is not None else ())),
        available_bytes=available,
        held_bytes=held,
        steps_done=steps_done,
        on_tokens_seconds=on_tokens,
        checkpointing=run.checkpointing_cost(),
    )


def tables(estimate: Estimate) -> Group:
    """The estimate as a table, with the basis of each figure, and notes; to be printed with rich."""
    table = Table(title="What this training takes, approximately", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(max_width=100)
    for name, value, reason in _rows(estimate):
        table.add_row(name, value, Text(reason))
    return Group(table, *(Text(note) for note in _notes(estimate)))


def _rows(estimate: Estimate) -> list[tuple[str, str, str]]:
    run, clip, plan = estimate.run, estimate.run.clip_config, estimate.run.plan
    trained, batch = estimate.parameters.trained, counted(run.clips_per_batch, "clip")
    rows = [
        (
            "parameters",
            f"{trained:,}",
            f"trained, of {estimate.parameters.total:,}; {bytes_text(4 * trained)} in the run folder",
        ),
        (
            "arithmetic",
            gmacs_text(estimate.gmacs_per_view),
            f"to classify a view of {clip.num_frames} frames of {clip.size} x {clip.size} pixels",
        ),
        (
            "steps",
            f"{plan.total_steps:,}",
            f"{counted(plan.epochs, 'epoch')} of {plan.steps_per_epoch:,}; {_step(run, batch)}",
        ),
        ("memory", bytes_text(estimate.peak_bytes), _memory_reason(estimate)),
        *_checkpointing(estimate),
        ("per step", duration(estimate.seconds_per_step), _step_reason(estimate, batch)),
        *_later_step(estimate),
        ("training", duration(estimate.training_seconds), _training_reason(estimate)),
    ]
    if run.val_set is not None:
        what = f"{counted(len(run.val_set.entries), 'clip')} of {counted(clip.num_views, 'view')}"
        orders = f", their frames in {estimate.num_orders} orders" if estimate.num_orders > 1 else ""
        if times := estimate.validations_on_the_way:
            rows.append(
                ("mid-run validation", duration(estimate.on_the_way_seconds), f"{counted(times, 'validation')}, {what}")
            )
        rows.append(("validation", duration(estimate.validation_seconds), what + orders))
        rows.append(("total", duration(estimate.seconds), ""))
    return rows


def _step(run: Prepared, batch: str) -> str:
    batches, processes = run.config.accumulation_steps, run.accelerator.num_processes
    return (
        f"{batch} each"
        + (f" x {batches} batches" if batches > 1 else "")
        + (f" x {processes} processes" if processes > 1 else "")
    )


def _later_step(estimate: Estimate) -> list[tuple[str, str, str]]:
    if estimate.on_tokens_seconds is None or estimate.fresh_epochs >= estimate.run.plan.epochs:
        return []
    when = f"after {counted(estimate.fresh_epochs, 'epoch')}, on kept tokens: nothing is decoded"
    return [("per later step", duration(estimate.seconds_per_later_step), when)]


def _training_reason(estimate: Estimate) -> str:
    """The steps that count."""
    left, done = f"{estimate.steps_left:,} steps", estimate.steps_done
    return (f"{left} left after step {done:,}" if done else left) + "; checkpoints not counted"


def _memory_reason(estimate: Estimate) -> str:
    on_gpu = estimate.run.accelerator.device.type == "cuda"
    what = "peak in a step, " + ("on the GPU" if on_gpu else "of the main process; decoding comes on top")
    if estimate.available_bytes is None:
        return what
    return f"of {bytes_text(estimate.held_bytes + estimate.available_bytes)} free; {what}"


def _checkpointing(estimate: Estimate) -> list[tuple[str, str, str]]:
    if estimate.checkpointing is None:
        return []
    is_on = estimate.run.config.gradient_checkpointing
    would = "" if is_on or not estimate.checkpointing.num_blocks else "--gradient-checkpointing would be "
    return [("gradient checkpointing", "on" if is_on else "off", would + str(estimate.checkpointing))]


def _step_reason(estimate: Estimate, batch: str) -> str:
    """What the model takes and what decoding takes; the slower one, the bottleneck, comes first."""
    seconds = estimate.trials[-1].seconds
    model = duration(estimate.batch_seconds)
    if estimate.is_whole and duration(min(seconds)) != duration(max(seconds)):
        model = f"{duration(min(seconds))} to {duration(max(seconds))}"
    if estimate.reading_seconds is None:
        return f"the model takes {model} for {batch}"
    reading = duration(estimate.batch_reading_seconds)
    where = f"in {counted(estimate.num_workers, 'process')}" if estimate.num_workers else "in the main process"
    if estimate.batch_reading_seconds > estimate.batch_seconds:
        return f"decoding is the bottleneck: {reading} for {batch} {where}; the model takes {model}"
    return f"the model is the bottleneck: {model} for {batch}; decoding takes {reading} {where}"


def _notes(estimate: Estimate) -> list[str]:
    run, notes = estimate.run, []
    if not estimate.is_whole:
        tried = listed(
            [f"{counted(t.num_clips, 'clip')} of {counted(t.num_frames, 'frame')}" for t in estimate.trials[1:]]
        )
        notes.append(
            f"Memory and time per step are extrapolated: a whole batch was too much to try. Tried: {tried}; "
            + ("both have a fixed part and one" if len(estimate.trials) > 2 else "both were taken to be")
            + " proportional to the frames."
        )
    if not estimate.fits:
        flags = [] if run.config.gradient_checkpointing else ["--gradient-checkpointing"]
        flags += ["--precision bf16"] if run.autocast_dtype is None else []
        notes.append(
            "It does not fit into memory: lower --batch-size (and raise --accumulation-steps accordingly), "
            "--num-frames or --size" + (f", or use {' and '.join(flags)}." if flags else ".")
        )
    share = estimate.trials[-1].processor_share
    if run.accelerator.device.type == "cpu" and share < BUSY_SHARE:
        notes.append(
            f"The machine is busy: the steps had a processor core for {percent(share, 0)} of their time. They are "
            "faster on an idle machine."
        )
    if estimate.failures:
        names = listed(sorted({name for name, _ in estimate.failures}))
        cost = "; the time excludes decoding" if estimate.reading_seconds is None else ""
        notes.append(f"Unreadable among the few clips tried: {names}{cost}. stadapter check reports all.")
    if run.config.compile:
        notes.append("Measured without --compile.")
    if run.accelerator.num_processes > 1:
        notes.append("Measured in one process only: what several lose by waiting for each other is not counted.")
    return notes


def _mean(reading: Reading) -> float | None:
    return sum(reading.seconds) / len(reading.seconds) if reading.seconds else None
