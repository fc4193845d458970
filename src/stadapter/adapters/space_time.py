"""ST-Adapter's bottleneck with a depth-wise space-time convolution (Pan et al., NeurIPS 2022, arXiv 2206.13559)."""

# B batch, T frames, N tokens (prefix + patches), P patches, D width, A bottleneck, h w patch grid

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stadapter.layers import activation_gradient, make_activation
from stadapter.products import added_product, as_autocast, is_traced, linear, product, weight_gradient
from stadapter.vit import TokenLayout


class SpaceTimeAdapter(nn.Module):
    """x + up(f(conv(down(x)))) on the patch tokens; prefix tokens pass by untouched.

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
        if not is_traced():
            return self._in_one_piece(x, layout)
        # The prefix goes along, and its update is set to zero: taking it out and putting it back would copy all tokens.
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


class _InOnePiece(torch.autograd.Function):
    """The adapter: the values of its pieces, with fewer passes over its tokens.

    Piece by piece torch would copy all gradients to set those of the prefix to zero, and add the residual's in a pass
    of its own. Here the prefix has no hidden values behind f, so that its gradients have no effect (docs/log.md).
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
    def backward(context: Any, gradient: Tensor) -> tuple[Any, ...]:
        tokens, hidden, mixed, active, down, conv, up = context.saved_tensors
        layout, num_prefix = context.layout, context.layout.num_prefix
        of_update = gradient.to(up.dtype).flatten(0, 1)  # (B*T*N, D)
        of_active = product(of_update, up.mT).view(active.shape)
        of_active[:, :, :num_prefix] = 0
        of_mixed = activation_gradient(context.activation, of_active, x=mixed, y=active)
        of_hidden, of_conv, of_conv_bias = _convolve_backward(of_mixed, hidden, layout, conv)
        of_hidden = of_hidden.flatten(0, 2)  # (B*T*N, A)
        of_x = None
        if context.needs_input_grad[0]:
            of_x = added_product(gradient.flatten(0, 1), of_hidden, down.mT).view(gradient.shape)
        return (
            of_x,
            None,
            None,
            weight_gradient(of_hidden, tokens),
            of_hidden.sum(0),
            of_conv,
            of_conv_bias,
            weight_gradient(of_update, active.flatten(0, 2)),
            of_update.view(gradient.shape).sum(0)[num_prefix:].sum(0),
        )


def _convolve(x: Tensor, layout: TokenLayout, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depth-wise over time and the patch grid of x (B, T, N, A), with the weight (A, 1, t, i, j) of a `Conv3d`.

    What becomes of the prefix has no meaning.
    """
    if weight.shape[3:] == (1, 1):
        return convolve_time(x, weight, bias)
    y = torch.zeros_like(x)
    _grid(y, layout).copy_(_convolve_grid(_grid(x, layout), weight, bias))
    return y


def _convolve_backward(
    gradient: Tensor, x: Tensor, layout: TokenLayout, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the weight and the bias of `_convolve`."""
    if weight.shape[3:] == (1, 1):
        of_images, of_taps, of_bias = _gradients(gradient.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight[..., 0])
        return of_images.permute(0, 2, 3, 1), of_taps.reshape(weight.shape), of_bias
    find = _grid_gradients_by_steps if x.device.type == "cpu" else _grid_gradients
    of_grid, of_weight, of_bias = find(_grid(gradient, layout), _grid(x, layout), weight)
    of_x = torch.zeros_like(x)
    _grid(of_x, layout).copy_(of_grid)
    return of_x, of_weight, of_bias


def _convolve_grid(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depth-wise over time and space of (B, T, h, w, A)."""
    volumes, padding = x.permute(0, 4, 1, 2, 3), [side // 2 for side in weight.shape[2:]]
    return F.conv3d(volumes, weight, bias, padding=padding, groups=len(weight)).permute(0, 2, 3, 4, 1)


def _grid_gradients(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of `_convolve_grid`, as torch has them."""
    volumes = (gradient.permute(0, 4, 1, 2, 3), x.permute(0, 4, 1, 2, 3))
    of_volumes, of_weight, of_bias = _gradients(*volumes, weight)
    return of_volumes.permute(0, 2, 3, 4, 1), of_weight, of_bias


def _grid_gradients_by_steps(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same: of x by a convolution with the mirrored weight, of the weight by a 2-D convolution a step in time.

    On a CPU torch's backward pass of a depth-wise 3-D convolution takes several times as long (docs/log.md).
    """
    of_weight, of_bias, num_frames = torch.zeros_like(weight), gradient.new_empty(0), x.shape[1]
    for place in range(weight.shape[2]):
        # Frame t of the result is made of frame t + distance.
        distance = place - weight.shape[2] // 2
        if abs(distance) >= num_frames:
            continue
        results = gradient[:, max(0, -distance) : num_frames - max(0, distance)].flatten(0, 1)  # (B*T', h, w, A)
        sources = x[:, max(0, distance) : num_frames + min(0, distance)].flatten(0, 1)
        images, sees_all = (results.permute(0, 3, 1, 2), sources.permute(0, 3, 1, 2)), distance == 0
        _, of_weight[:, :, place], of_step = _gradients(*images, weight[:, :, place], (False, True, sees_all))
        of_bias = of_step if sees_all else of_bias
    return _convolve_grid(gradient, weight.flip(2, 3, 4), None), of_weight, of_bias


def convolve_time(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Depth-wise over the T of (B, T, N, A), with the weight (A, 1, t, 1, 1) of a `Conv3d`.

    The same as on the grid, as a 2-D convolution that copies nothing.
    """
    as_images = x.permute(0, 3, 1, 2)  # (B, A, T, N), a view
    y = F.conv2d(as_images, weight[..., 0], bias, padding=(weight.shape[2] // 2, 0), groups=len(weight))
    return y.permute(0, 2, 3, 1)  # (B, T, N, A)


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool] = (True, True, True)
) -> tuple[Tensor, Tensor, Tensor]:
    """Of x (B, A, …), the weight (A, 1, …) and the bias of a depth-wise convolution that leaves the size as it is."""
    num_dimensions = weight.ndim - 2
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient,
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
