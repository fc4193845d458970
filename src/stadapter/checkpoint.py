"""Where a training run stands, in one safetensors file: what learns, the optimizer's moments, the step.

Frozen weights are not in it, and nothing is pickled. It is written whole or not at all. There is no random state to
keep: all that is random in a run is a pure function of the seed, the epoch and the position in it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stadapter.artefact import write_whole
from stadapter.errors import ArtefactError

CHECKPOINT_NAME = "checkpoint.safetensors"
_FORMAT = "stadapter-checkpoint-1"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Progress:
    """How far a run has come, and the settings it was started with."""

    step: int
    """Optimizer steps done."""
    settings: dict[str, Any]
    """The run's settings, as JSON values."""
    failures: dict[str, str]
    """Clips that could not be read so far, and why."""


def save_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, progress: Progress
) -> Path:
    """Write `folder`/checkpoint.safetensors from the trained parameters (by name) and their AdamW optimizer."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach()
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment]
    metadata = {
        "format": _FORMAT,
        "step": str(progress.step),
        "settings": json.dumps(progress.settings),
        "failures": json.dumps(progress.failures),
    }
    path = folder / CHECKPOINT_NAME
    write_whole(path, save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata=metadata))
    return path


def read_progress(folder: Path) -> Progress:
    """What a checkpoint says of itself, without its tensors.

    Raises:
        ArtefactError: there is none, it is damaged, or it is not ours.
    """
    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        raise ArtefactError(
            f"{folder} has no {CHECKPOINT_NAME}: no unfinished training to resume; start without resume"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ArtefactError(f"{path} is not a checkpoint of this program")
        return Progress(
            step=int(metadata["step"]),
            settings=json.loads(metadata["settings"]),
            failures=json.loads(metadata["failures"]),
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ArtefactError(f"{path} is damaged: {error}") from error


def load_checkpoint(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Put the tensors of a checkpoint back: parameters and moments.

    Raises:
        ArtefactError: damaged, or made by a model with other parameters.
    """
    path = folder / CHECKPOINT_NAME
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path} is damaged: {error}") from error
    for name, parameter in parameters.items():
        stored = tensors.get(f"parameter/{name}")
        if stored is None or stored.shape != parameter.shape:
            found = "nothing" if stored is None else f"shape {tuple(stored.shape)}"
            raise ArtefactError(f"{path} holds {found} for {name}; the model expects {tuple(parameter.shape)}")
        with torch.no_grad():
            parameter.copy_(stored)
        state = {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS if f"{moment}/{name}" in tensors}
        if state:
            # AdamW keeps its step count on the CPU and its moments beside the parameter.
            optimizer.state[parameter] = {
                moment: value if moment == "step" else value.to(parameter.device) for moment, value in state.items()
            }
