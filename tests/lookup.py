"""A classifier whose answers are written down."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from stadapter.clips import ClipConfig, load_clip
from stadapter.labels import Labels, LabelSpace
from stadapter.manifest import Manifest

CONFIG = ClipConfig(num_frames=4, size=16)


class ByLookup(nn.Module):
    """Answers with the logits written down for a clip, which it recognises by its mean; keeps what it was given."""

    def __init__(self, labels: Labels, answers: dict[float, list[float]]) -> None:
        super().__init__()
        self.label_space = LabelSpace.of(labels)
        self.answers = answers
        self.scale = nn.Parameter(torch.ones(()))
        self.shapes: list[torch.Size] = []
        self.was_training: list[bool] = []

    def normalise(self, clips: Tensor) -> Tensor:
        return clips.float() / 255

    def forward(self, clips: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        self.shapes.append(clips.shape)
        self.was_training.append(self.training)
        keys = clips.mean((1, 2, 3, 4)).tolist()
        nearest = [min(self.answers, key=lambda known, key=key: abs(known - key)) for key in keys]  # type: ignore[misc]
        return torch.tensor([self.answers[known] for known in nearest]) * self.scale


def knowing(manifest: Manifest, labels: Labels, answers: Sequence[list[float]]) -> ByLookup:
    """A model that gives clip i of the manifest `answers[i]`."""
    clips = [
        load_clip(e.path, CONFIG, start_seconds=e.start_seconds, end_seconds=e.end_seconds) for e in manifest.entries
    ]
    keys = [clip.float().div(255).mean().item() for clip in clips]
    assert len(set(keys)) == len(keys)
    return ByLookup(labels, dict(zip(keys, answers, strict=True)))


def shown(renderable: Any) -> str:
    output = StringIO()
    Console(width=120, file=output).print(renderable)
    return output.getvalue()
