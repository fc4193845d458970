"""Full fine-tuning of the image model, frames averaged: the plainest way to carry it to video."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class Full:
    """Train the whole trunk on frames, averaged by the head: blind to their order, and the artefact is a whole trunk.

    The frame-averaged baseline of the ST-Adapter paper (arXiv 2206.13559). Fine-tuning wants a learning rate far below
    an adapter's: about 1e-5 to 1e-4. The trunk stays in eval mode, so dropout that its own configuration may have
    stays off.
    """

    highest_lr: ClassVar[float] = 1e-4
    """Above it a run says that its learning rate is high for weights of a trunk."""

    def apply(self, vit: "ImageViT") -> None:
        """Let every weight of the trunk that a forward pass reads learn, in fp32 and in storage of its own."""
        vit.unfreeze(vit.weights().values())
