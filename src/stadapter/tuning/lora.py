"""LoRA: low-rank updates of the attention's query and value projections (Hu et al., ICLR 2022, arXiv 2106.09685)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.errors import SettingsError
from stadapter.field_types import check_at_least_1, check_limits, check_types

if TYPE_CHECKING:
    from stadapter.vit import ImageViT

_PROJECTIONS = ("q_proj", "v_proj")
"""The names of query and value in the attention of every family."""


@dataclass(frozen=True)
class LoRA:
    """LoRA (arXiv 2106.09685) on query and value, through peft: adapts frames one by one, blind to their order."""

    rank: int = 8
    """Rank of each update."""
    alpha: float = 16.0
    """Scale of the updates: they are multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout before each update, 0 to 1."""
    last_blocks: int | None = None
    """Adapt only this many blocks, counted from the last; by default all."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "rank", "last_blocks")
        check_limits(self, {"dropout": (0, 1)}, below=("dropout",))
        if not 0 < self.alpha < math.inf:
            raise SettingsError(f"alpha {self.alpha}: expected a finite number above 0; with 0 nothing would learn")

    def apply(self, vit: "ImageViT") -> None:
        """Wrap the query and value projections of a frozen trunk, in place; at first nothing changes.

        Raises:
            SettingsError: a setting that has no meaning, or with which nothing would learn.
        """
        indices = "|".join(str(index) for index in vit.last_blocks(self.last_blocks))
        import peft

        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # typed as an integer, used as a factor
            lora_dropout=self.dropout,
            target_modules=rf"({indices})\.attention\.({'|'.join(_PROJECTIONS)})",
        )
        peft.inject_adapter_in_model(config, vit.blocks)
        layers = (module for module in vit.modules() if isinstance(module, peft.tuners.lora.LoraLayer))
        vit.inserted += [layer.lora_dropout for layer in layers]
