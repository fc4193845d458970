"""The only training loop: the same code for one process or many, CPU or GPU."""

# B batch, T frames, C classes, K heads

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from stadapter.artefact import save_artefact
from stadapter.compiled import try_compiled
from stadapter.errors import ArtefactError, DataError, DivergedError, SettingsError, STAdapterError, TrainingError
from stadapter.evaluation.figures import Report, headline
from stadapter.machine import copies_asynchronously, describe_device, random_devices, takes_turns
from stadapter.memory import readable_memory_errors
from stadapter.model import Finisher, prepare_trunk
from stadapter.processes import Turns, refuse_in_started_process, workers_of, yielding_worker
from stadapter.provenance import command_line, versions
from stadapter.records import read_records, running_seconds
from stadapter.report import REPORT_NAME, write_report
from stadapter.samples import Batch, collate
from stadapter.signals import interruption, stopped_by_signals
from stadapter.token_cache import TokenCache
from stadapter.training.checkpoint import (
    CHECKPOINT_NAME,
    DIVERGED,
    Checkpoints,
    Progress,
    check_weights,
    read_checkpoint,
)
from stadapter.training.description import describe
from stadapter.training.preparation import Prepared, prepare
from stadapter.training.progress import Curves, LastingConsole, Meter, RunDisplay, rewind
from stadapter.training.schedule import EpochBatches, learning_rate_share, make_optimizer, seed_dropout
from stadapter.training.settings import TrainConfig, settings_to_json
from stadapter.training.unreadable import UnreadableClips
from stadapter.training.validation import is_due, validate
from stadapter.view_store import ViewStore
from stadapter.wording import percent

LOG_EVERY_STEPS = 10


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves."""

    folder: Path
    """The run folder: an artefact that `Classifier.load` takes."""
    steps: int
    """Optimizer steps done in total."""
    report: Report | None
    """Evaluation on the held-out clips; None if there were none."""
    metrics: dict[str, float]
    """Its headline figures: top1, top5, mean_class_accuracy, loss."""

    def __fspath__(self) -> str:
        """The run folder, so that the result of a training can be loaded as it is."""
        return str(self.folder)


def train(config: TrainConfig, *, console: Console | None = None) -> TrainResult:
    """Train a video classifier and save it as a run folder.

    Args:
        config: the run.
        console: where to show progress; default: standard error.

    Raises:
        STAdapterError: a setting, the data, the trunk or the run folder is not usable, too many videos cannot be
            read, the loss is not a number, or memory runs out; the message says what to do. So too for a script without
            `if __name__ == "__main__":` where processes are not forked, because they import it.
        KeyboardInterrupt: asked to stop, by Ctrl-C, SIGTERM or the loss of the terminal. If it was training, a
            checkpoint has been written, from which resume continues.
    """
    if not isinstance(config, TrainConfig):
        raise SettingsError(f"{config!r}: expected a TrainConfig, such as TrainConfig(data=…, out=…)")
    refuse_in_started_process()
    with torch.inference_mode(False), torch.enable_grad():  # a notebook may have turned gradients off
        run = prepare(config)
        with stopped_by_signals(), readable_memory_errors(), run.claimed():
            loop = Loop(run, console or LastingConsole(stderr=True))
            loop.fit()
            loop.save(metrics={})  # before validation, which may fail
            loop.write_report(None)
            report = loop.validate() if run.val_set is not None else None
            metrics = headline(report) if report is not None else {}
            loop.save(metrics=metrics)
            if report is not None:
                loop.write_report(report)
            loop.close()
    return TrainResult(folder=run.folder, steps=loop.step, report=report, metrics=metrics)


class Loop:
    """A training run in progress."""

    def __init__(self, run: Prepared, console: Console | None) -> None:
        self.run = run
        self.config = run.config
        self.accelerator: Any = run.accelerator  # its methods are not typed
        self.console = console if self.accelerator.is_main_process else None
        processes, device = self.accelerator.num_processes, self.accelerator.device
        self.turns = Turns(are_taken=takes_turns(processes, device_type=device.type))
        self.step = 0
        self.unreadable = UnreadableClips(run)
        self.changes: tuple[str, ...] = ()
        self.store: ViewStore | None = None
        self.cache: TokenCache | None = None
        self.told: set[str] = set()
        self.curves = Curves(run.folder)

    def fit(self) -> None:
        """Train from the first step, or the one a checkpoint is at, to the last.

        Raises:
            TrainingError: the loss is not a number, too many videos cannot be read, or a decoding process died.
            ArtefactError: a checkpoint is damaged, or cannot be written.
            KeyboardInterrupt: asked to stop (Ctrl-C, SIGTERM); the state has been saved.
        """
        own_random = torch.random.fork_rng(random_devices(self.accelerator.device))
        with self._display() as display, interruption() as interrupted, own_random:
            self.store, self.cache = self.run.view_store(), self.run.frozen_part.cache()
            loader, batches = self._loader()
            try:
                with workers_of(loader, self.turns):
                    self._fit(loader, batches, display, interrupted)
            except (STAdapterError, RuntimeError):
                self._say_where_it_stands(display)
                raise

    def _fit(self, loader: Any, batches: EpochBatches, display: RunDisplay, interrupted: Callable[[], bool]) -> None:
        config, plan = self.config, self.run.plan
        prepare_trunk(self.run.model, self.accelerator.device, self.run.autocast_dtype)
        if config.compile:
            self._compile(display)
        trained = {name: p for name, p in self.run.model.named_parameters() if p.requires_grad}
        optimizer = make_optimizer(trained, lr=self.run.lr, weight_decay=config.weight_decay)
        classifier = self.run.model
        network = Finisher(classifier, size=self.run.clip_config.size) if self.cache is not None else classifier
        model, stepper = self.accelerator.prepare(network, optimizer)
        checkpoints = Checkpoints(
            self.run.folder,
            trained,
            optimizer,
            steps_per_epoch=plan.steps_per_epoch,
            seconds_between=60 * config.checkpoint_minutes,
        )
        if config.resume:
            self._go_on(checkpoints)
        self._announce(display)
        meter = Meter(self.accelerator.device, num_heads=self.run.model.label_space.num_heads)
        for epoch in range(self.step // plan.steps_per_epoch, plan.epochs):
            if is_due(self.run, self.step):  # here and not after the epoch, so that a resumed run passes here again
                with meter.paused():
                    self._validate_on_the_way(checkpoints, display, interrupted)
            done = self.step % plan.steps_per_epoch * config.accumulation_steps
            batches.start(epoch, done * self.accelerator.num_processes)
            loader.set_epoch(epoch)  # this reaches the dataset; accelerate would count epochs from 0 after resuming
            for number, batch in enumerate(self.turns.over(loader), start=done):
                self.unreadable.note(batch, display)
                self._note_lost_room(display)
                seed_dropout(config.seed, epoch, number, self.accelerator.process_index)
                for group in optimizer.param_groups:
                    group["lr"] = self.run.lr * learning_rate_share(self.step, plan.total_steps, config.warmup_fraction)
                weight = batches.loss_weight(number, accumulation_steps=config.accumulation_steps)
                with self._saved_if_another_process_ends(checkpoints, display, interrupted):
                    self.learn(batch, model, stepper, meter, weight)
                if not self.accelerator.sync_gradients:
                    continue
                self.step += 1
                display.advance(self.step)
                if self.step % LOG_EVERY_STEPS == 0 or self.step == plan.total_steps:
                    self.unreadable.gather(display)
                    self._log(meter, optimizer, display)
                stopped = interrupted()
                if stopped or self.step == plan.total_steps or checkpoints.is_due(self.step):
                    self._checkpoint(checkpoints, display)
                if stopped:
                    raise KeyboardInterrupt

    @contextmanager
    def _saved_if_another_process_ends(
        self, checkpoints: Checkpoints, display: RunDisplay, interrupted: Callable[[], bool]
    ) -> Iterator[None]:
        """Save the last whole step if this process cannot exchange gradients with another, which has stopped or died.

        Processes that are asked to stop, above all on several machines, do not all hear of it in the same step.
        """
        try:
            yield
        except RuntimeError:
            if self.accelerator.num_processes == 1:
                raise
            if self.step:
                self._checkpoint(checkpoints, display)
            if interrupted():
                raise KeyboardInterrupt from None
            raise

    def _compile(self, display: RunDisplay) -> None:
        """Compile for whole batches and for an epoch's last one; report it if that fails."""
        is_alone = self.accelerator.num_processes == 1  # otherwise all batches are whole
        last = len(self.run.train_set.entries) % self.config.batch_size if is_alone else 0
        sizes = dict.fromkeys(size for size in (self.run.clips_per_batch, last) if size)
        clip = self.run.clip_config
        self.run.model.to(self.accelerator.device)
        display.say(f"compiling blocks for batches of {' and '.join(map(str, sizes))} …")
        reason = try_compiled(
            self.run.model,
            batch_sizes=sizes,
            num_frames=clip.num_frames,
            size=clip.size,
        )
        if reason is not None:
            display.say(f"the blocks could not be compiled and run uncompiled: {reason}")

    def _go_on(self, checkpoints: Checkpoints) -> None:
        """Set the loop to the state of its checkpoint."""
        progress = checkpoints.restore(
            settings_to_json(self.config),
            self.run.identity,
            total_steps=self.run.plan.total_steps,
            accept_changes=self.config.accept_changes,
        )
        self.step, self.unreadable.reasons, self.changes = progress.step, dict(progress.failures), progress.changes
        if self.accelerator.is_main_process:
            again = is_due(self.run, self.step) or self.step == self.run.plan.total_steps
            rewind(self.run.folder, step=self.step, failures=self.unreadable.reasons, validates_again=again)

    def _checkpoint(self, checkpoints: Checkpoints, display: RunDisplay) -> None:
        if self.accelerator.is_main_process:
            settings = settings_to_json(self.config)
            failures = self.unreadable.reasons
            checkpoints.save(Progress(self.step, settings, self.run.identity, failures, self.changes))
            display.record("checkpoint", step=self.step)  # also records how long the run has taken so far

    def _say_where_it_stands(self, display: RunDisplay) -> None:
        """After an error: say what has been saved, if anything."""
        with suppress(ArtefactError):
            if self.step:
                step, folder = read_checkpoint(self.run.folder)[0].step, shlex.quote(str(self.run.folder))
                display.say(f"the state after step {step} is in {folder}; --resume continues from there")

    def validate(self) -> Report:
        """Evaluate on the held-out clips and record the figures; the trained weights are already on disk."""
        assert self.run.val_set is not None
        with self._display("validating", len(self.run.val_set.entries)) as display:
            try:
                report = validate(
                    self.run,
                    progress=lambda done, total: display.advance(done),
                    time_check=True,
                    tokens=self.cache,
                )
            except DivergedError:
                display.say("trained, but the scores are not finite: start again with a lower learning rate")
                raise
            except BaseException:
                folder = shlex.quote(str(self.run.folder))
                display.say(
                    f"trained, but not validated: {folder} can be used as it is; to validate it, resume, "
                    f"or run stadapter evaluate {folder} --data …"
                )
                raise
            self._record(report, display)
        return report

    def _validate_on_the_way(
        self, checkpoints: Checkpoints, display: RunDisplay, interrupted: Callable[[], bool]
    ) -> None:
        """Evaluate on the held-out clips between two epochs; if none can be read, the run still continues."""

        def progress(done: int, total: int) -> None:
            display.note(f"validating {done}/{total}")
            if interrupted():
                raise KeyboardInterrupt

        self._checkpoint(checkpoints, display)  # whatever ends a process now, those that wait for it included
        epoch = f"epoch {self.step // self.run.plan.steps_per_epoch}/{self.run.plan.epochs}"
        try:
            report = validate(self.run, progress=progress, tokens=self.cache)
        except DataError as error:
            display.say(f"{epoch}: not validated: {error}")
            return
        self._record(report, display)
        display.note("training")
        display.say(f"{epoch}: held out, loss {report.loss:.3f}, top-1 {percent(report.top1)}")

    def _record(self, report: Report, display: RunDisplay) -> None:
        figures = headline(report)
        display.record("validation", step=self.step, **figures)
        display.draw(self.step, {f"validation/{name}": value for name, value in figures.items()})

    def save(self, *, metrics: Mapping[str, float]) -> None:
        """Write the artefact in the run folder.

        Raises:
            TrainingError: the weights are not finite numbers; nothing is written.
            ArtefactError: it cannot be written.
        """
        if self.accelerator.is_main_process:
            check_weights(self.run.model.trained_tensors(), self.step)
            save_artefact(self.run.folder, self.run.model, self.run.clip_config, receipt=self.receipt(metrics))

    def write_report(self, report: Report | None) -> None:
        """Write the page to look at; if it cannot be written, say so and continue: everything else is on disk."""
        if self.accelerator.is_main_process:
            folder, val_set = self.run.folder, self.run.val_set
            try:
                write_report(
                    folder / REPORT_NAME, report, run=folder, manifest=val_set, clip_config=self.run.clip_config
                )
            except STAdapterError as error:
                with self._display("reporting") as display:
                    display.say(f"no {REPORT_NAME}: {error}")

    def receipt(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """What an artefact records about its training: settings, data, versions, hardware, outcome."""
        return {
            "settings": settings_to_json(self.config),
            "command": command_line(),
            **self.run.identity,
            "num_train_clips": len(self.run.train_set.entries),
            "num_held_out_clips": len(self.run.val_set.entries) if self.run.val_set is not None else 0,
            "steps": self.step,
            "seconds": running_seconds([*read_records(self.run.folder), {"kind": "now", "time": time.time()}]),
            "metrics": dict(metrics),
            "unreadable": dict(sorted(self.unreadable.reasons.items())),
            "changes": list(self.changes),
            "versions": versions(),
            "hardware": describe_device(self.accelerator.device),
        }

    def close(self) -> None:
        """Let the other processes finish; the checkpoint is no longer needed."""
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if self.accelerator.is_main_process:
            (self.run.folder / CHECKPOINT_NAME).unlink(missing_ok=True)

    def _loader(self) -> tuple[Any, EpochBatches]:
        """This process's share of the batches, and the object that chooses the epoch."""
        dataset = self.run.training_clips(self.store, self.cache, self.turns)
        batches = EpochBatches(
            len(dataset),
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            balanced_targets=dataset.targets if self.config.balance_classes else None,
            num_processes=self.accelerator.num_processes,
        )
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.run.num_workers,
            collate_fn=collate,
            pin_memory=copies_asynchronously(self.accelerator.device),
            persistent_workers=self.run.num_workers > 0,
            prefetch_factor=4 if self.run.num_workers else None,
            worker_init_fn=yielding_worker,
        )
        return self.accelerator.prepare(loader), batches

    def learn(self, batch: Batch, model: nn.Module, stepper: Any, meter: Meter, loss_weight: float) -> None:
        """Run one batch forward and backward; the weights change when enough batches have been accumulated."""
        with self.accelerator.accumulate(model):
            loss, logits = self.run.loss(batch, model, self.cache)
            self.accelerator.backward(loss * loss_weight)
            if self.accelerator.sync_gradients and self.config.gradient_clip > 0:
                self.accelerator.clip_grad_norm_(model.parameters(), self.config.gradient_clip)
            stepper.step()
            stepper.zero_grad()
        meter.add(loss.detach(), self.run.model.label_space.named(logits.detach()) == batch["labels"])

    def _log(self, meter: Meter, optimizer: torch.optim.Optimizer, display: RunDisplay) -> None:
        reading, space = meter.read(self.accelerator.reduce), self.run.model.label_space
        if not math.isfinite(reading.loss):
            raise TrainingError(DIVERGED.format(what=f"the loss is {reading.loss}", step=self.step))
        figures = {
            "loss": reading.loss,
            "accuracy": reading.accuracy,
            **{f"{name}_accuracy": of for name, of in zip(space.heads, reading.by_head, strict=False)},
            "clips_per_second": reading.clips_per_second,
            "lr": float(optimizer.param_groups[0]["lr"]),
        }
        display.step(self.step, epoch=(self.step - 1) // self.run.plan.steps_per_epoch, **figures)

    def _note_lost_room(self, display: RunDisplay) -> None:
        """Say, once each, that views or tokens are no longer kept, and that some tokens were damaged."""
        if self.store is not None and (problem := self.store.problem()):
            self._say_once(
                display,
                f"no room for views drawn ahead ({problem}): every video is decoded in every epoch, which is slower. "
                "Choose another disk with TMPDIR, or less room with --view-store-megabytes",
            )
        if self.cache is not None and (problem := self.cache.problem()):
            self._say_once(
                display,
                f"no more tokens are kept in {self.cache.folder} ({problem}): clips without them go through the frozen "
                "blocks in every epoch, which is slower. Choose another disk with --token-cache-folder, or more room "
                "with --token-cache-gigabytes",
            )
        if self.cache is not None and self.cache.num_damaged():
            self._say_once(display, f"damaged files in {self.cache.folder} are recomputed")

    def _say_once(self, display: RunDisplay, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            display.say(line)

    def _announce(self, display: RunDisplay) -> None:
        run, count = self.run, self.run.model.count_parameters()
        display.say(describe(run))
        if self.step:
            display.say(f"resuming after step {self.step}")
        display.advance(self.step)
        display.record(
            "start", step=self.step, total_steps=run.plan.total_steps, trained=count.trained, total=count.total
        )

    def _display(self, title: str = "training", total: int | None = None) -> RunDisplay:
        total = total if total is not None else self.run.plan.total_steps
        return RunDisplay(self.run.folder, title=title, total=total, console=self.console, curves=self.curves)
