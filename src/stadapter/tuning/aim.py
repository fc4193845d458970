"""AIM: adapters in space, over time, and for both jointly (Yang et al., ICLR 2023, arXiv 2302.03024)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.errors import SettingsError
from stadapter.field_types import check_at_least_1, check_types

if TYPE_CHECKING:
    from stadapter.layers import BottleneckMLP
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class AIM:
    """AIM (arXiv 2302.03024): adapters on attention, on the same attention reused over time, and beside the MLP.

    The final norm learns too, as in the released code. If a trunk scales its residual branches (the LayerScale of the
    DINO families), the spatial and joint adapters lie inside the scaled branch and the temporal one outside. The time
    embedding is added at the first block; in CLIP, after the trunk's first norm rather than before it.
    """

    width: int | None = None
    """Bottleneck width A of every adapter, in channels; by default a quarter of the trunk's width."""
    num_frames: int = 8
    """Frames of the learned time embedding, which is interpolated for clips of another length."""
    joint_scale: float = 0.5
    """Factor on the adapter beside the MLP."""
    adapt_before_time: bool = False
    """Put another adapter before the attention over time, as in the released Something-Something-v2 models."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "width", "num_frames")
        if self.joint_scale == 0 or not math.isfinite(self.joint_scale):
            raise SettingsError(
                f"joint_scale {self.joint_scale}: expected a finite number other than 0, with which the adapter beside "
                "the MLP would never learn; the paper has 0.5"
            )

    def apply(self, vit: "ImageViT") -> None:
        """Insert fresh adapters into a frozen trunk, in place, and let its final norm learn; it starts as it was."""
        from stadapter.adapters.aim import AdaptedAttention, AdaptedMLP, TemporalPass
        from stadapter.layers import TimeEmbedding

        for index, block in enumerate(vit.block_list()):
            block.before_attention = TemporalPass(
                norm=block.norm1,
                attention=block.attention,
                rotary=vit.rotary is not None,
                adapter=self._adapter(vit),
                adapter_in=self._adapter(vit) if self.adapt_before_time else None,
                time_embedding=TimeEmbedding(num_frames=self.num_frames, width=vit.width) if index == 0 else None,
            )
            block.attention = AdaptedAttention(attention=block.attention, adapter=self._adapter(vit))
            block.mlp = AdaptedMLP(mlp=block.mlp, adapter=self._adapter(vit), scale=self.joint_scale)
            vit.inserted += [block.attention.adapter, block.mlp.adapter]
        vit.unfreeze(vit.norm.parameters())

    def _adapter(self, vit: "ImageViT") -> "BottleneckMLP":
        from torch import nn

        from stadapter.layers import BottleneckMLP

        adapter = BottleneckMLP(width=vit.width, bottleneck=self.width if self.width is not None else vit.width // 4)
        nn.init.trunc_normal_(adapter.down.weight, std=0.02)
        nn.init.zeros_(adapter.down.bias)
        return adapter
