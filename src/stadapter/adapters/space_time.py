"""ST-Adapter's bottleneck with a depth-wise space-time convolution (Pan et al., NeurIPS 2022, arXiv 2206.13559)."""

# B batch, T frames, N tokens (prefix + patches), P patches, D width, A bottleneck, h w patch grid

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stadapter.layers import activation_gradient, has_hooks, has_known_gradient, make_activation
from stadapter.products import Linear, added_product, as_autocast, is_traced, linear, product, weight_gradient
from stadapter.vit import TokenLayout


class SpaceTimeAdapter(nn.Module):
    """x + up(f(conv(down(x)))) on the patch tokens; prefix tokens stay untouched.

        x (B*T, N, D) ─ patches ─► down ─► (B, A, T, h, w) ─► depth-wise conv ─► f ─► up ─► + x

    It starts as the identity: convolution and biases are zero. Its input is never written to.
    """

    passes_prefix = True

    def __init__(
        self,
        *,
        width: int,
        bottleneck: int,
        kernel_size: tuple[int, int, int] = (3, 1, 1),
        activation: str | None = None,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.conv = nn.Conv3d(
            bottleneck,
            bottleneck,
            kernel_size,
            padding=(kernel_size[0] // 2, kernel_size[1] // 2, kernel_size[2] // 2),
            groups=bottleneck,
        )
        self.activation = make_activation(activation)
        self.up = nn.Linear(bottleneck, width)
        for parameter in (self.conv.weight, self.conv.bias, self.down.bias, self.up.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        if not self._is_as_made():
            return self._layer_by_layer(x, layout)
        if not is_traced():
            return self._in_one_piece(x, layout)
        # The prefix is computed too, and its update set to zero: taking it out and back in would copy all tokens.
        hidden = linear(x, self.down.weight, self.down.bias)  # (B*T, N, A)
        hidden = hidden.view(-1, layout.num_frames, *hidden.shape[1:])  # (B, T, N, A)
        hidden = _convolve(hidden, layout, self.conv.weight, self.conv.bias)
        update = linear(self.activation(hidden), self.up.weight, self.up.bias).flatten(0, 1)  # (B*T, N, D)
        update[:, : layout.num_prefix] = 0
        return x + update.to(x.dtype)

    def _in_one_piece(self, x: Tensor, layout: TokenLayout) -> Tensor:
        layers = (self.down, self.conv, self.up)
        weights = [as_autocast(each) for layer in layers for each in layer.parameters()]  # weight, bias
        y: Tensor = _InOnePiece.apply(x, layout, self.activation, *weights)  # type: ignore[no-untyped-call]
        return y

    def _is_as_made(self) -> bool:
        """Whether its layers are still those it was made with, and nothing waits for one of them to be called."""
        are_linear = all(type(layer) in (nn.Linear, Linear) for layer in (self.down, self.up))
        layers = (self.down, self.conv, self.activation, self.up)
        are_plain = are_linear and type(self.conv) is nn.Conv3d and has_known_gradient(self.activation)
        return are_plain and not any(map(has_hooks, layers))

    def _layer_by_layer(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """The same by calling the layers: one may have been replaced, pruned, quantised or observed."""
        patches = x[:, layout.num_prefix :]  # (B*T, P, D)
        hidden = self.down(patches).unflatten(1, (layout.grid_height, layout.grid_width))  # (B*T, h, w, A)
        hidden = hidden.unflatten(0, (-1, layout.num_frames)).permute(0, 4, 1, 2, 3)  # (B, A, T, h, w)
        mixed = self.activation(self.conv(hidden)).permute(0, 2, 3, 4, 1)  # (B, T, h, w, A)
        update = self.up(mixed.flatten(0, 1).flatten(1, 2))  # (B*T, P, D)
        return torch.cat([x[:, : layout.num_prefix], patches + update.to(x.dtype)], dim=1)


class _InOnePiece(torch.autograd.Function):
    """The adapter as one function: the same values as its pieces, with fewer passes over its tokens.

    Piece by piece, torch would copy all gradients to set those of the prefix to zero, and add the residual's gradient
    in a separate pass. Here the hidden values of the prefix are zero after f, so its gradients have no effect
    (docs/log.md).
    """

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        layout: TokenLayout,
        activation: nn.Module,
        down: Tensor,
        down_bias: Tensor,
        conv: Tensor,
        conv_bias: Tensor,
        up: Tensor,
        up_bias: Tensor,
    ) -> Tensor:
        tokens = as_autocast(x).flatten(0, 1)  # (B*T*N, D)
        hidden = product(tokens, down, down_bias).view(-1, layout.num_frames, x.shape[1], len(down))  # (B, T, N, A)
        mixed = _convolve(hidden, layout, conv, conv_bias)
        active = activation(mixed)
        active[:, :, : layout.num_prefix] = 0
        y = added_product(x.flatten(0, 1), active.flatten(0, 2), up, up_bias).view(x.shape)
        y[:, : layout.num_prefix] = x[:, : layout.num_prefix]
        context.save_for_backward(tokens, hidden, mixed, active, down, conv, up)
        context.layout, context.activation = layout, activation
        return y

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad_output: Tensor) -> tuple[Any, ...]:
        tokens, hidden, mixed, active, down, conv, up = context.saved_tensors
        layout, num_prefix = context.layout, context.layout.num_prefix
        grad_update = grad_output.to(up.dtype).flatten(0, 1)  # (B*T*N, D)
        grad_active = product(grad_update, up.mT).view(active.shape)
        grad_active[:, :, :num_prefix] = 0
        grad_mixed = activation_gradient(context.activation, grad_active, x=mixed, y=active)
        grad_hidden, grad_conv, grad_conv_bias = _convolve_backward(grad_mixed, hidden, layout, conv)
        grad_hidden = grad_hidden.flatten(0, 2)  # (B*T*N, A)
        grad_x = None
        if context.needs_input_grad[0]:
            grad_x = added_product(grad_output.flatten(0, 1), grad_hidden, down.mT).view(grad_output.shape)
        return (
            grad_x,
            None,
            None,
            weight_gradient(grad_hidden, tokens),
            grad_hidden.sum(0),
            grad_conv,
            grad_conv_bias,
            weight_gradient(grad_update, active.flatten(0, 2)),
            grad_update.view(grad_output.shape).sum(0)[num_prefix:].sum(0),
        )


def _convolve(x: Tensor, layout: TokenLayout, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depth-wise convolution over time and patch grid of x (B, T, N, A), with a `Conv3d` weight (A, 1, t, i, j).

    The result for the prefix has no meaning.
    """
    if weight.shape[3:] == (1, 1):
        return convolve_time(x, weight, bias)
    y = torch.zeros_like(x)
    _grid(y, layout).copy_(_convolve_grid(_grid(x, layout), weight, bias))
    return y


def _convolve_backward(
    grad_output: Tensor, x: Tensor, layout: TokenLayout, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias in `_convolve`."""
    if weight.shape[3:] == (1, 1):
        grad_images, grad_taps, grad_bias = _gradients(
            grad_output.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight[..., 0]
        )
        return grad_images.permute(0, 2, 3, 1), grad_taps.reshape(weight.shape), grad_bias
    find = _grid_gradients_by_steps if x.device.type == "cpu" else _grid_gradients
    grad_grid, grad_weight, grad_bias = find(_grid(grad_output, layout), _grid(x, layout), weight)
    grad_x = torch.zeros_like(x)
    _grid(grad_x, layout).copy_(grad_grid)
    return grad_x, grad_weight, grad_bias


def _convolve_grid(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depth-wise convolution over time and space of (B, T, h, w, A)."""
    volumes, padding = x.permute(0, 4, 1, 2, 3), [side // 2 for side in weight.shape[2:]]
    return F.conv3d(volumes, weight, bias, padding=padding, groups=len(weight)).permute(0, 2, 3, 4, 1)


def _grid_gradients(grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `_convolve_grid`, as torch computes them."""
    volumes = (grad_output.permute(0, 4, 1, 2, 3), x.permute(0, 4, 1, 2, 3))
    grad_volumes, grad_weight, grad_bias = _gradients(*volumes, weight)
    return grad_volumes.permute(0, 2, 3, 4, 1), grad_weight, grad_bias


def _grid_gradients_by_steps(grad_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same gradients: of x by convolving with the mirrored weight, of the weight by a 2-D convolution per tap.

    On a CPU, torch's backward pass of a depth-wise 3-D convolution takes several times as long (docs/log.md).
    """
    grad_weight, grad_bias, num_frames = torch.zeros_like(weight), grad_output.new_empty(0), x.shape[1]
    for place in range(weight.shape[2]):
        # This tap computes frame t of the result from frame t + distance.
        distance = place - weight.shape[2] // 2
        if abs(distance) >= num_frames:
            continue
        results = grad_output[:, max(0, -distance) : num_frames - max(0, distance)].flatten(0, 1)  # (B*T', h, w, A)
        sources = x[:, max(0, distance) : num_frames + min(0, distance)].flatten(0, 1)
        images, sees_all = (results.permute(0, 3, 1, 2), sources.permute(0, 3, 1, 2)), distance == 0
        _, grad_weight[:, :, place], grad_step = _gradients(*images, weight[:, :, place], (False, True, sees_all))
        grad_bias = grad_step if sees_all else grad_bias
    return _convolve_grid(grad_output, weight.flip(2, 3, 4), None), grad_weight, grad_bias


def convolve_time(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depth-wise convolution over the T of (B, T, N, A), with the weight (A, 1, t, 1, 1) of a `Conv3d`.

    Gives the same as on the grid, as a 2-D convolution that copies nothing.
    """
    as_images = x.permute(0, 3, 1, 2)  # (B, A, T, N), a view
    y = F.conv2d(as_images, weight[..., 0], bias, padding=(weight.shape[2] // 2, 0), groups=len(weight))
    return y.permute(0, 2, 3, 1)  # (B, T, N, A)


def _gradients(
    grad_output: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, A, …), weight (A, 1, …) and bias of a depth-wise convolution that keeps the size."""
    num_dimensions = weight.ndim - 2
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad_output,
        x,
        weight,
        bias_sizes=[len(weight)],
        stride=[1] * num_dimensions,
        padding=[side // 2 for side in weight.shape[2:]],
        dilation=[1] * num_dimensions,
        transposed=False,
        output_padding=[0] * num_dimensions,
        groups=len(weight),
        output_mask=wanted,
    )
    return gradients


def _grid(x: Tensor, layout: TokenLayout) -> Tensor:
    """The patches of (B, T, N, A) as (B, T, h, w, A), a view."""
    return x[:, :, layout.num_prefix :].view(*x.shape[:2], layout.grid_height, layout.grid_width, -1)
