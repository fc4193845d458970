"""A bottleneck without time on the patch tokens (Houlsby et al., ICML 2019, arXiv 1902.00751)."""

# B batch, T frames, N tokens (prefix + patches), D width

import torch
from torch import Tensor, nn

from stadapter.layers import BottleneckMLP
from stadapter.vit import TokenLayout


class PatchAdapter(nn.Module):
    """x + up(f(down(x))) on the patch tokens (B*T, N, D); prefix tokens stay untouched. Starts as the identity."""

    passes_prefix = True

    def __init__(self, *, width: int, bottleneck: int, activation: str | None) -> None:
        super().__init__()
        self.bottleneck = BottleneckMLP(width=width, bottleneck=bottleneck, activation=activation)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        prefix, patches = x[:, : layout.num_prefix], x[:, layout.num_prefix :]
        return torch.cat([prefix, patches + self.bottleneck(patches)], dim=1)
