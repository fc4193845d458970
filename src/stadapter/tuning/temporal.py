"""Temporal fine-tuning: a frozen image model, with attention over time that learns."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.field_types import check_at_least_1, check_types

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class Temporal:
    """Train attention over time, added before attention in every block of the frozen trunk; it starts as the trunk.

    The temporal half of TimeSformer (Bertasius et al., ICML 2021, arXiv 2102.05095): its norm, attention, projection
    and time embedding. For how it starts, and how it treats the class token, see
    `stadapter.adapters.temporal_attention.TemporalAttention`.
    """

    num_frames: int = 8
    """Frames of the learned time embedding, which is interpolated for clips of another length."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "num_frames")

    def apply(self, vit: "ImageViT") -> None:
        """Insert the attention over time."""
        from stadapter.adapters.temporal_attention import insert_temporal_attention

        insert_temporal_attention(vit, num_frames=self.num_frames)
