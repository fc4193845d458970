"""Visual prompt tuning, deep: learned tokens at every block (Jia et al., ECCV 2022, arXiv 2203.12119)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.field_types import check_at_least_1, check_limits, check_types

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class Prompt:
    """Deep prompt tuning (VPT-Deep, arXiv 2203.12119): learned tokens at every block; blind to the order of frames.

    A fresh model does not equal its trunk: untrained prompts already take part in attention.
    """

    num_prompts: int = 50
    """Learned tokens at each block, the same for every frame; the paper searches 1 to 200 per task."""
    dropout: float = 0.1
    """Dropout on the prompts, 0 to 1; 50 prompts with 0.1 is one point in the paper's search."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "num_prompts")
        check_limits(self, {"dropout": (0, 1)}, below=("dropout",))

    def apply(self, vit: "ImageViT") -> None:
        """Give every block fresh prompts, uniform within the Xavier bound of a patch embedding, as published."""
        import torch

        from stadapter.adapters.prompted import PromptedAttention

        bound = math.sqrt(6 / (3 * vit.info.patch_size**2 + vit.width))
        for block in vit.block_list():
            prompts = torch.empty(self.num_prompts, vit.width).uniform_(-bound, bound)
            prompted = PromptedAttention(
                attention=block.attention, norm=block.norm1, prompts=prompts, dropout=self.dropout
            )
            block.attention = prompted
            vit.inserted.append(prompted.dropout)
