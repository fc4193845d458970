"""A bottleneck adapter without time: ST-Adapter with the convolution left out."""

# B batch, T frames, N tokens (prefix + patches), D width

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stadapter.errors import SettingsError
from stadapter.layers import Activation, BottleneckMLP, insert_adapters
from stadapter.vit import ImageViT, TokenLayout


class PatchAdapter(nn.Module):
    """x + up(f(down(x))) on the patch tokens (B*T, N, D); prefix tokens pass by untouched. It starts as identity."""

    passes_prefix = True

    def __init__(self, *, width: int, bottleneck: int, activation: str | None) -> None:
        super().__init__()
        self.bottleneck = BottleneckMLP(width=width, bottleneck=bottleneck, activation=activation)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        prefix, patches = x[:, : layout.num_prefix], x[:, layout.num_prefix :]
        return torch.cat([prefix, patches + self.bottleneck(patches)], dim=1)


@dataclass(frozen=True)
class Bottleneck:
    """A bottleneck adapter at ST-Adapter's place and width, without its convolution: blind to the order of frames.

    The adapter of Houlsby et al. (ICML 2019, arXiv 1902.00751), on the tokens that ST-Adapter adapts, so that what the
    two differ by is what time is worth.
    """

    width: int | None = None
    """Bottleneck width A, channels; default half the trunk's width, as ST-Adapter's."""
    before_attention: bool = True
    """Put an adapter before each attention (A1)."""
    before_mlp: bool = False
    """Put an adapter before each MLP (A2)."""
    last_blocks: int | None = None
    """Adapt only the last so many blocks; default all."""
    activation: Activation | None = "gelu"
    """Activation f between the two projections; None has none."""

    def apply(self, vit: ImageViT) -> None:
        """Insert fresh adapters into a frozen trunk, in place.

        Raises:
            SettingsError: a setting that the trunk cannot hold, or with which nothing would learn.
        """
        if self.width is not None and self.width < 1:
            raise SettingsError(f"bottleneck width {self.width}: expected at least 1 channel")
        bottleneck = self.width if self.width is not None else vit.width // 2
        insert_adapters(
            vit,
            lambda: PatchAdapter(width=vit.width, bottleneck=bottleneck, activation=self.activation),
            before_attention=self.before_attention,
            before_mlp=self.before_mlp,
            last_blocks=self.last_blocks,
        )
