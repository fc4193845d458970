"""Full fine-tuning of the image model, with frames averaged: the plainest way to apply it to video."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class Full:
    """Train the whole trunk on frames, averaged by the head: blind to their order. The artefact holds a whole trunk.

    The frame-averaged baseline of the ST-Adapter paper (arXiv 2206.13559). Fine-tuning needs a learning rate far below
    an adapter's: about 1e-5 to 1e-4. The trunk stays in eval mode, so any dropout in its own configuration stays off.
    """

    highest_lr: ClassVar[float] = 1e-4
    """Above this a run says that its learning rate is high for trunk weights."""

    def apply(self, vit: "ImageViT") -> None:
        """Let every weight of the trunk that a forward pass reads learn, in fp32 and in its own storage."""
        vit.unfreeze(vit.weights().values())
