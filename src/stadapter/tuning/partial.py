"""Partial fine-tuning: the last blocks of the image model and its final norm."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stadapter.field_types import check_at_least_1, check_types

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class Partial:
    """Train the last blocks of the trunk and its final norm on frames, averaged by the head: blind to their order.

    Partial-k as in Jia et al. (Visual Prompt Tuning, ECCV 2022, arXiv 2203.12119), whose code also trains the final
    norm. It needs a learning rate of about 1e-5 to 1e-4.
    """

    highest_lr: ClassVar[float] = 1e-4
    """Above this a run says that its learning rate is high for trunk weights."""

    last_blocks: int = 1
    """How many blocks learn, counted from the last."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "last_blocks")

    def apply(self, vit: "ImageViT") -> None:
        """Let the last blocks and the final norm learn, in fp32 and in their own storage.

        Raises:
            SettingsError: fewer than one block, or more than there are.
        """
        for index in vit.last_blocks(self.last_blocks):
            vit.unfreeze(vit.blocks[index].parameters())
        vit.unfreeze(vit.norm.parameters())
