"""A bottleneck adapter without time: ST-Adapter with the convolution left out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stadapter.adapters import Activation, check_places
from stadapter.field_types import check_at_least_1, check_types

if TYPE_CHECKING:
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class Bottleneck:
    """A bottleneck adapter at ST-Adapter's place and width, without its convolution: blind to the order of frames.

    The adapter of Houlsby et al. (ICML 2019, arXiv 1902.00751), on the tokens that ST-Adapter adapts, so that the
    difference between the two is what time is worth.
    """

    width: int | None = None
    """Bottleneck width A, in channels; by default half the trunk's width, as in ST-Adapter."""
    before_attention: bool = True
    """Put an adapter before each attention (A1)."""
    before_mlp: bool = False
    """Put an adapter before each MLP (A2)."""
    last_blocks: int | None = None
    """Adapt only this many blocks, counted from the last; by default all."""
    activation: Activation | None = "gelu"
    """Activation f between the two projections; None leaves it out."""

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least_1(self, "width", "last_blocks")
        check_places(before_attention=self.before_attention, before_mlp=self.before_mlp)

    def apply(self, vit: "ImageViT") -> None:
        """Insert fresh adapters into a frozen trunk, in place.

        Raises:
            SettingsError: a setting that the trunk cannot hold, or with which nothing would learn.
        """
        from stadapter.adapters.patch import PatchAdapter
        from stadapter.layers import insert_adapters

        bottleneck = self.width if self.width is not None else vit.width // 2
        insert_adapters(
            vit,
            lambda: PatchAdapter(width=vit.width, bottleneck=bottleneck, activation=self.activation),
            before_attention=self.before_attention,
            before_mlp=self.before_mlp,
            last_blocks=self.last_blocks,
        )
