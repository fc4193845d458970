"""Where a training run stands, in one safetensors file: the trained weights, the optimizer's moments, the step.

Frozen weights are not in it, and nothing is pickled. It is written whole or not at all, with a sha256 of everything
in it. There is no random state to keep: everything random in a run is a pure function of the seed, the epoch and the
position in it.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stadapter.errors import ArtefactError, DivergedError, TrainingError
from stadapter.tensor_file import DIGEST_KEY, read_tensors, write_tensors
from stadapter.training.settings import FIXED_SETTINGS, FREE_SETTINGS, completed
from stadapter.wording import changed, listed

CHECKPOINT_NAME = "checkpoint.safetensors"
EPOCH_PAUSE_SECONDS = 10.0
"""Epochs shorter than this do not each get a checkpoint."""
_FORMAT = "stadapter-checkpoint-2"
_FORMAT_WITHOUT_DIGEST = "stadapter-checkpoint-1"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
DIVERGED = (
    "{what} at step {step}: the run stops, and none of this is saved. Start again with a lower lr, with gradient_clip "
    "above 0, or with precision fp32"
)


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and what it is made of."""

    step: int
    """Optimizer steps done."""
    settings: dict[str, Any]
    """The run's settings, as JSON values."""
    identity: dict[str, Any]
    """What the run found at its start: hashes of data and trunk, labels, and the like."""
    failures: dict[str, str]
    """Clips that could not be read so far, and why."""
    changes: tuple[str, ...] = ()
    """Settings and data that were changed along the way: when, and from what to what."""


class Checkpoints:
    """The checkpoints of a run: written when they are due, read when it resumes."""

    def __init__(
        self,
        folder: Path,
        trained: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        *,
        steps_per_epoch: int,
        seconds_between: float,
    ) -> None:
        self._folder, self._trained, self._optimizer = folder, trained, optimizer
        self._steps_per_epoch, self._seconds_between = steps_per_epoch, seconds_between
        self._last = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether an epoch is over, or enough time has passed since the last checkpoint."""
        seconds = time.monotonic() - self._last
        epoch_over = step % self._steps_per_epoch == 0 and seconds >= EPOCH_PAUSE_SECONDS
        return epoch_over or seconds >= self._seconds_between

    def save(self, progress: Progress) -> None:
        """Write the state.

        Raises:
            TrainingError: the weights are not finite numbers; the last good checkpoint is kept.
            ArtefactError: it cannot be written; the last good checkpoint is kept too.
        """
        check_weights(self._trained, progress.step)
        save_checkpoint(self._folder, self._trained, self._optimizer, progress)
        self._last = time.monotonic()

    def restore(
        self, settings: Mapping[str, Any], identity: Mapping[str, Any], *, total_steps: int, accept_changes: bool
    ) -> Progress:
        """Set parameters and optimizer to the state of the checkpoint.

        Raises:
            TrainingError: the run was started with other settings, data, labels or trunk, and that cannot be
                accepted or was not; or it has gone beyond `total_steps`.
            ArtefactError: there is no checkpoint, or it is damaged or belongs to another model.
        """
        progress, tensors = read_checkpoint(self._folder)
        changes = accepted_changes(self._folder, progress, settings, identity, accept_changes=accept_changes)
        if progress.step > total_steps:
            raise TrainingError(
                f"{self._folder} has done {progress.step} steps; these settings give only {total_steps} in all: "
                "raise --epochs, or start a new run folder"
            )
        put_back(self._folder / CHECKPOINT_NAME, tensors, self._trained, self._optimizer)
        return Progress(
            step=progress.step,
            settings=dict(settings),
            identity=dict(identity),
            failures=progress.failures,
            changes=(*progress.changes, *(f"after step {progress.step}: {change}" for change in changes)),
        )


def accepted_changes(
    folder: Path, progress: Progress, settings: Mapping[str, Any], identity: Mapping[str, Any], *, accept_changes: bool
) -> list[str]:
    """The differences from how a run was started, such as "lr was 0.002, is 0.1".

    Raises:
        TrainingError: there are some, and changes are not accepted, or one of them never can be.
    """
    now = {name: value for name, value in settings.items() if name not in FREE_SETTINGS} | dict(identity)
    then = {**completed(progress.settings), **progress.identity}
    changes = {name: told for name in now if name in then and (told := changed(name, then[name], now[name]))}
    told = [change.replace("_sha256 ", " (sha256) ") for of_one in changes.values() for change in of_one]
    found = f"{folder} was started with other settings: {'; '.join(told)}. "
    if never := [name for name in changes if name in FIXED_SETTINGS]:
        reasons = ", ".join(f"{name.removesuffix('_sha256')} ({FIXED_SETTINGS[name]})" for name in never)
        raise TrainingError(f"{found}A run cannot resume with another {reasons}: start a new run folder")
    if changes and not accept_changes:
        raise TrainingError(
            f"{found}Resume it as it was started, resume anyway with --accept-changes, or start a new run folder"
        )
    return told


def check_weights(trained: Mapping[str, Tensor], step: int) -> None:
    """Stop before weights that are not finite numbers overwrite good ones.

    Raises:
        DivergedError: there are some.
    """
    for name, tensor in trained.items():
        if not bool(tensor.detach().isfinite().all()):
            raise DivergedError(DIVERGED.format(what=f"the weights of {name} are not finite numbers", step=step))


def save_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write `folder`/checkpoint.safetensors from the trained parameters (by name) and their AdamW optimizer."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    metadata = {
        "format": _FORMAT,
        "step": str(progress.step),
        "settings": json.dumps({"settings": progress.settings, "identity": progress.identity}),
        "failures": json.dumps(progress.failures),
        "changes": json.dumps(progress.changes),
    }
    write_tensors(folder / CHECKPOINT_NAME, tensors, metadata)


def read_checkpoint(folder: Path) -> tuple[Progress, dict[str, Tensor]]:
    """The progress that `folder`/checkpoint.safetensors records, and its tensors.

    Raises:
        ArtefactError: there is none, it is damaged, or it is not from this program.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        raise ArtefactError(
            f"{folder} has no {CHECKPOINT_NAME}: no unfinished training to resume; start without resume"
        )
    try:
        tensors, metadata = read_tensors(path)
    except ArtefactError as error:
        if isinstance(error.__cause__, OSError):  # it may be whole
            raise
        raise ArtefactError(f"{error}; if there is no copy, delete it and start again without --resume") from error
    if metadata.get("format") not in (_FORMAT, _FORMAT_WITHOUT_DIGEST):
        raise ArtefactError(f"{path} is not a checkpoint of this program")
    if metadata["format"] == _FORMAT and DIGEST_KEY not in metadata:
        raise _damaged(path, f"it has no {DIGEST_KEY}")
    try:
        step = int(metadata["step"])
        settings, failures = json.loads(metadata["settings"]), json.loads(metadata["failures"])
        changes = json.loads(metadata.get("changes", "[]"))
        progress = Progress(step, dict(settings["settings"]), dict(settings["identity"]), dict(failures), (*changes,))
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error
    if step < 0:
        raise _damaged(path, f"{step} steps done")
    return progress, tensors


def put_back(
    path: Path,
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Restore parameters and moments from the tensors of the checkpoint `path`. Either all of them fit, or none is set.

    Raises:
        ArtefactError: it was made by a model with other parameters.
    """
    expected = {f"parameter/{name}": parameter.shape for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        if any(f"{moment}/{name}" in tensors for moment in _MOMENTS):  # none before its first gradient
            moments = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            expected |= {f"{moment}/{name}": shape for moment, shape in moments.items()}
    for name, shape in expected.items():
        if name not in tensors or tensors[name].shape != shape or tensors[name].dtype != torch.float32:
            found = f"{tuple(tensors[name].shape)} {tensors[name].dtype}" if name in tensors else "nothing"
            raise ArtefactError(f"{path} holds {found} for {name}; the model expects {tuple(shape)} torch.float32")
    if unknown := sorted(tensors.keys() - expected.keys()):
        raise ArtefactError(f"{path} has tensors that the model lacks: {listed(unknown)}; it belongs to another model")
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors[f"parameter/{name}"])
        if f"step/{name}" in tensors:
            optimizer.state[parameter] = {
                moment: tensors[f"{moment}/{name}"].to(parameter.device, copy=True) for moment in _MOMENTS
            }


def _damaged(path: Path, reason: str) -> ArtefactError:
    return ArtefactError(f"{path} is damaged or not from this program: {reason}")
