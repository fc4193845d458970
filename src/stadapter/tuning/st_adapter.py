"""ST-Adapter: a bottleneck with a depth-wise space-time convolution in every block (arXiv 2206.13559)."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from stadapter.adapters import Activation
from stadapter.errors import SettingsError
from stadapter.field_types import check_limits, check_types

if TYPE_CHECKING:
    from stadapter.adapters.space_time import SpaceTimeAdapter
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class STAdapter:
    """ST-Adapter (arXiv 2206.13559): one bottleneck with a space-time convolution before attention, in every block.

    The defaults are the paper's. docs/results.md has what was measured of each with three seeds, few clips and few
    steps; where that says something else than the paper, or cannot tell, the setting says so.
    """

    width: int | None = None
    """Bottleneck width A, channels; default half the trunk's width, as in the paper, for which it matters little: a
    quarter and the whole could not be told from it (docs/results.md)."""
    kernel_size: tuple[int, int, int] = (3, 1, 1)
    """Convolution kernel over (time, height, width), odd numbers: frames, patches, patches. The default is the paper's,
    for which longer spans add little; in few steps 5 1 1 learned faster, and 1 1 1 does not see time
    (docs/results.md)."""
    before_attention: bool = True
    """Put an adapter before each attention (A1): the better place in the paper; in few steps it could not be told from
    the other (docs/results.md)."""
    before_mlp: bool = False
    """Put an adapter before each MLP (A2; the released Kinetics model has only these, the SSv2 model both). Off by
    default: in few steps both together learned less than one (docs/results.md)."""
    last_blocks: int | None = None
    """Adapt only the last so many blocks; default all, which is best in the paper. In few steps the last half could not
    be told from all, with half the parameters (docs/results.md)."""
    first_blocks: int | None = None
    """Adapt only the first so many blocks, to see what depth is worth; not together with last_blocks."""
    activation: Activation | None = "gelu"
    """Activation f between convolution and up-projection. The default is the paper's equation; none, which is what
    released checkpoints use, could not be told from it (docs/results.md)."""
    keep_unreachable: bool = False
    """Keep the last block's A2 although a class-token head cannot see it (converted checkpoints have one)."""

    def __post_init__(self) -> None:
        if self.activation == "relu":  # type: ignore[comparison-overlap]
            raise SettingsError(
                "activation 'relu' has slope 0 at 0: an ST-Adapter, whose convolution starts at zero, would never "
                f"learn; use one of {', '.join(get_args(Activation))} or None"
            )
        check_types(self)
        check_limits(self, {"width": (1, math.inf)})
        if not all(side >= 1 and side % 2 == 1 for side in self.kernel_size):
            raise SettingsError(
                f"kernel_size {self.kernel_size}: expected three odd positive numbers (time, height, width), such as "
                "(3, 1, 1); others would shift or shrink the clip"
            )

    def apply(self, vit: "ImageViT") -> None:
        """Insert fresh adapters into a frozen trunk, in place.

        Raises:
            SettingsError: a setting that the trunk cannot hold, or with which nothing would learn.
        """
        from stadapter.layers import insert_adapters

        insert_adapters(
            vit,
            lambda: self._adapter(vit.width),
            before_attention=self.before_attention,
            before_mlp=self.before_mlp,
            last_blocks=self.last_blocks,
            first_blocks=self.first_blocks,
            keep_unreachable=self.keep_unreachable,
        )

    def _adapter(self, width: int) -> "SpaceTimeAdapter":
        from stadapter.adapters.space_time import SpaceTimeAdapter

        return SpaceTimeAdapter(
            width=width,
            bottleneck=self.width if self.width is not None else width // 2,
            kernel_size=self.kernel_size,
            activation=self.activation,
        )
