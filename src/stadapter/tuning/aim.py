"""AIM: adapters in space, over time, and for both (Yang et al., ICLR 2023, arXiv 2302.03024)."""

# B batch, T frames, N tokens (prefix + patches), D width, A bottleneck

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stadapter.errors import SettingsError
from stadapter.layers import BottleneckMLP, TimeEmbedding, add_time, attend_over_time, to_frames, to_sequences
from stadapter.vit import ImageViT, TokenLayout, unfreeze


class TemporalPass(nn.Module):
    """x + adapter(attention(norm(x))) with the block's own frozen norm and attention turned over time.

    Every token attends to its own place in all frames, the class token and registers too, as published.
    """

    def __init__(
        self,
        *,
        norm: nn.Module,
        attention: nn.Module,
        rotary: bool,
        adapter: BottleneckMLP,
        adapter_in: BottleneckMLP | None,
        time_embedding: TimeEmbedding | None,
    ) -> None:
        super().__init__()
        self.time_embedding = time_embedding
        self.adapter_in = adapter_in
        self.adapter = adapter
        self.rotary = rotary
        self._frozen = (norm, attention)  # the block's own: in a tuple, so as to be registered once and stay in eval

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        norm, attention = self._frozen
        if self.time_embedding is not None:
            x = add_time(x, self.time_embedding, layout)
        normed = norm(to_sequences(x, layout))  # (B*N, T, D)
        if self.adapter_in is not None:
            normed = normed + self.adapter_in(normed)
        update = self.adapter(attend_over_time(attention, normed, rotary=self.rotary))
        return x + to_frames(update, num_tokens=x.shape[1]).to(x.dtype)


class AdaptedAttention(nn.Module):
    """A frozen attention over space, and an adapter with a skip connection on what it gives."""

    def __init__(self, *, attention: nn.Module, adapter: BottleneckMLP) -> None:
        super().__init__()
        self.attention = attention
        self.adapter = adapter

    def forward(self, x: Tensor, **position: Any) -> tuple[Any, ...]:
        attended, *others = self.attention(x, **position)
        return attended + self.adapter(attended), *others


class AdaptedMLP(nn.Module):
    """A frozen MLP, and an adapter beside it."""

    def __init__(self, *, mlp: nn.Module, adapter: BottleneckMLP, scale: float) -> None:
        super().__init__()
        self.mlp = mlp
        self.adapter = adapter
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.mlp(x) + self.scale * self.adapter(x)
        return update


@dataclass(frozen=True)
class AIM:
    """AIM (arXiv 2302.03024): adapters on attention, on the same attention reused over time, and beside the MLP.

    The final norm learns too, as in the released code. Where a trunk scales its residual branches (LayerScale of the
    DINO families) the spatial and the joint adapter lie inside the scaled branch, the temporal one outside. The time
    embedding is added at the first block; in CLIP, after the trunk's first norm rather than before it.
    """

    width: int | None = None
    """Bottleneck width A of every adapter, channels; default a quarter of the trunk's width."""
    num_frames: int = 8
    """Frames of the learned time embedding; clips of another length interpolate it."""
    joint_scale: float = 0.5
    """What the adapter beside the MLP is multiplied with."""
    adapt_before_time: bool = False
    """Put one more adapter before the attention over time, as the released Something-Something-v2 models have."""

    def apply(self, vit: ImageViT) -> None:
        """Insert fresh adapters into a frozen trunk, in place, and let its final norm learn; it starts as it was.

        Raises:
            SettingsError: a setting that has no meaning, or with which nothing would learn.
        """
        if self.width is not None and self.width < 1:
            raise SettingsError(f"AIM width {self.width}: expected at least 1 channel")
        if self.joint_scale == 0:
            raise SettingsError("AIM joint_scale 0: the adapter beside the MLP would never learn; the paper has 0.5")
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
        unfreeze(vit.norm.parameters())

    def _adapter(self, vit: ImageViT) -> BottleneckMLP:
        adapter = BottleneckMLP(width=vit.width, bottleneck=self.width if self.width is not None else vit.width // 4)
        nn.init.trunc_normal_(adapter.down.weight, std=0.02)
        nn.init.zeros_(adapter.down.bias)
        return adapter
