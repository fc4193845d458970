"""Attentive pooling: a frozen trunk, and a learned query over the tokens of all frames."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.field_types import check_at_least_1, check_types

if TYPE_CHECKING:
    from stadapter.heads import AttentivePoolingHead
    from stadapter.vit import ImageViT


_HEAD_WIDTH = 64
"""Channels per attention head in every published ViT."""


@dataclass(frozen=True)
class AttentivePooling:
    """Train attention pooling over the tokens of all frames, in place of their average, on the frozen trunk.

    Attentive probing (Chen et al., Context Autoencoder, IJCV 2023, arXiv 2202.03026), as V-JEPA (Bardes et al., TMLR
    2024, arXiv 2404.08471) probes video; here with one cross-attention and without the MLP that V-JEPA puts after it.
    An image trunk's tokens do not say which frame they are from, so a learned time embedding is added to them.
    """

    num_frames: int | None = 8
    """Frames of the learned time embedding, which is interpolated for clips of another length; None leaves it out,
    which makes the head blind to order."""
    num_heads: int | None = None
    """Number of attention heads, which must divide the trunk's width; by default one per 64 channels."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "num_frames", "num_heads")

    def apply(self, vit: "ImageViT") -> None:
        """Change nothing: the trunk is already frozen."""

    def make_head(self, vit: "ImageViT", *, num_classes: int, dropout: float) -> "AttentivePoolingHead":
        """The head that learns, in place of the average over frames.

        Raises:
            SettingsError: a number of heads that does not divide the trunk's width.
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
