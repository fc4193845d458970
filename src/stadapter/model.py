"""A trunk, a strategy and a head put together: the video classifier."""

# B batch, T frames, C classes, H W pixels

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stadapter.backbones import load_backbone
from stadapter.errors import SettingsError
from stadapter.heads import FrameAverageHead
from stadapter.tuning import STAdapter, Tuning
from stadapter.vit import ImageViT, InsertionPoint


@dataclass(frozen=True)
class ParameterCount:
    """How many scalars a model trains, of how many it has."""

    trained: int
    total: int

    def __str__(self) -> str:
        percent = 100 * self.trained / self.total
        return f"trained {self.trained:,} of {self.total:,} parameters ({percent:.2f} %)"


class VideoClassifier(nn.Module):
    """A frozen image trunk with something small that learns, and class names for its outputs.

    `forward` takes normalised float clips (B, T, 3, H, W) and returns fp32 logits (B, C); T, H and W are free as long
    as the patch size divides H and W.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, trunk: ImageViT, head: nn.Module, tuning: Tuning, labels: Sequence[str]) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.tuning = tuning
        self.labels = tuple(labels)
        self.register_buffer("mean", torch.tensor(trunk.info.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(trunk.info.std).view(3, 1, 1), persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(clips))
        return logits.float()

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8 clips (..., 3, H, W) to normalised fp32, on the model's device; float clips pass unchanged."""
        clips = clips.to(self.mean.device, non_blocking=True)
        if clips.is_floating_point():
            return clips
        return (clips.float() / 255 - self.mean) / self.std

    def trained_tensors(self) -> dict[str, Tensor]:
        """The parameters that learn, by name: all that an artefact stores."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def count_parameters(self) -> ParameterCount:
        """Trained and total scalars; the trunk counts whole."""
        parameters = list(self.parameters())
        return ParameterCount(
            trained=sum(p.numel() for p in parameters if p.requires_grad), total=sum(p.numel() for p in parameters)
        )


def build_model(
    *,
    backbone: ImageViT | str | os.PathLike[str],
    labels: Sequence[str],
    tuning: Tuning | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> VideoClassifier:
    """Put a video classifier together, in fp32 on the CPU.

    Args:
        backbone: a loaded trunk, which stays as it is and shares its weights with the new model; or what
            `load_backbone` takes.
        labels: class names, in the order of the logits.
        tuning: the strategy; default `STAdapter()`.
        dropout: before the classifier, 0 to 1.
        seed: of the fresh weights; the global random state is left alone.

    Raises:
        BackboneError: the trunk cannot be loaded.
        SettingsError: fewer than two labels, a label twice, a trunk that is already adapted, or bad settings.
    """
    check_labels(labels)
    if not 0 <= dropout < 1:
        raise SettingsError(f"dropout {dropout}: expected a share of at least 0 and below 1")
    tuning = tuning if tuning is not None else STAdapter()
    trunk = share_weights(backbone if isinstance(backbone, ImageViT) else load_backbone(backbone))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tuning.apply(trunk)
        head = FrameAverageHead(
            norm=trunk.norm,
            width=trunk.width,
            num_classes=len(labels),
            has_class_token=trunk.has_class_token,
            dropout=dropout,
        )
    return VideoClassifier(trunk=trunk, head=head, tuning=tuning, labels=labels)


def share_weights(vit: ImageViT) -> ImageViT:
    """A second view of a trunk: own modules, the same weight tensors. Ten tasks then hold one trunk in memory.

    Raises:
        SettingsError: something has been inserted into the trunk already.
    """
    if any(not isinstance(point, InsertionPoint) for point in vit.insertion_points()):
        raise SettingsError("this trunk is adapted already; load_backbone gives a fresh one")
    shared: dict[int, object] = {id(tensor): tensor for tensor in [*vit.parameters(), *vit.buffers()]}
    return copy.deepcopy(vit, shared)


def check_labels(labels: Sequence[str]) -> None:
    """Refuse labels that no classifier can be built on."""
    if isinstance(labels, str) or len(labels) < 2:
        raise SettingsError(f"labels {labels!r}: expected a list of at least two class names")
    if twice := sorted({label for label in labels if list(labels).count(label) > 1}):
        raise SettingsError(f"class names given twice: {', '.join(twice)}")
