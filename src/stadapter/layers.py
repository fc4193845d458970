"""New layers that several strategies and heads are built from, and the places where adapters may go."""

# B batch, T frames, N tokens (prefix + patches), P patches, D width, A bottleneck, S sequences

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stadapter.errors import SettingsError
from stadapter.vit import ImageViT, TokenLayout

ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class BottleneckMLP(nn.Module):
    """up(f(down(x))) on tokens (..., D), through A channels; zero at the start, because `up` is zero.

    The near-identity start is that of Houlsby et al. (ICML 2019, arXiv 1902.00751), made exact as in AIM.
    """

    def __init__(self, *, width: int, bottleneck: int, activation: str | None = "gelu") -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.activation = make_activation(activation)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.up(self.activation(self.down(x)))
        return update.to(x.dtype)


class TimeEmbedding(nn.Module):
    """One learned vector per frame, zero at the start; for another number of frames they are interpolated along time.

    TimeSformer, which repeats the nearest vector, and AIM, which refuses other lengths, also start at zero. Linear
    interpolation keeps neighbouring frames distinct.
    """

    def __init__(self, *, num_frames: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_frames, width))

    def forward(self, num_frames: int) -> Tensor:
        """The vectors of `num_frames` frames (T, D)."""
        # Always interpolate, even if it changes nothing: the exported model takes any number of frames.
        return F.interpolate(self.weight.T[None], size=num_frames, mode="linear", align_corners=False)[0].T


def insert_adapters(
    vit: ImageViT,
    make_adapter: Callable[[], nn.Module],
    *,
    before_attention: bool,
    before_mlp: bool,
    last_blocks: int | None,
    first_blocks: int | None = None,
    keep_unreachable: bool = False,
) -> None:
    """Put adapters on the patch tokens at A1 and A2 of the last or the first blocks, or of all if neither is given.

    The last block's A2 is left out if a class token is read, unless `keep_unreachable` is set.

    Raises:
        SettingsError: places at which nothing would be trained, or more blocks than there are.
    """
    indices = vit.last_blocks(last_blocks) if first_blocks is None else vit.first_blocks(first_blocks)
    # Patch tokens changed after the last attention never meet the class token that the head reads.
    unreachable = {len(vit.blocks) - 1} if vit.has_class_token and not keep_unreachable else set()
    if not before_attention and not set(indices) - unreachable:
        raise SettingsError(
            "an adapter only before the last block's MLP cannot reach the class token, and trains nothing; "
            "set before_attention, or more last_blocks"
        )
    for index in indices:
        block = vit.block_list()[index]
        if before_attention:
            block.before_attention = make_adapter()
        if before_mlp and index not in unreachable:
            block.before_mlp = make_adapter()


def attend_over_time(attention: nn.Module, x: Tensor, *, rotary: bool) -> Tensor:
    """A block's attention on sequences over time (S, T, D), same shape out.

    Rotary embeddings tell positions apart, not times, so none are used here: frames are passed as prefix tokens, which
    the rotary families do not rotate. A time embedding tells times apart.
    """
    no_rotation = x.new_zeros(0, 1)
    attended: Tensor = (attention(x, position_embeddings=(no_rotation, no_rotation)) if rotary else attention(x))[0]
    return attended


def add_time(x: Tensor, time_embedding: TimeEmbedding, layout: TokenLayout) -> Tensor:
    """x (B*T, N, D) with its frame's vector added to every token."""
    by_frame = time_embedding(layout.num_frames).repeat(x.shape[0] // layout.num_frames, 1)  # (B*T, D)
    timed: Tensor = x + by_frame[:, None].to(x.dtype)
    return timed


def to_sequences(x: Tensor, layout: TokenLayout) -> Tensor:
    """Frames (B*T, N, D) to one sequence over time for each token (B*N, T, D)."""
    by_clip: Tensor = x.reshape(-1, layout.num_frames, *x.shape[1:])  # (B, T, N, D)
    return by_clip.transpose(1, 2).flatten(0, 1)


def to_frames(x: Tensor, *, num_tokens: int) -> Tensor:
    """The inverse of `to_sequences`: (B*N, T, D) to (B*T, N, D)."""
    by_clip: Tensor = x.reshape(-1, num_tokens, *x.shape[1:])  # (B, N, T, D)
    return by_clip.transpose(1, 2).flatten(0, 1)


def make_activation(name: str | None) -> nn.Module:
    """The module for an activation's name; None is the identity."""
    return ACTIVATIONS[name]() if name is not None else nn.Identity()


def has_known_gradient(activation: nn.Module) -> bool:
    """Whether `activation_gradient` knows this activation."""
    return type(activation) in (nn.Identity, *ACTIVATIONS.values())


def has_hooks(layer: nn.Module) -> bool:
    """Whether something, such as torch's pruning, waits for this layer to be called."""
    kinds = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(map(bool, kinds))


def activation_gradient(activation: nn.Module, gradient: Tensor, *, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of x, from that of y = activation(x), for any activation from `make_activation`."""
    result: Tensor
    match activation:
        case nn.Identity():
            result = gradient
        case nn.GELU():
            result = torch.ops.aten.gelu_backward(gradient, x, approximate=activation.approximate)
        case nn.SiLU():
            result = torch.ops.aten.silu_backward(gradient, x)
        case nn.Tanh():
            result = torch.ops.aten.tanh_backward(gradient, y)
        case _:
            raise AssertionError(f"no gradient for {activation}")
    return result
