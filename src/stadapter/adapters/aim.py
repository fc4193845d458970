"""AIM's adapters: over time, in space, and beside the MLP (Yang et al., ICLR 2023, arXiv 2302.03024)."""

# B batch, T frames, N tokens (prefix + patches), D width

from typing import Any

from torch import Tensor, nn

from stadapter.layers import BottleneckMLP, TimeEmbedding, add_time, attend_over_time, to_frames, to_sequences
from stadapter.vit import TokenLayout


class TemporalPass(nn.Module):
    """x + adapter(attention(norm(x))) with the block's own frozen norm and attention applied over time.

    Every token attends to its own position in all frames, including the class token and registers, as published.
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
        self._frozen = (norm, attention)  # the block's own: in a tuple, so they are registered once and stay in eval

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
    """A frozen attention over space, and an adapter with a skip connection on its output."""

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
