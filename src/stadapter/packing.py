"""Pieces of a pre-trained layer, repacked: the same values with less work and less memory.

Query, key and value of a frozen attention become one product, and only queries that are read are computed. A frozen
MLP with QuickGELU goes over its widest tensor once instead of three times; if the MLP learns, QuickGELU keeps one
tensor for the backward pass instead of two.
"""

# S sequences (frames), N tokens, R rows (S*N), Q queries, D width, M width of an MLP, H heads, E width of a head

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stadapter.products import Linear, as_autocast, is_transformed, linear, product, scaled_product

_PLAIN = frozenset(
    ("CLIPAttention", "SiglipAttention", "Dinov2Attention", "Dinov2WithRegistersAttention", "ViTAttention")
)
"""transformers classes that compute softmax(queries · keys · scale) · values and nothing else: no rotation."""
_MLPS = frozenset(("CLIPMLP", "SiglipMLP"))
"""transformers classes that compute fc2(activation_fn(fc1(x))), with biases."""
_QUICK_GELU = "QuickGELUActivation"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_OUTPUTS, _HEADS, _SCALES = ("out_proj", "o_proj"), ("num_heads", "num_attention_heads"), ("scale", "scaling")
"""What the families call the same thing."""
_QUICK_GELU_FACTOR = 1.702


class PackedAttention(nn.Module):
    """A frozen self-attention of a pre-trained layer, computed with fewer, larger products.

        x (S, N, D) ─ one product ─► queries, keys, values (S, H, N, E) ─► attention ─► output projection

    The values are those of the original layer, up to rounding. The weight (3D, D) shares the memory of the layer's
    three weights if those lie side by side (`lay_side_by_side`): then the trunk is not held twice.
    """

    def __init__(self, attention: nn.Module) -> None:
        """Take over an attention for which `is_packable` holds."""
        super().__init__()
        parts: list[Any] = [attention.get_submodule(name) for name in _PROJECTIONS]
        self.config: Any = attention.config
        """The trunk's; it says which kernel to compute with, `sdpa` or `eager`."""
        self.num_heads = int(_first(attention, _HEADS))
        self.scale = float(_first(attention, _SCALES))
        self.weight = _joint([part.weight for part in parts])
        self.bias = _joint([part.bias for part in parts]) if parts[0].bias is not None else None
        self.output = _first(attention, _OUTPUTS)

    def forward(self, x: Tensor, *, num_queries: int | None = None) -> tuple[Tensor]:
        """Normed tokens (S, N, D) to a tuple of their attention, same shape, or only of the first `num_queries`."""
        is_plain = self.config._attn_implementation == "eager" and not is_transformed()
        if num_queries is None:
            joint = self._by_head(linear(x, self.weight, self.bias), 3)  # (S, 3, H, N, E)
            attended = _plain_attention(joint, self.scale) if is_plain else self._fused(*joint.unbind(1))
        else:
            queries, keys, values = self._project_apart(x, num_queries)  # (S, H, Q or N, E)
            attend = self._plain if is_plain else self._fused
            attended = attend(queries, keys, values)
        output: Tensor = self.output(attended.transpose(1, 2).flatten(2))  # (S, Q, D)
        return (output,)

    def _project_apart(self, x: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        width = x.shape[-1]
        query_bias, rest_bias = (self.bias[:width], self.bias[width:]) if self.bias is not None else (None, None)
        (queries,) = self._by_head(linear(x[:, :num_queries], self.weight[:width], query_bias), 1).unbind(1)
        keys, values = self._by_head(linear(x, self.weight[width:], rest_bias), 2).unbind(1)
        return queries, keys, values

    def _by_head(self, x: Tensor, count: int) -> Tensor:
        """`count` projections side by side (S, N, count * D) as (S, count, H, N, E), a view."""
        return x.view(*x.shape[:2], count, self.num_heads, -1).permute(0, 2, 3, 1, 4)

    def _fused(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(queries, keys, values, scale=self.scale)

    def _plain(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores = (queries * self.scale) @ keys.mT  # (S, H, Q, N)
        return scores.softmax(-1) @ values


def _plain_attention(joint: Tensor, scale: float) -> Tensor:
    attended: Tensor = _PlainAttention.apply(joint, scale)  # type: ignore[no-untyped-call]
    return attended


class _PlainAttention(torch.autograd.Function):
    """softmax(queries · keys · scale) · values by two products: faster than the fused kernel on a CPU in bf16.

    Queries, keys and values (S, 3, H, N, E) come in one tensor, and so do their gradients: as separate tensors they
    would be copied more often, and kept as well (docs/log.md).
    """

    @staticmethod
    def forward(context: Any, joint: Tensor, scale: float) -> Tensor:
        parts = joint.transpose(0, 1).contiguous().flatten(1, 2)  # (3, S*H, N, E)
        queries, keys, values = parts
        # On a GPU autocast computes a softmax in fp32; the backward pass, without autocast, needs a single precision.
        weights = _scaled_batch_product(queries, keys.mT, scale).softmax(-1).to(parts.dtype)  # (S*H, N, N)
        context.save_for_backward(parts, weights)
        context.scale = scale
        return torch.bmm(weights, values).view(len(joint), -1, *values.shape[1:])  # (S, H, N, E)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        parts, weights = context.saved_tensors
        queries, keys, values = parts
        gradients, by_head = torch.empty_like(parts), grad_output.flatten(0, 1)  # (S*H, N, E)
        grad_weights = torch.bmm(by_head, values.mT)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        _scaled_batch_product(grad_scores, keys, context.scale, out=gradients[0])
        _scaled_batch_product(grad_scores.mT, queries, context.scale, out=gradients[1])
        torch.bmm(weights.mT, by_head, out=gradients[2])
        return gradients.view(3, *grad_output.shape).transpose(0, 1), None  # (S, 3, H, N, E)


def _scaled_batch_product(left: Tensor, right: Tensor, scale: float, *, out: Tensor | None = None) -> Tensor:
    """scale · left · right, for matrices (S*H, ·, ·); the factor is not rounded separately."""
    nothing = left.new_empty(()).expand(1, 1, 1)
    return torch.baddbmm(nothing, left, right, beta=0, alpha=scale, out=out)


class PackedMLP(nn.Module):
    """A frozen MLP of a pre-trained layer with QuickGELU, with one pass over its widest tensor instead of three.

        x (S, N, D) ─ up ─► (S, N, M) ─ QuickGELU ─► down ─► (S, N, D)

    QuickGELU, x · sigmoid(1.702 x), is silu(z) / 1.702 with z = 1.702 x: the first product gives z, and the second
    includes the division at no cost. The values are those of the original layer, up to rounding; only z is kept for
    the backward pass.
    """

    def __init__(self, mlp: nn.Module) -> None:
        """Take over an MLP for which `is_packable_mlp` holds."""
        super().__init__()
        self.up: Any = mlp.get_submodule("fc1")
        self.down: Any = mlp.get_submodule("fc2")

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_as_taken_over() or is_transformed():
            changed: Tensor = self.down(QuickGELU()(self.up(x)))
            return changed
        rows = as_autocast(x).flatten(0, -2)
        active: Tensor = _ScaledUp.apply(rows, self.up.weight, self.up.bias)  # type: ignore[no-untyped-call]
        result: Tensor = _ScaledDown.apply(active, self.down.weight, self.down.bias)  # type: ignore[no-untyped-call]
        return result.view(*x.shape[:-1], -1)

    def _is_as_taken_over(self) -> bool:
        """Whether it is still frozen, and nothing else has been put in place of a layer."""
        are_plain = all(type(layer) in (nn.Linear, Linear) for layer in (self.up, self.down))
        return are_plain and not any(parameter.requires_grad for parameter in self.parameters())


class _ScaledUp(torch.autograd.Function):
    """silu(1.702 · up(x)), for `_ScaledDown`: their factors cancel in the backward pass, so neither applies its own.

    The frozen weights of both are not saved tensors: for saved tensors gradient checkpointing would recompute the last
    product.
    """

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        factor = _QUICK_GELU_FACTOR
        z = scaled_product(x, as_autocast(weight), as_autocast(bias), scale=factor, bias_scale=factor)  # (R, M)
        if is_wanted := context.needs_input_grad[0]:
            context.save_for_backward(z)
            context.weight = weight
        return F.silu(z, inplace=not is_wanted)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (z,) = context.saved_tensors
        grad_z = torch.ops.aten.silu_backward(grad_output, z)
        return product(grad_z, context.weight.to(z.dtype).mT), None, None


class _ScaledDown(torch.autograd.Function):
    """down(x / 1.702) of the output of `_ScaledUp`."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        context.weight = weight
        scale = 1 / _QUICK_GELU_FACTOR
        return scaled_product(x, as_autocast(weight), as_autocast(bias), scale=scale, bias_scale=1)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return product(grad_output, context.weight.to(grad_output.dtype).mT), None, None


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the activation of CLIP, which keeps its input for the backward pass and nothing else.

    The values are those of transformers, bit for bit; as written there, torch keeps another tensor of that size, the
    widest in a block.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_transformed():
            return x * torch.sigmoid(_QUICK_GELU_FACTOR * x)
        activated: Tensor = _QuickGELU.apply(x)  # type: ignore[no-untyped-call]
        return activated


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return (_QUICK_GELU_FACTOR * x).sigmoid_().mul_(x)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_output: Tensor) -> Tensor:
        (x,) = context.saved_tensors
        # With z = 1.702 x the activation is silu(z) / 1.702: the factors cancel in its derivative.
        result: Tensor = torch.ops.aten.silu_backward(grad_output, _QUICK_GELU_FACTOR * x)
        return result


def replace_quick_gelu(module: nn.Module) -> None:
    """Replace every QuickGELU of transformers inside by ours."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child).__name__ == _QUICK_GELU:
                setattr(part, name, QuickGELU())


def pack_mlps(module: nn.Module) -> None:
    """Replace every MLP inside for which `is_packable_mlp` holds by a `PackedMLP`."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if is_packable_mlp(child):
                setattr(part, name, PackedMLP(child))


def is_packable_mlp(mlp: nn.Module) -> bool:
    """Whether this is the MLP of a pre-trained layer with QuickGELU, wholly frozen and unmodified."""
    if type(mlp).__name__ not in _MLPS or any(parameter.requires_grad for parameter in mlp.parameters()):
        return False
    is_quick = type(mlp.get_submodule("activation_fn")).__name__ == _QUICK_GELU
    return is_quick and all(type(mlp.get_submodule(name)) is nn.Linear for name in ("fc1", "fc2"))


def is_packable(attention: nn.Module) -> bool:
    """Whether this is the plain attention of a pre-trained layer, wholly frozen and unmodified."""
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
    """Tensors stacked along the first dimension, frozen: a view if they already lie so, otherwise a copy."""
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


def _first(module: nn.Module, names: Sequence[str]) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))
