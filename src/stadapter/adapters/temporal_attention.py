"""Attention over time (TimeSformer: Bertasius, Wang, Torresani, ICML 2021, arXiv 2102.05095)."""

# B batch, T frames, N tokens (prefix + patches), P patches, D width

import copy

import torch
from torch import Tensor, nn

from stadapter.layers import TimeEmbedding, add_time, attend_over_time, to_frames, to_sequences
from stadapter.vit import ImageViT, TokenLayout


class TemporalAttention(nn.Module):
    """Attention of every patch over its own position in all frames; prefix tokens stay untouched.

        x (B*T, N, D) ─ patches (+ time) ─► norm ─► attention over T ─► projection ─► + x

    The temporal half of TimeSformer's divided space-time attention (Bertasius, Wang, Torresani, ICML 2021, arXiv
    2102.05095). As there, `norm` and `attention` start as copies of the block's own and the projection as zero, so that
    a fresh one is the identity, and the class token takes no part. Unlike there, every frame keeps its own class
    token: TimeSformer averages it over frames after each block, which would not start as the image model.
    """

    def __init__(
        self,
        *,
        norm: nn.Module,
        attention: nn.Module,
        width: int,
        rotary: bool,
        time_embedding: TimeEmbedding | None = None,
    ) -> None:
        super().__init__()
        self.time_embedding = time_embedding
        self.norm = norm
        self.attention = attention
        self.rotary = rotary
        self.projection = nn.Linear(width, width)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        prefix, patches = x[:, : layout.num_prefix], x[:, layout.num_prefix :]
        if self.time_embedding is not None:
            patches = add_time(patches, self.time_embedding, layout)
        sequences = to_sequences(patches, layout)  # (B*P, T, D)
        attended = attend_over_time(self.attention, self.norm(sequences), rotary=self.rotary)
        update = to_frames(self.projection(attended), num_tokens=patches.shape[1])  # (B*T, P, D)
        return torch.cat([prefix, patches + update.to(patches.dtype)], dim=1)


def insert_temporal_attention(vit: ImageViT, *, num_frames: int) -> None:
    """Put a trained `TemporalAttention` before every block's attention, and a time embedding into the first."""
    for index, block in enumerate(vit.block_list()):
        norm, attention = copy.deepcopy(block.norm1), copy.deepcopy(block.attention)
        vit.unfreeze([*norm.parameters(), *attention.parameters()])
        block.before_attention = TemporalAttention(
            norm=norm,
            attention=attention,
            width=vit.width,
            rotary=vit.rotary is not None,
            time_embedding=TimeEmbedding(num_frames=num_frames, width=vit.width) if index == 0 else None,
        )
