"""A run that could start, in words: what it trains from and on, and what the user may not have intended."""

import math

from stadapter.layers import TimeEmbedding
from stadapter.machine import describe_device
from stadapter.manifest import Manifest
from stadapter.training.preparation import Prepared
from stadapter.tuning import tuning_name
from stadapter.wording import counted, listed, printable


def describe(run: Prepared) -> list[str]:
    """The run in a few lines."""
    clip, counts, num_processes = run.clip_config, run.train_set.counts(), run.accelerator.num_processes
    num_held_out = len(run.val_set.entries) if run.val_set is not None else 0
    held_out = f"{num_held_out or 'none'} held out"
    shown = listed([f"{printable(label)} ({count})" for label, count in counts.items() if count], 20)
    return [
        *run.train_set.notes(),
        *(f"validation: {note}" for note in (_val_notes(run, run.val_set) if run.val_set is not None else [])),
        f"{counted(len(run.train_set.entries), 'clip')} to train on, {held_out}; {run.model.label_space}: {shown}",
        f"{clip.num_frames} frames of {clip.size} x {clip.size} pixels, {run.identity['precision']}, on "
        + describe_device(run.accelerator.device)
        + (f", {num_processes} processes" if num_processes > 1 else ""),
        f"{run.model.count_parameters()}; {run.plan}",
        *_lr_notes(run),
        *_time_notes(run),
        *_checkpointing_notes(run),
        *run.frozen_part.describe(
            num_clips=len(run.train_set.entries),
            num_epochs=run.plan.epochs,
            num_held_out=num_held_out if run.config.validate_every_epochs else 0,
        ),
    ]


def _val_notes(run: Prepared, val_set: Manifest) -> list[str]:
    leak = []
    if shared := run.train_set.shared_with(val_set):
        leak = [
            f"{len(shared)} of {counted(len(val_set.entries), 'held-out clip')} are also trained on, so the accuracy "
            f"will be too high: {listed(shared)}"
        ]
    return [*val_set.notes(), *leak]


def _lr_notes(run: Prepared) -> list[str]:
    highest = getattr(run.config.tuning, "highest_lr", math.inf)
    if run.lr <= highest:
        return []
    return [
        f"a learning rate of {run.lr:g} is high for {tuning_name(run.config.tuning)}, which needs about "
        f"{highest / 10:g} to {highest:g} (--lr {highest / 2:g}); a rate for new layers destroys what a trunk knows"
    ]


def _time_notes(run: Prepared) -> list[str]:
    wanted = run.clip_config.num_frames
    found = {len(module.weight) for module in run.model.modules() if isinstance(module, TimeEmbedding)} - {wanted}
    return [
        f"the time embedding has {counted(count, 'frame')}, interpolated to the clip's {wanted}; "
        f"--tuning.num-frames {wanted} learns one per frame, as published"
        for count in found
    ]


def _checkpointing_notes(run: Prepared) -> list[str]:
    if not run.config.gradient_checkpointing:
        return []
    return [f"gradient checkpointing: {run.checkpointing_cost()}"]
