"""A run that could start: everything that training needs, found and checked before anything is written."""

# B batch, C classes

import importlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stadapter.backbones import load_backbone
from stadapter.clips import ClipConfig
from stadapter.costs import CheckpointingCost, checkpointing_cost
from stadapter.dataset import TrainingClips
from stadapter.errors import SettingsError, TrainingError
from stadapter.machine import (
    choose_device,
    choose_precision,
    copies_asynchronously,
    default_workers,
    precision_name,
)
from stadapter.manifest import Manifest, class_folder_roots, find_held_out_up_to, read_splits
from stadapter.memory import available_memory_bytes, readable_memory_errors
from stadapter.model import VideoClassifier, build_model
from stadapter.paths import expanded
from stadapter.processes import Turns
from stadapter.samples import Batch
from stadapter.token_cache import TokenCache
from stadapter.training.checkpoint import read_checkpoint
from stadapter.training.frozen import FrozenPart
from stadapter.training.run_folder import claimed, refuse_folder
from stadapter.training.schedule import Plan, make_plan
from stadapter.training.settings import TrainConfig
from stadapter.view_store import MAX_EPOCHS_AHEAD, ViewStore
from stadapter.vit import BackboneInfo, ImageViT, nearest_multiple
from stadapter.wording import counted

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

CPU_SIZE_PIXELS = 112
"""Approximate upper limit for the side of a clip on a CPU, where none is asked for."""
_SPLITTING = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
"""The variables by which `accelerate launch` says how to split a model."""


@dataclass(frozen=True)
class Prepared:
    """A run that could start: all it needs has been found and fits together, and nothing has been written."""

    config: TrainConfig
    accelerator: "Accelerator"
    train_set: Manifest
    val_set: Manifest | None
    held_out_up_to: Mapping[str, str] | None
    """The largest hash of a held-out name of each class, or the hashes of the held-out groups; None if no share of the
    clips is held out."""
    model: VideoClassifier
    clip_config: ClipConfig
    autocast_dtype: torch.dtype | None
    plan: Plan

    @property
    def folder(self) -> Path:
        """The run folder."""
        return expanded(self.config.out)

    @property
    def lr(self) -> float:
        """The highest learning rate, scaled to the clips per step if that is asked for."""
        config = self.config
        clips = config.batch_size * config.accumulation_steps * self.accelerator.num_processes
        return config.lr * clips / config.lr_clips if config.lr_clips is not None else config.lr

    @property
    def clips_per_batch(self) -> int:
        """Clips in a batch of one process; with several processes clips are repeated until every batch is full."""
        size = self.config.batch_size
        return size if self.accelerator.num_processes > 1 else min(size, len(self.train_set.entries))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes up a run besides its settings, as JSON values: a resumed one must find the same."""
        return {
            "data_sha256": self.train_set.hash(),
            "labels": self.model.label_space.to_json(),
            "backbone_sha256": self.model.trunk.info.sha256,
            "size": self.clip_config.size,
            "precision": precision_name(self.autocast_dtype),
            "num_processes": self.accelerator.num_processes,
            "held_out_up_to": self.held_out_up_to,
        }

    def training_clips(
        self, store: ViewStore | None, tokens: TokenCache | None = None, turns: Turns | None = None
    ) -> TrainingClips:
        """The clips to train on, as they are read and varied."""
        return TrainingClips(
            self.train_set,
            self.clip_config,
            labels=self.model.label_space,
            augmentation=self.config.augmentation,
            seed=self.config.seed,
            store=store,
            num_epochs=self.plan.epochs,
            views_per_clip=self.config.views_per_clip,
            tokens=tokens,
            turns=turns,
        )

    def view_store(self) -> ViewStore | None:
        """Room for views drawn ahead of their epoch."""
        clip = self.clip_config
        if clip.resize != "fast":
            return None  # its views are floats, four times as large
        return ViewStore(
            num_clips=len(self.train_set.entries),
            view_shape=(clip.num_frames, 3, clip.size, clip.size),
            max_bytes=self.config.view_store_megabytes * 2**20,
            max_epochs_ahead=min(MAX_EPOCHS_AHEAD, (self.config.views_per_clip or MAX_EPOCHS_AHEAD + 1) - 1),
        )

    @cached_property
    def frozen_part(self) -> FrozenPart:
        """The first blocks, which give a view the same tokens in every epoch."""
        return FrozenPart(self.config, self.model, self.clip_config, self.accelerator.device, self.autocast_dtype)

    @cached_property
    def num_workers(self) -> int:
        """Processes that decode videos for this one."""
        given, num_processes = self.config.num_workers, self.accelerator.num_processes
        return given if given is not None else default_workers(num_processes, device_type=self.accelerator.device.type)

    def loss(self, batch: Batch, network: nn.Module, cache: TokenCache | None = None) -> tuple[Tensor, Tensor]:
        """The loss of a batch, and the logits (B, C) it comes from.

        `network` is the model as prepared for training, or its `Finisher` for tokens, which are kept in `cache`.
        """
        space = self.model.label_space
        inputs = self.frozen_part.tokens(batch, cache) if "tokens" in batch else self.model.normalise(batch["clips"])
        logits: Tensor = network(inputs)  # (B, C)
        return space.loss(logits, batch["labels"], label_smoothing=self.config.label_smoothing), logits

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the run folder and keep other trainings out of it; with several processes the first does that."""
        first = self.accelerator.is_main_process
        with claimed(self.folder, resume=self.config.resume) if first else nullcontext():
            yield

    def check_memory(self) -> None:
        """Refuse clips of which memory cannot hold even one batch, before any is read.

        Raises:
            TrainingError: they take more memory than there is, by a lower bound: as they are read, and on a CPU once
                more as normalised floats.
        """
        clip, free = self.clip_config, available_memory_bytes(torch.device("cpu"))
        is_fast, on_cpu = clip.resize == "fast", self.accelerator.device.type == "cpu"
        bytes_read = 1 if is_fast else 4
        bytes_normalised = 4 if is_fast and on_cpu else 0  # what is read on the released path is already normalised
        for manifest, num_views in ((self.train_set, 1), (self.val_set, clip.num_views)):
            if free is None or manifest is None:
                continue
            num_clips = min(self.config.batch_size, len(manifest.entries))
            needed = num_clips * clip.num_frames * 3 * clip.size**2 * (bytes_read * num_views + bytes_normalised)
            if needed > free:
                raise TrainingError(
                    f"a batch of {counted(num_clips, 'clip')}, {counted(num_views, 'view')} each, of "
                    f"{counted(clip.num_frames, 'frame')} of {clip.size} x {clip.size} pixels takes "
                    f"at least {needed / 2**30:,.0f} GiB of memory, but only {free / 2**30:,.0f} GiB are free; lower "
                    "--batch-size, --num-frames, --size or --num-temporal-views"
                )

    def checkpointing_cost(self) -> CheckpointingCost:
        """What gradient checkpointing costs and saves per step on a batch of one process, whether it is on or not."""
        return checkpointing_cost(
            self.model,
            num_clips=self.clips_per_batch,
            num_frames=self.clip_config.num_frames,
            size=self.clip_config.size,
            device=self.accelerator.device,
            autocast_dtype=self.autocast_dtype,
        )


@readable_memory_errors()
def prepare(config: TrainConfig) -> Prepared:
    """Find and check everything a run needs; write nothing.

    Raises:
        STAdapterError: something is missing or does not fit; the message says what to do.
    """
    for name in ("data", "out", "backbone"):
        if not str(getattr(config, name)):
            raise SettingsError(f"{name} is an empty name; is a variable unset?")
    accelerator = make_accelerator(config)
    if accelerator.is_main_process:
        refuse_folder(expanded(config.out), resume=config.resume)
    _refuse_folder_in_data(config)
    train_set, val_set, up_to = _find_clips(config)
    if config.validate_every_epochs and val_set is None:
        raise SettingsError(
            f"validate_every_epochs {config.validate_every_epochs}: no clips are held out; expected a val_fraction "
            "above 0, or val_data"
        )
    trunk = load_backbone(config.backbone)
    model = build_model(
        backbone=trunk,
        labels=train_set.label_space,
        tuning=config.tuning,
        dropout=config.dropout,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        model.trunk.recompute_blocks()
    run = Prepared(
        config=config,
        accelerator=accelerator,
        train_set=train_set,
        val_set=val_set,
        held_out_up_to=up_to,
        model=model,
        clip_config=make_clip_config(config, trunk, accelerator.device),
        autocast_dtype=choose_precision(config.precision, accelerator.device),
        plan=make_plan(
            num_clips=len(train_set.entries),
            batch_size=config.batch_size,
            epochs=config.epochs,
            accumulation_steps=config.accumulation_steps,
            num_processes=accelerator.num_processes,
        ),
    )
    run.check_memory()
    run.frozen_part.check()
    return run


def _find_clips(config: TrainConfig) -> tuple[Manifest, Manifest | None, Mapping[str, str] | None]:
    """The clips to train on and those held out, and how the latter were chosen; a resumed run splits as it began."""
    up_to = read_checkpoint(expanded(config.out))[0].identity.get("held_out_up_to") if config.resume else None
    train_set, val_set = read_splits(
        config.data,
        val_fraction=config.val_fraction,
        val_data=config.val_data,
        video_root=config.video_root,
        label_kind=config.label_kind,
        split_number=config.split_number,
        held_out_up_to=up_to,
    )
    if up_to is None and val_set is not None and train_set.num_held_out:
        up_to = find_held_out_up_to(val_set)
    return train_set, val_set, up_to


def _refuse_folder_in_data(config: TrainConfig) -> None:
    """Refuse a run folder that would be taken for a class when the run is resumed."""
    folder = os.path.realpath(expanded(config.out))
    for data in (config.data, config.val_data):
        for root in class_folder_roots(data, split_number=config.split_number) if data is not None else ():
            if Path(folder).is_relative_to(os.path.realpath(root)):
                raise SettingsError(
                    f"out {config.out} is inside {root}, whose folders are classes: it would be taken for one of them; "
                    "choose another --out"
                )


def make_accelerator(config: TrainConfig) -> "Accelerator":
    """Devices and processes, as `accelerate launch` or the given device says.

    Raises:
        SettingsError: there is no such device, or `accelerate launch` is to split the model among processes.
    """
    from accelerate.accelerator import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils.dataclasses import DataLoaderConfiguration, GradientAccumulationPlugin

    if asked := [name for name in _SPLITTING if os.environ.get(name, "false").lower() in ("1", "true", "yes", "on")]:
        raise SettingsError(
            f"{', '.join(asked)} is set, which splits a model among processes; expected whole models: the trunk is "
            "frozen and what is trained is small. Launch with torchrun, or with accelerate launch --multi_gpu"
        )

    device = choose_device(config.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if is_initialized() and not torch.distributed.is_initialized():
            raise SettingsError(
                "these processes have trained together before and cannot be connected again: launch every training "
                "with several processes separately"
            )
        # DistributedDataParallel imports it. After processes are connected, it would keep a reference to the
        # connection, whose threads then outlive it and abort a process when they meet Python's shutdown.
        importlib.import_module("torch._dynamo")
    else:
        # A process may train twice, on different devices: forget what the last run chose.
        AcceleratorState._reset_state(reset_partial_state=True)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the model has its own autocast
        # Not as a number, which one of accelerate's environment variables would override.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation_steps),
        dataloader_config=DataLoaderConfiguration(non_blocking=copies_asynchronously(device)),
    )


def clip_size(asked: int | None, info: BackboneInfo, device: torch.device) -> int:
    """The side of a clip in pixels: the requested one, or one that suits trunk and device.

    Raises:
        SettingsError: the trunk's patches do not divide the size.
    """
    size = asked
    if size is None and device.type == "cpu":
        size = min(info.image_size, nearest_multiple(CPU_SIZE_PIXELS, info.patch_size))
    size = size if size is not None else info.image_size
    info.check_size(size)
    return size


def make_clip_config(config: TrainConfig, trunk: ImageViT, device: torch.device) -> ClipConfig:
    """The preprocessing of a run: its settings, and the trunk's mean, std and patch size.

    Raises:
        SettingsError: the trunk's patches do not divide the size.
    """
    info = trunk.info
    views = config.num_spatial_views
    return ClipConfig(
        num_frames=config.num_frames,
        size=clip_size(config.size, info, device),
        stride_frames=config.stride_frames,
        num_temporal_views=config.num_temporal_views,
        num_spatial_views=views if views is not None else 1 if config.fit == "stretch" else 3,
        resize=config.resize,
        fit=config.fit,
        short_clips=config.short_clips,
        mean=info.mean,
        std=info.std,
    )
