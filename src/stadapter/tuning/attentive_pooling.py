"""Attentive pooling: a frozen trunk, and a learned query over the tokens of all frames."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.field_types import check_limits, check_types

if TYPE_CHECKING:
    from stadapter.heads import AttentivePoolingHead
    from stadapter.vit import ImageViT


_HEAD_WIDTH = 64
"""Channels of one head of the attention in every published ViT."""


@dataclass(frozen=True)
class AttentivePooling:
    """Train attention pooling over the tokens of all frames, in place of their average, on the frozen trunk.

    Attentive probing (Chen et al., Context Autoencoder, IJCV 2023, arXiv 2202.03026), as V-JEPA (Bardes et al., TMLR
    2024, arXiv 2404.08471) probes video; here one cross-attention without the MLP that V-JEPA puts behind it. An image
    trunk's tokens do not say which frame they are of, so a learned time embedding is added to them.
    """

    num_frames: int | None = 8
    """Frames of the learned time embedding; clips of another length interpolate it; None has none, blind to order."""
    num_heads: int | None = None
    """Heads of the attention, which divide the trunk's width; default one for every 64 channels."""

    def __post_init__(self) -> None:
        check_types(self)
        check_limits(self, {"num_frames": (1, math.inf), "num_heads": (1, math.inf)})

    def apply(self, vit: "ImageViT") -> None:
        """Change nothing: the trunk is frozen already."""

    def make_head(self, vit: "ImageViT", *, num_classes: int, dropout: float) -> "AttentivePoolingHead":
        """The head that learns, in place of the average over frames.

        Raises:
            SettingsError: heads that do not divide the trunk's width.
        """
        from stadapter.heads import AttentivePoolingHead

        return AttentivePoolingHead(
            norm=vit.norm,
            width=vit.width,
            num_classes=num_classes,
            num_heads=self.num_heads if self.num_heads is not None else max(1, vit.width // _HEAD_WIDTH),
            num_frames=self.num_frames,
            dropout=dropout,
        )
