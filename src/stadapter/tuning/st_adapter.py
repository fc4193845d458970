"""ST-Adapter: a bottleneck with a depth-wise space-time convolution in every block (arXiv 2206.13559)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from stadapter.adapters import Activation, check_places
from stadapter.errors import SettingsError
from stadapter.field_types import check_at_least_1, check_types

if TYPE_CHECKING:
    from stadapter.adapters.space_time import SpaceTimeAdapter
    from stadapter.vit import ImageViT


@dataclass(frozen=True)
class STAdapter:
    """ST-Adapter (arXiv 2206.13559): one bottleneck with a space-time convolution before attention, in every block.

    The defaults are the paper's. docs/results.md has what was measured for each with three seeds, few clips and few
    steps; where that disagrees with the paper, or is inconclusive, the setting's help says so.
    """

    width: int | None = None
    """Bottleneck width A, in channels; by default half the trunk's width, as in the paper, where it matters little; a
    quarter or the whole width made no measurable difference (docs/results.md)."""
    kernel_size: tuple[int, int, int] = (3, 1, 1)
    """Convolution kernel over (time, height, width), odd numbers: frames, patches, patches. The default is the paper's,
    where longer spans add little; over few steps 5 1 1 learned faster, and 1 1 1 does not see time
    (docs/results.md)."""
    before_attention: bool = True
    """Put an adapter before each attention (A1): the better place in the paper; over few steps the
    two places made no measurable difference (docs/results.md)."""
    before_mlp: bool = False
    """Put an adapter before each MLP (A2; the released Kinetics model has only these, the SSv2 model has both). Off by
    default: over few steps both together learned less than one (docs/results.md)."""
    last_blocks: int | None = None
    """Adapt only this many blocks, counted from the last; by default all, which is best in the paper. Over few steps
    the last half, with half the parameters, was not measurably different from all (docs/results.md)."""
    first_blocks: int | None = None
    """Adapt only this many blocks, counted from the first, to see what depth is worth; not with last_blocks."""
    activation: Activation | None = "gelu"
    """Activation f between convolution and up-projection. The default follows the paper's equation; released
    checkpoints use none, which made no measurable difference (docs/results.md)."""
    keep_unreachable: bool = False
    """Keep the last block's A2 even though a class-token head cannot see it (converted checkpoints have one)."""

    def __post_init__(self) -> None:
        if self.activation == "relu":  # type: ignore[comparison-overlap]
            raise SettingsError(
                "activation 'relu' has slope 0 at 0: an ST-Adapter, whose convolution starts at zero, would never "
                f"learn; use one of {', '.join(get_args(Activation))} or None"
            )
        check_types(self)
        check_at_least_1(self, "width", "last_blocks", "first_blocks")
        check_places(before_attention=self.before_attention, before_mlp=self.before_mlp)
        if self.first_blocks is not None and self.last_blocks is not None:
            raise SettingsError(
                f"first_blocks {self.first_blocks} and last_blocks {self.last_blocks}: expected at most one of them"
            )
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
