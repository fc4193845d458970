"""The only training loop: one process or many, CPU or GPU, the same code."""

# B batch, T frames, C classes

import dataclasses
import importlib.util
import json
import math
import os
import platform
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from stadapter.artefact import SPEC_NAME, save_artefact
from stadapter.backbones import DEFAULT_BACKBONE, load_backbone
from stadapter.checkpoint import CHECKPOINT_NAME, Progress, load_checkpoint, read_progress, save_checkpoint
from stadapter.clips import ClipConfig
from stadapter.dataset import Batch, VideoDataset, ViewStore, collate, epoch_order
from stadapter.errors import SettingsError, TrainingError
from stadapter.evaluate import Report, evaluate
from stadapter.manifest import Manifest, read_splits
from stadapter.model import VideoClassifier, build_model
from stadapter.progress import METRICS_NAME, RunDisplay
from stadapter.transforms import Augmentation
from stadapter.tuning import STAdapter, Tuning, tuning_to_json
from stadapter.vit import ImageViT, nearest_multiple

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

CPU_SIZE_PIXELS = 112
LOG_EVERY_STEPS = 10
VOLATILE_SETTINGS = ("out", "resume", "device", "num_workers", "checkpoint_minutes", "view_store_megabytes")
"""Settings that may differ when a run is resumed: they do not change what is learned."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is made of. The defaults are the `small` recipe: few clips, little compute."""

    data: str
    """Folder with one sub-folder of videos per class (optionally below train/ and val/), or a list of videos (CSV
    path,label[,start,end] or "<path> <class number>")."""
    out: str
    """Run folder to make; an existing one is refused unless you resume."""
    backbone: str = DEFAULT_BACKBONE
    """Image trunk: a Hub id or a local folder in Hugging Face layout."""
    tuning: Tuning = field(default_factory=STAdapter)
    """What learns."""
    val_data: str | None = None
    """Held-out clips, laid out as the training data; default: the val folder, or a share of each class."""
    val_fraction: float = 0.2
    """Share of each class held out by a stable hash of the file's name, 0 to 1; 0 trains on everything."""
    num_frames: int = 8
    """Frames of a clip."""
    size: int | None = None
    """Side of a clip, pixels; default the trunk's own on a GPU, about 112 on a CPU."""
    stride_frames: int | None = None
    """Distance between frames, in frames; default spreads them over the whole video."""
    resize: Literal["fast", "released"] = "fast"
    """fast resizes bytes, antialiased; released is what released checkpoints were trained with (float, aliased)."""
    fit: Literal["crop", "stretch"] = "crop"
    """crop cuts the frame to a square; stretch squeezes the whole frame, so that nothing at its edges is lost."""
    short_clips: Literal["repeat", "error"] = "repeat"
    """What becomes of a video with fewer frames than a clip: its frames are repeated, or it counts as unreadable."""
    num_temporal_views: int = 1
    """Clips along time that are averaged when testing."""
    num_spatial_views: int | None = None
    """Crops that are averaged when testing, 1 (centre) or 3 (together they show the whole frame); default 3, 1 with
    stretch."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(colour_jitter=0.4))
    """How training clips are varied. No flip: it would confuse left with right. The mild colour jitter was right on 77
    of 80 held-out gestures where none was right on 72 (docs/log.md); hues are kept, so colours may be classes."""
    epochs: int | None = None
    """Passes over the data; default as many as give 600 optimizer steps, at least 8."""
    batch_size: int = 8
    """Clips a step and process."""
    accumulation_steps: int = 1
    """Batches whose gradients are added up before the weights change."""
    lr: float = 2e-3
    """Highest learning rate, absolute."""
    weight_decay: float = 1e-2
    """AdamW's weight decay; biases and norms have none."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls along a cosine to 0."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, 0 to 1."""
    dropout: float = 0.0
    """Dropout before the classifier, 0 to 1."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all trained weights; 0 does not clip."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the arithmetic; auto takes bf16 where the device computes in it. Trained weights stay fp32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    num_workers: int | None = None
    """Processes that decode videos; default chosen from the machine, 0 decodes in the training process."""
    view_store_megabytes: int = 1024
    """Room for training views drawn ahead, in a temporary file, MiB: each video is then decoded once for up to 8
    epochs, with the same outcome. 0 decodes every time; data sets too large for it do too."""
    seed: int = 0
    """Of everything random."""
    max_bad_fraction: float = 0.1
    """The run stops when more than this share of the videos cannot be read, 0 to 1."""
    checkpoint_minutes: float = 5.0
    """Longest time between two checkpoints, minutes."""
    resume: bool = False
    """Go on with the unfinished run in the run folder."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation_steps"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} {getattr(self, name)}: expected at least 1")
        if self.epochs is not None and self.epochs < 1:
            raise SettingsError(f"epochs {self.epochs}: expected at least 1")
        for name in ("label_smoothing", "warmup_fraction", "max_bad_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingsError(f"{name} {getattr(self, name)}: expected a share from 0 to 1")
        for name in ("dropout", "val_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingsError(f"{name} {getattr(self, name)}: expected a share of at least 0 and below 1")
        if not self.lr > 0:
            raise SettingsError(f"lr {self.lr}: expected a learning rate above 0, such as 2e-3")


MIN_STEPS = 600
"""Fewer optimizer steps than this, and a small data set is not learned (docs/log.md)."""
MIN_EPOCHS = 8


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left."""

    folder: Path
    """The run folder: an artefact that `Classifier.load` takes."""
    steps: int
    """Optimizer steps done in all."""
    report: Report | None
    """Evaluation on the held-out clips; None where there were none."""
    metrics: dict[str, float]
    """Its headline figures: top1, top5, mean_class_accuracy, loss."""


def train(config: TrainConfig, *, console: Console | None = None) -> TrainResult:
    """Train a video classifier and leave it as a run folder.

    Args:
        config: the run.
        console: where to show progress; default standard error.

    Raises:
        STAdapterError: a setting, the data, the trunk or the run folder is not usable, too many videos cannot be
            read, the loss is not a number, or memory does not suffice; the message says what to do.
        KeyboardInterrupt: after a checkpoint has been written; resume goes on from there.
    """
    accelerator = make_accelerator(config)
    folder = Path(config.out).expanduser()
    if accelerator.is_main_process:
        refuse_folder(folder, resume=config.resume)
    console = console or Console(stderr=True)
    train_set, val_set = read_splits(config.data, val_fraction=config.val_fraction, val_data=config.val_data)
    trunk = load_backbone(config.backbone)
    clip_config = make_clip_config(config, trunk, accelerator.device)
    model = build_model(
        backbone=trunk, labels=train_set.labels, tuning=config.tuning, dropout=config.dropout, seed=config.seed
    )
    del trunk
    if accelerator.is_main_process:
        make_folder(folder)
    loop = Loop(config, folder, accelerator, model, train_set, console)
    with readable_memory_errors():
        loop.fit(clip_config)
        loop.save(clip_config, metrics={})  # before validation, which may fail
        report = loop.validate(val_set, clip_config) if val_set is not None else None
    metrics = headline(report) if report is not None else {}
    loop.save(clip_config, metrics=metrics)
    loop.accelerator.wait_for_everyone()
    loop.accelerator.end_training()
    return TrainResult(folder=folder, steps=loop.plan.total_steps, report=report, metrics=metrics)


@dataclass(frozen=True)
class Plan:
    """How many batches and optimizer steps a run has."""

    batches_per_epoch: int
    """Batches that each process sees in an epoch."""
    steps_per_epoch: int
    epochs: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def make_plan(config: TrainConfig, *, num_clips: int, num_processes: int = 1) -> Plan:
    """Count batches and steps; without `config.epochs`, as many epochs as give a small data set enough steps.

    >>> make_plan(TrainConfig(data="clips", out="run"), num_clips=149)
    Plan(batches_per_epoch=19, steps_per_epoch=19, epochs=32)
    """
    batches = math.ceil(math.ceil(num_clips / config.batch_size) / num_processes)
    steps = math.ceil(batches / config.accumulation_steps)
    epochs = config.epochs if config.epochs is not None else max(MIN_EPOCHS, math.ceil(MIN_STEPS / steps))
    return Plan(batches_per_epoch=batches, steps_per_epoch=steps, epochs=epochs)


class EpochBatches(Sampler[list[int]]):
    """The batches of an epoch, in an order that is a pure function of (seed, epoch); may start in its middle."""

    def __init__(self, num_clips: int, *, batch_size: int, seed: int) -> None:
        self.num_clips, self.batch_size, self.seed = num_clips, batch_size, seed
        self.drop_last = False
        self.epoch = self.first_batch = 0

    def start(self, epoch: int, first_batch: int) -> None:
        """Choose what the next iteration goes through: an epoch, from one of its batches on."""
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return math.ceil(self.num_clips / self.batch_size) - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = epoch_order(self.num_clips, self.seed, self.epoch)
        for start in range(self.first_batch * self.batch_size, self.num_clips, self.batch_size):
            yield order[start : start + self.batch_size]


class Loop:
    """The state of one training run, and what is done with it."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        accelerator: "Accelerator",
        model: VideoClassifier,
        train_set: Manifest,
        console: Console,
    ) -> None:
        self.config = config
        self.folder = folder
        self.accelerator: Any = accelerator  # its methods are not typed
        self.model = model
        self.train_set = train_set
        self.console = console
        self.plan = make_plan(config, num_clips=len(train_set.entries), num_processes=accelerator.num_processes)
        self.autocast_dtype = choose_precision(config.precision, accelerator.device)
        self.num_workers = config.num_workers if config.num_workers is not None else default_workers(accelerator)
        self.step = 0
        self.failures: dict[str, str] = {}
        self.started = time.monotonic()

    def fit(self, clip_config: ClipConfig) -> None:
        """Train from the first step, or the one a checkpoint stands at, to the last.

        Raises:
            TrainingError: the loss is not a number, or too many videos cannot be read.
            KeyboardInterrupt: asked to stop (Ctrl-C, SIGTERM); the state has been saved.
        """
        with tempfile.TemporaryDirectory(prefix="stadapter-views-") as folder:
            self._fit(clip_config, Path(folder))

    def _fit(self, clip_config: ClipConfig, scratch: Path) -> None:
        prepare_trunk(self.model, self.accelerator.device, self.autocast_dtype)
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(trained, self.config)
        loader, batches = self._loader(clip_config, scratch)
        model, stepper, sharded = self.accelerator.prepare(self.model, optimizer, loader)
        saver = _Saver(self, trained, optimizer)
        if self.config.resume:
            saver.restore()
        with self._display() as display, interruption() as interrupted, torch.random.fork_rng():
            self._announce(display)
            for epoch in range(self.step // self.plan.steps_per_epoch, self.plan.epochs):
                done = self.step % self.plan.steps_per_epoch
                batches.start(epoch, done * self.config.accumulation_steps * self.accelerator.num_processes)
                sharded.set_epoch(epoch)  # reaches the dataset: accelerate would count epochs from 0 after resuming
                meter = Meter(self.accelerator.device)
                for number, batch in enumerate(sharded, start=done * self.config.accumulation_steps):
                    self._note_failures(batch, display)
                    seed_dropout(self.config.seed, epoch, number, self.accelerator.process_index)
                    set_learning_rate(optimizer, self.config, step=self.step, total=self.plan.total_steps)
                    self._learn(batch, model, stepper, meter)
                    if not self.accelerator.sync_gradients:
                        continue
                    self.step += 1
                    if self.step % LOG_EVERY_STEPS == 0 or self.step == self.plan.total_steps:
                        self._log(meter, optimizer, display)
                    if interrupted():
                        saver.save()
                        raise KeyboardInterrupt
                    saver.save_if_due(meter)

    def validate(self, val_set: Manifest, clip_config: ClipConfig) -> Report:
        """Evaluate on the held-out clips and record the figures."""
        report = evaluate(
            self.accelerator.unwrap_model(self.model),
            val_set,
            clip_config,
            batch_size=self.config.batch_size,
            num_workers=self.num_workers,
            autocast_dtype=self.autocast_dtype,
            accelerator=self.accelerator if self.accelerator.num_processes > 1 else None,
        )
        with self._display() as display:
            display.record("validation", step=self.step, **headline(report))
        return report

    def save(self, clip_config: ClipConfig, *, metrics: Mapping[str, float]) -> None:
        """Leave the artefact in the run folder; the checkpoint has done its work then."""
        if self.accelerator.is_main_process:
            save_artefact(self.folder, self.model, clip_config, receipt=self.receipt(metrics))
            (self.folder / CHECKPOINT_NAME).unlink(missing_ok=True)

    def receipt(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What an artefact tells of its training: settings, data, versions, hardware, outcome."""
        import transformers

        from stadapter import __version__

        return {
            "settings": settings_to_json(self.config),
            "command": shlex.join(sys.argv),
            "data_sha256": self.train_set.hash(),
            "num_train_clips": len(self.train_set.entries),
            "steps": self.step,
            "seconds": round(time.monotonic() - self.started, 1),
            "metrics": dict(metrics),
            "unreadable": dict(sorted(self.failures.items())),
            "versions": {
                "stadapter": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "hardware": describe_hardware(self.accelerator),
            "precision": str(self.autocast_dtype or torch.float32).removeprefix("torch."),
        }

    def _loader(self, clip_config: ClipConfig, scratch: Path) -> tuple["DataLoader[Any]", "EpochBatches"]:
        dataset = VideoDataset(
            self.train_set,
            clip_config,
            labels=self.model.labels,
            augmentation=self.config.augmentation,
            seed=self.config.seed,
            store=self._view_store(clip_config, scratch),
            num_epochs=self.plan.epochs,
        )
        batches = EpochBatches(len(dataset), batch_size=self.config.batch_size, seed=self.config.seed)
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.accelerator.device.type == "cuda",
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers else None,
            worker_init_fn=quiet_worker,
        )
        return loader, batches

    def _view_store(self, clip_config: ClipConfig, scratch: Path) -> ViewStore | None:
        if clip_config.resize != "fast":
            return None  # its views are floats, four times as large
        return ViewStore(
            scratch,
            num_clips=len(self.train_set.entries),
            view_shape=(clip_config.num_frames, 3, clip_config.size, clip_config.size),
            max_bytes=self.config.view_store_megabytes * 2**20,
        )

    def _learn(self, batch: Batch, model: nn.Module, stepper: Any, meter: "Meter") -> None:
        """One batch forward and backward; the weights change when enough batches have been added up."""
        with self.accelerator.accumulate(model):
            clips = self.model.normalise(batch["clips"])
            with torch.autocast(clips.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                logits: Tensor = model(clips)  # (B, C)
            loss = F.cross_entropy(logits, batch["labels"], label_smoothing=self.config.label_smoothing)
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients and self.config.gradient_clip > 0:
                self.accelerator.clip_grad_norm_(model.parameters(), self.config.gradient_clip)
            stepper.step()
            stepper.zero_grad()
        meter.add(loss.detach(), logits.detach(), batch["labels"])

    def _log(self, meter: "Meter", optimizer: torch.optim.Optimizer, display: RunDisplay) -> None:
        loss, accuracy, clips_per_second = meter.read()
        check_finite(loss, self.step)
        display.step(
            self.step,
            loss=loss,
            accuracy=accuracy,
            clips_per_second=clips_per_second * self.accelerator.num_processes,
            lr=float(optimizer.param_groups[0]["lr"]),
            epoch=(self.step - 1) // self.plan.steps_per_epoch,
        )
        self.accelerator.log({"loss": loss, "accuracy": accuracy, "clips_per_second": clips_per_second}, step=self.step)

    def _note_failures(self, batch: Batch, display: RunDisplay) -> None:
        """Name every unreadable video once, and stop when they are too many."""
        for name, reason in batch["failures"]:
            if name not in self.failures:
                self.failures[name] = reason
                display.say(f"skipped {name}: {reason}")
                display.record("unreadable", name=name, reason=reason)
        total, bad = len(self.train_set.entries), len(self.failures)
        if bad > self.config.max_bad_fraction * total:
            raise TrainingError(
                f"{bad} of {total} videos could not be read, more than the allowed share of "
                f"{self.config.max_bad_fraction:.0%}: {', '.join(sorted(self.failures)[:5])}; "
                f"all are named in {self.folder / METRICS_NAME}. Remove or repair them, or raise --max-bad-fraction"
            )

    def _announce(self, display: RunDisplay) -> None:
        plan, count = self.plan, self.model.count_parameters()
        display.say(self.train_set.notes())
        display.say(f"{len(self.train_set.entries)} clips of {len(self.model.labels)} classes; {count}")
        display.say(
            f"{plan.total_steps} steps: {plan.epochs} epochs of {plan.steps_per_epoch}, "
            f"on {describe_hardware(self.accelerator)}"
        )
        display.record("start", step=self.step, total_steps=plan.total_steps, trained=count.trained, total=count.total)
        if importlib.util.find_spec("tensorboard") is not None:
            self.accelerator.init_trackers("tensorboard")

    def _display(self) -> RunDisplay:
        return RunDisplay(
            self.folder,
            total_steps=self.plan.total_steps,
            first_step=self.step,
            console=self.console if self.accelerator.is_main_process else None,
        )


class Meter:
    """Loss and accuracy since the last reading, summed on the device so that a GPU need not wait every step."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        self._started = time.monotonic()

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (B, C), labels (B,)."""
        right = (logits.argmax(-1) == labels).sum()
        count = torch.full_like(right, len(labels))
        self._sums += torch.stack([loss.double() * len(labels), right.double(), count.double()]).to(self._sums.dtype)

    def finite(self) -> bool:
        """Whether every loss since the last reading was a number."""
        return bool(self._sums[0].isfinite())

    def read(self) -> tuple[float, float, float]:
        """Mean loss, accuracy from 0 to 1, clips a second; then start anew."""
        loss, right, count = self._sums.tolist()
        seconds = time.monotonic() - self._started
        self._sums.zero_()
        self._started = time.monotonic()
        return loss / max(1.0, count), right / max(1.0, count), count / max(seconds, 1e-9)


class _Saver:
    """Writes checkpoints of a loop: when one is due, and when asked."""

    def __init__(self, loop: Loop, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self._loop, self._trained, self._optimizer = loop, trained, optimizer
        self._last = time.monotonic()

    def save_if_due(self, meter: Meter) -> None:
        """Save at the end of an epoch or after `checkpoint_minutes`, but never a state that is not finite."""
        loop = self._loop
        epoch_over = loop.step % loop.plan.steps_per_epoch == 0
        minutes = (time.monotonic() - self._last) / 60
        if loop.step == loop.plan.total_steps or not (epoch_over or minutes >= loop.config.checkpoint_minutes):
            return
        if not meter.finite():
            check_finite(math.nan, loop.step)
        self.save()

    def save(self) -> None:
        """Write the state, from the main process."""
        loop = self._loop
        if loop.accelerator.is_main_process:
            progress = Progress(step=loop.step, settings=settings_to_json(loop.config), failures=loop.failures)
            save_checkpoint(loop.folder, self._trained, self._optimizer, progress)
        self._last = time.monotonic()

    def restore(self) -> None:
        """Put the loop where its checkpoint stands.

        Raises:
            TrainingError: the run was started with other settings.
        """
        loop = self._loop
        progress = read_progress(loop.folder)
        now = settings_to_json(loop.config)
        changed = [
            f"{name} was {progress.settings.get(name)!r}, is {now[name]!r}"
            for name in now
            if name not in VOLATILE_SETTINGS and progress.settings.get(name) != now[name]
        ]
        if changed:
            raise TrainingError(
                f"{loop.folder} was started with other settings: {'; '.join(changed)}. "
                "Resume with the same ones, or start a new run folder"
            )
        load_checkpoint(loop.folder, self._trained, self._optimizer)
        loop.step, loop.failures = progress.step, dict(progress.failures)


def refuse_folder(folder: Path, *, resume: bool) -> None:
    """Refuse a run folder that holds something already, or nothing to resume.

    Raises:
        TrainingError: it exists and `resume` is not set, or is finished.
        ArtefactError: there is no checkpoint to resume from, or it is damaged.
    """
    if resume:
        if (folder / SPEC_NAME).is_file() and not (folder / CHECKPOINT_NAME).is_file():
            raise TrainingError(f"{folder} is a finished run: nothing to resume; use it, or choose another --out")
        read_progress(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TrainingError(f"{folder} exists already; choose another --out, or --resume an unfinished run")


def make_folder(folder: Path) -> None:
    """Make the run folder and see that it can be written.

    Raises:
        TrainingError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / METRICS_NAME).touch()
    except OSError as error:
        raise TrainingError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error


def make_accelerator(config: TrainConfig) -> "Accelerator":
    """Devices and processes, as `accelerate launch` or the one given device says.

    Raises:
        SettingsError: the device is not there.
    """
    from accelerate.accelerator import Accelerator
    from accelerate.state import AcceleratorState

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # A process may train twice, on different devices: let go of what the last run chose.
        AcceleratorState._reset_state(reset_partial_state=True)
    name = config.device
    kind = name.partition(":")[0]
    if kind not in ("auto", "cpu", "cuda", "mps"):
        raise SettingsError(f"device {name!r}: expected auto, cpu, cuda, cuda:1 or mps")
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise SettingsError(f"device {name!r} is not available here; use cpu, or install a torch build that has it")
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)
    return Accelerator(
        cpu=kind == "cpu",
        mixed_precision="no",  # the loop's own autocast: the head's output then needs no conversion
        gradient_accumulation_steps=config.accumulation_steps,
        log_with="tensorboard" if importlib.util.find_spec("tensorboard") is not None else None,
        project_dir=config.out,
    )


def make_clip_config(config: TrainConfig, trunk: ImageViT, device: torch.device) -> ClipConfig:
    """The preprocessing of a run: its settings, and the trunk's mean, std and patch size.

    Raises:
        SettingsError: a size that the trunk's patches do not divide.
    """
    info = trunk.info
    default = nearest_multiple(CPU_SIZE_PIXELS, info.patch_size) if device.type == "cpu" else info.image_size
    size = config.size if config.size is not None else default
    if size % info.patch_size:
        raise SettingsError(
            f"size {size}: the trunk cuts patches of {info.patch_size} pixels; "
            f"the nearest size it takes is {nearest_multiple(size, info.patch_size)}"
        )
    views = config.num_spatial_views
    return ClipConfig(
        num_frames=config.num_frames,
        size=size,
        stride_frames=config.stride_frames,
        num_temporal_views=config.num_temporal_views,
        num_spatial_views=views if views is not None else 1 if config.fit == "stretch" else 3,
        resize=config.resize,
        fit=config.fit,
        short_clips=config.short_clips,
        mean=info.mean,
        std=info.std,
    )


def make_optimizer(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters; vectors (biases, norms) are not decayed."""
    matrices = [parameter for parameter in trained.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in trained.values() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, *, step: int, total: int) -> None:
    """Linear warm-up, then a cosine to 0: a pure function of the step, so that resuming needs no state."""
    for group in optimizer.param_groups:
        group["lr"] = config.lr * schedule(step, total, config.warmup_fraction)


def schedule(step: int, total: int, warmup_fraction: float) -> float:
    """The learning rate of 0-based `step` of `total`, as a share of its highest value.

    >>> [round(schedule(step, 10, 0.2), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    warmup = warmup_fraction * total
    if step < warmup:
        return (step + 1) / math.ceil(warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def seed_dropout(*key: int) -> None:
    """Make what is random inside the model a pure function of a key, as the order of clips and their views are."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def prepare_trunk(model: VideoClassifier, device: torch.device, autocast_dtype: torch.dtype | None) -> None:
    """Put the frozen weights into the precision and the attention kernel that train fastest on a device."""
    if autocast_dtype is not None:
        model.cast_trunk(autocast_dtype)
    # On a CPU the backward pass of the fused kernel takes several times that of plain products (docs/log.md).
    model.trunk.use_attention("eager" if device.type == "cpu" else "sdpa")


def choose_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype to compute in beside fp32; None is fp32 alone.

    Raises:
        SettingsError: bf16 was asked for on a device that has no arithmetic for it.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        supported = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    if precision == "bf16" and not supported and device.type != "cpu":
        raise SettingsError(f"precision bf16: {device} does not compute in it; use fp32 or auto")
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and supported) else None


def default_workers(accelerator: "Accelerator") -> int:
    """Decoding processes for this machine: half its cores, shared among the training processes, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes: int = accelerator.num_processes
    return max(1, min(8, cores // 2 // processes))


def quiet_worker(worker: int) -> None:
    """Set up a decoding process: one thread, low priority, and Ctrl-C left to the training process."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(19)  # it reads ahead while the training threads wait; beside them it would hold up both


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C and SIGTERM until the step is done; the yielded function says whether one came."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:  # asked twice: at once
            raise KeyboardInterrupt
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def readable_memory_errors() -> Iterator[None]:
    """Turn an allocator's error into advice."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
        if not out_of_memory:
            raise
        raise TrainingError(
            f"out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}); lower --batch-size "
            "(and raise --accumulation-steps by as much), --num-frames or --size, or use --precision bf16"
        ) from error


def check_finite(loss: float, step: int) -> None:
    """Stop a run whose loss is not a number.

    Raises:
        TrainingError: it is not.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} by step {step}: nothing of it was saved. "
            "Lower --lr, keep --gradient-clip above 0, or use --precision fp32; an earlier checkpoint is kept"
        )


def settings_to_json(config: TrainConfig) -> dict[str, Any]:
    """A run's settings as JSON values."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    values["tuning"] = tuning_to_json(config.tuning)
    values["augmentation"] = dataclasses.asdict(config.augmentation)
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def headline(report: Report) -> dict[str, float]:
    """The figures of a report that fit on a line."""
    return {
        "top1": report.top1,
        "top5": report.top5,
        "mean_class_accuracy": report.mean_class_accuracy,
        "loss": report.loss,
    }


def describe_hardware(accelerator: "Accelerator") -> str:
    """Device, and how many processes and cores share it."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    else:
        name = f"{accelerator.device.type} ({os.cpu_count()} cores, {torch.get_num_threads()} threads)"
    return f"{accelerator.num_processes} x {name}" if accelerator.num_processes > 1 else name
