"""Pieces of a pre-trained layer, repacked: the same values with less work and less memory.

Query, key and value of a frozen attention become one product, and only the queries that are read are computed;
QuickGELU keeps one tensor for the backward pass instead of two.
"""

# S sequences (frames), N tokens, Q queries, D width, H heads, E width of a head

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stadapter.products import linear

_PLAIN = frozenset(
    ("CLIPAttention", "SiglipAttention", "Dinov2Attention", "Dinov2WithRegistersAttention", "ViTAttention")
)
"""Classes of transformers that compute softmax(queries · keys · scale) · values and nothing else: no rotation."""
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_OUTPUTS, _HEADS, _SCALES = ("out_proj", "o_proj"), ("num_heads", "num_attention_heads"), ("scale", "scaling")
"""What the families call the same."""
_QUICK_GELU_FACTOR = 1.702


class PackedAttention(nn.Module):
    """A frozen self-attention of a pre-trained layer, computed with fewer, larger products.

        x (S, N, D) ─ one product ─► queries, keys, values (S, H, N, E) ─► attention ─► output projection

    The values are those of the layer it was made of, up to rounding. Its weight (3D, D) lies where the layer's three
    lay, if they lay side by side (`lay_side_by_side`): then the trunk is not held twice.
    """

    def __init__(self, attention: nn.Module) -> None:
        """Take over an attention for which `is_packable` holds."""
        super().__init__()
        parts: list[Any] = [attention.get_submodule(name) for name in _PROJECTIONS]
        self.config: Any = attention.config
        """Of the trunk; says which kernel to compute with, `sdpa` or `eager`."""
        self.num_heads = int(_first(attention, _HEADS))
        self.scale = float(_first(attention, _SCALES))
        self.weight = _joint([part.weight for part in parts])
        self.bias = _joint([part.bias for part in parts]) if parts[0].bias is not None else None
        self.output = _first(attention, _OUTPUTS)

    def forward(self, x: Tensor, *, num_queries: int | None = None) -> tuple[Tensor]:
        """Normed tokens (S, N, D) to a tuple of their attention, same shape, or of the first `num_queries`."""
        queries, keys, values = self._project(x, num_queries)  # (S, H, Q or N, E)
        if self.config._attn_implementation == "eager":
            attended = _plain_attention(queries, keys, values, self.scale)
        else:
            attended = F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))  # (S, Q, D)
        return (output,)

    def _project(self, x: Tensor, num_queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        if num_queries is None:
            joint = self._by_head(linear(x, self.weight, self.bias), 3)  # (S, N, 3, H, E)
            queries, keys, values = joint.unbind(2)
        else:
            width = x.shape[-1]
            query_bias, rest_bias = (self.bias[:width], self.bias[width:]) if self.bias is not None else (None, None)
            (queries,) = self._by_head(linear(x[:, :num_queries], self.weight[:width], query_bias), 1).unbind(2)
            keys, values = self._by_head(linear(x, self.weight[width:], rest_bias), 2).unbind(2)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def _by_head(self, x: Tensor, count: int) -> Tensor:
        """`count` projections side by side (S, N, count * D) as (S, N, count, H, E), a view."""
        return x.view(*x.shape[:2], count, self.num_heads, -1)


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the activation of CLIP, which keeps its input for the backward pass and nothing else.

    The values are those of transformers, bit by bit; as written there, torch keeps another tensor of that size, the
    widest in a block.
    """

    def forward(self, x: Tensor) -> Tensor:
        activated: Tensor = _QuickGELU.apply(x)  # type: ignore[no-untyped-call]
        return activated


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return (_QUICK_GELU_FACTOR * x).sigmoid_().mul_(x)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        # With z = 1.702 x the activation is silu(z) / 1.702: the factors cancel in its derivative.
        result: Tensor = torch.ops.aten.silu_backward(gradient, _QUICK_GELU_FACTOR * x)
        return result


def replace_quick_gelu(module: nn.Module) -> None:
    """Put `QuickGELU` in the place of that of transformers, wherever there is one."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child).__name__ == "QuickGELUActivation":
                setattr(part, name, QuickGELU())


def is_packable(attention: nn.Module) -> bool:
    """Whether an attention is one of a pre-trained layer, plain, wholly frozen, and nothing has been put into it."""
    if type(attention).__name__ not in _PLAIN or any(parameter.requires_grad for parameter in attention.parameters()):
        return False
    parts = [attention.get_submodule(name) for name in _PROJECTIONS]
    return all(type(part) is nn.Linear for part in [*parts, _first(attention, _OUTPUTS)])


def lay_side_by_side(attention: nn.Module) -> None:
    """Move the weights of query, key and value into one piece of memory; the parameters and their values stay."""
    if not is_packable(attention):
        return
    parts = [attention.get_submodule(name) for name in _PROJECTIONS]
    for kind in ("weight", "bias"):
        parameters = [getattr(part, kind) for part in parts]
        if parameters[0] is None or _lie_side_by_side(parameters):
            continue
        joint = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, piece in zip(parameters, joint.chunk(len(parts)), strict=True):
            parameter.data = piece


def _joint(parameters: Sequence[Tensor]) -> nn.Parameter:
    """Tensors below each other, frozen: a view where they lie so already, else a copy."""
    parts = [parameter.detach() for parameter in parameters]
    first = parts[0]
    if _lie_side_by_side(parts):
        shape = (len(parts) * first.shape[0], *first.shape[1:])
        return nn.Parameter(first.as_strided(shape, first.stride(), first.storage_offset()), requires_grad=False)
    return nn.Parameter(torch.cat(parts), requires_grad=False)


def _lie_side_by_side(parts: Sequence[Tensor]) -> bool:
    first = parts[0]
    return all(
        part.is_contiguous()
        and part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.storage_offset() == first.storage_offset() + number * first.numel()
        for number, part in enumerate(parts)
    )


def _plain_attention(queries: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Two products and a softmax: on a CPU, in bf16, faster than the fused kernel (docs/log.md)."""
    # Keys are copied before they are transposed: torch would copy them transposed, which takes several times as long.
    scores = (queries * scale) @ keys.contiguous().mT  # (S, H, Q, N)
    return scores.softmax(-1) @ values


def _first(module: nn.Module, names: Sequence[str]) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))
