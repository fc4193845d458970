"""Attention with learned tokens in addition to a frame's own (VPT-Deep: Jia et al., ECCV 2022, arXiv 2203.12119)."""

# S sequences (frames), N tokens (prefix + patches), D width, P prompts

from typing import Any

import torch
from torch import Tensor, nn


class PromptedAttention(nn.Module):
    """A block's attention with learned tokens in addition to the frame's own; their outputs are dropped.

    Prompts that enter before a block and are dropped after it meet the frame's tokens only in its attention. So this
    is exactly the block of VPT-Deep, without running the MLP on tokens that nobody reads.
    """

    def __init__(self, *, attention: nn.Module, norm: nn.Module, prompts: Tensor, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.prompts = nn.Parameter(prompts)
        self.dropout = nn.Dropout(dropout)
        self._norm = (norm,)  # the block's own: in a tuple, so that it is registered only once

    def forward(self, x: Tensor, **position: Any) -> tuple[Any, ...]:
        """Normed tokens (S, N, D) to a tuple whose first element is their attention, same shape."""
        prompts = self._norm[0](self.dropout(self.prompts).to(x.dtype)).to(x.dtype)
        # Prompts go in front: rotary families rotate the last tokens, as many as there are patches.
        together = torch.cat([prompts.expand(x.shape[0], -1, -1), x], dim=1)  # (S, P + N, D)
        attended, *others = self.attention(together, **position)
        return attended[:, len(prompts) :], *others
