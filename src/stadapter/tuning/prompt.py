"""Visual prompt tuning, deep: learned tokens at every block (Jia et al., ECCV 2022, arXiv 2203.12119)."""

# S sequences (frames), N tokens (prefix + patches), D width, P prompts

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stadapter.errors import SettingsError
from stadapter.vit import ImageViT


class PromptedAttention(nn.Module):
    """A block's attention with learned tokens beside the frame's own; what they become is dropped.

    Prompts that enter before a block and are dropped after it meet the frame's tokens in its attention alone. So this
    is exactly the block of VPT-Deep, without the MLP on tokens that nobody reads.
    """

    def __init__(self, *, attention: nn.Module, norm: nn.Module, prompts: Tensor, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.prompts = nn.Parameter(prompts)
        self.dropout = nn.Dropout(dropout)
        self._norm = (norm,)  # the block's own: in a tuple, so as to be registered once

    def forward(self, x: Tensor, **position: Any) -> tuple[Any, ...]:
        """Normed tokens (S, N, D) to a tuple that opens with their attention, same shape."""
        prompts = self._norm[0](self.dropout(self.prompts).to(x.dtype)).to(x.dtype)
        # In front: rotary families rotate the last tokens, as many as there are patches.
        together = torch.cat([prompts.expand(x.shape[0], -1, -1), x], dim=1)  # (S, P + N, D)
        attended, *others = self.attention(together, **position)
        return attended[:, len(prompts) :], *others


@dataclass(frozen=True)
class Prompt:
    """Deep prompt tuning (VPT-Deep, arXiv 2203.12119): learned tokens at every block; blind to the order of frames.

    It does not start as the trunk: fresh prompts take part in attention.
    """

    num_prompts: int = 50
    """Learned tokens at each block, the same for every frame; the paper searches 1 to 200 for each task."""
    dropout: float = 0.1
    """Dropout on the prompts, 0 to 1; 50 prompts with 0.1 is one point of the paper's search."""

    def apply(self, vit: ImageViT) -> None:
        """Give every block fresh prompts, uniform within the Xavier bound of a patch embedding, as published.

        Raises:
            SettingsError: no prompts, or a dropout that leaves nothing.
        """
        if self.num_prompts < 1:
            raise SettingsError(f"num_prompts {self.num_prompts}: expected at least 1, or nothing would learn")
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"prompt dropout {self.dropout}: expected a share of at least 0 and below 1")
        bound = math.sqrt(6 / (3 * vit.info.patch_size**2 + vit.width))
        for block in vit.block_list():
            prompts = torch.empty(self.num_prompts, vit.width).uniform_(-bound, bound)
            prompted = PromptedAttention(
                attention=block.attention, norm=block.norm1, prompts=prompts, dropout=self.dropout
            )
            block.attention = prompted
            vit.inserted.append(prompted.dropout)
