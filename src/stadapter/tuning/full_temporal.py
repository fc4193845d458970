"""Full fine-tuning with divided space-time attention (TimeSformer: Bertasius et al., ICML 2021, arXiv 2102.05095)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stadapter.field_types import check_at_least_1, check_types

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class FullTemporal:
    """Train the whole trunk, with attention over time added before attention in every block (TimeSformer).

    The full fine-tuning that the ST-Adapter paper (arXiv 2206.13559) compares against: its 121.57 M parameters are
    those of this strategy on ViT-B/16 with 8 frames and 400 classes. For how it starts, and how it treats the class
    token, see `stadapter.adapters.temporal_attention.TemporalAttention`. It needs a learning rate of about 1e-5 to
    1e-4.
    """

    highest_lr: ClassVar[float] = 1e-4
    """Above this a run says that its learning rate is high for trunk weights."""

    num_frames: int = 8
    """Frames of the learned time embedding, which is interpolated for clips of another length."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "num_frames")

    def apply(self, vit: "ImageViT") -> None:
        """Insert the attention over time, and let everything that a forward pass reads learn."""
        from stadapter.adapters.temporal_attention import insert_temporal_attention

        insert_temporal_attention(vit, num_frames=self.num_frames)
        vit.unfreeze(vit.weights().values())
