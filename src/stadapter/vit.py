"""A frozen image Vision Transformer, seen as a stack of blocks with two named insertion points.

The pieces (norms, attention, MLP, embeddings) are the pre-trained model's own modules; only the wiring is ours:

    x ──► before_attention ──► + attention(norm1(x)) ──► before_mlp ──► + mlp(norm2(x)) ──► x
          (insertion point A1)                           (insertion point A2)

Both insertion points start as identities, so a fresh `ImageViT` computes exactly what the pre-trained model computes.
"""

# B batch, T frames, N tokens (prefix + patches), D width, H W pixels, h w patch grid

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stadapter.errors import SettingsError
from stadapter.packing import PackedAttention, is_packable, lay_side_by_side, pack_mlps, replace_quick_gelu
from stadapter.products import replace_linear

Rotary = tuple[Tensor, Tensor]

UNREAD_WEIGHTS = ("mask_token",)
"""Weights that no forward pass of an `ImageViT` reads; some copies of a checkpoint lack them."""


class TokenLayout(NamedTuple):
    """How the rows of a token tensor (B*T, N, D) are made up: N = num_prefix + grid_height * grid_width."""

    num_frames: int
    num_prefix: int
    grid_height: int
    grid_width: int


class InsertionPoint(nn.Module):
    """Does nothing: it fills an insertion point until a strategy puts something there.

    A module at an insertion point is called with tokens (B*T, N, D) and their `TokenLayout`, and returns tokens of
    the same shape. It never writes to its input. If it leaves prefix tokens as they are, its `passes_prefix` is true.
    """

    passes_prefix = True

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        return x


class Block(nn.Module):
    """One pre-norm transformer block, assembled from the pieces of a pre-trained layer.

    `attention` returns a tuple whose first element is the result, as in transformers; `scale1` and `scale2` are the
    layer scales of the DINO families and identities elsewhere.
    """

    def __init__(
        self,
        *,
        norm1: nn.Module,
        attention: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        scale1: nn.Module | None = None,
        scale2: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.before_attention: nn.Module = InsertionPoint()
        self.norm1 = norm1
        self.attention = attention
        self.scale1 = scale1 if scale1 is not None else nn.Identity()
        self.before_mlp: nn.Module = InsertionPoint()
        self.norm2 = norm2
        self.mlp = mlp
        self.scale2 = scale2 if scale2 is not None else nn.Identity()

    def forward(
        self, x: Tensor, layout: TokenLayout, rotary: Rotary | None = None, *, prefix_only: bool = False
    ) -> Tensor:
        """Tokens (B*T, N, D) to the same; with `prefix_only` to only the prefix tokens, for less work."""
        x = self.before_attention(x, layout)
        normed = normalise_tokens(self.norm1, x)
        if prefix_only and isinstance(self.attention, PackedAttention) and self._passes_prefix():
            x = x[:, : layout.num_prefix]  # patches are read only as keys and values
            x = x + self.scale1(self.attention(normed, num_queries=layout.num_prefix)[0])
        else:
            attended = self.attention(normed) if rotary is None else self.attention(normed, position_embeddings=rotary)
            x = x + self.scale1(attended[0])
            x = self.before_mlp(x, layout)
            if prefix_only:  # nothing after this mixes tokens
                x = x[:, : layout.num_prefix]
        update: Tensor = self.scale2(self.mlp(normalise_tokens(self.norm2, x)))
        return x + update

    def _passes_prefix(self) -> bool:
        """Whether the module before the MLP can be skipped, at no loss, if only the prefix is read.

        A module that learns is skipped only without gradients: training over several processes needs a gradient, even
        one of zeros, for everything that learns.
        """
        learns = any(parameter.requires_grad for parameter in self.before_mlp.parameters())
        passes = getattr(self.before_mlp, "passes_prefix", False)
        return bool(passes) and not (learns and torch.is_grad_enabled())


@dataclass(frozen=True)
class BackboneInfo:
    """What an artefact must remember about its trunk, and what the clip path must know about it."""

    name: str
    """Hub id, or the folder the weights came from."""
    family: str
    """The `model_type` of its vision config: clip_vision_model, dinov2 …"""
    revision: str | None
    """Commit of the Hub repository; None for a local folder."""
    sha256: str
    """Hash of the vision weights: over sorted (name, shape, fp32 bytes)."""
    image_size: int
    """Native side of the square input, pixels."""
    patch_size: int
    """Side of a square patch, pixels."""
    mean: tuple[float, float, float]
    """Per-channel mean for normalising inputs in [0, 1]."""
    std: tuple[float, float, float]
    """Per-channel standard deviation for normalising inputs in [0, 1]."""

    def check_size(self, size: int) -> None:
        """Refuse a clip size, in pixels, that the trunk cannot cut into patches.

        Raises:
            SettingsError: the patch size does not divide it; the message names the nearest size.
        """
        if size % self.patch_size:
            raise SettingsError(
                f"size {size}: the trunk's patches are {self.patch_size} pixels wide; "
                f"the nearest size it takes is {nearest_multiple(size, self.patch_size)}"
            )


class ImageViT(nn.Module):
    """A pre-trained image ViT, applied to every frame of a clip.

    `forward` takes normalised clips (B, T, 3, H, W) and returns the tokens of the last block (B, T, N, D), before the
    trunk's final norm, prefix tokens first. H and W may be any multiples of the patch size; T is free.

    The trunk is frozen, and stays in eval mode whatever mode the surrounding model is in: in training mode some
    families augment their position codes.
    """

    def __init__(
        self,
        *,
        embeddings: nn.Module,
        embed: Callable[[nn.Module, Tensor], Tensor],
        pre_norm: nn.Module | None,
        blocks: list[Block],
        norm: nn.Module,
        rotary: nn.Module | None = None,
        num_prefix: int,
        has_class_token: bool,
        width: int,
        info: BackboneInfo,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self._embed = embed
        self.pre_norm = pre_norm if pre_norm is not None else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.rotary = rotary
        self.num_prefix = num_prefix
        self.has_class_token = has_class_token
        self.width = width
        self.info = info
        self.inserted: list[nn.Module] = []
        """Modules that a strategy put elsewhere than at an insertion point; they follow the mode of the model."""
        self.recomputed = range(0)
        """Blocks that are recomputed in the backward pass; see `recompute_blocks`."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Keep the pre-trained pieces in eval mode; modules that a strategy inserted follow `mode`."""
        super().train(False)
        for module in [*self.insertion_points(), *self.inserted]:
            module.train(mode)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The precision the trunk computes its first layer in."""
        return next(self.embeddings.parameters()).dtype

    @property
    def configuration(self) -> dict[str, Any] | None:
        """The pre-trained model's configuration: how its pieces compute, besides their weights; None if it has none."""
        configs = (getattr(module, "config", None) for module in self.modules())
        config = next((config for config in configs if hasattr(config, "to_dict")), None)
        return dict(config.to_dict()) if config is not None else None

    def insertion_points(self) -> list[nn.Module]:
        """The modules at A1 and A2 of every block, in order."""
        return [point for block in self.block_list() for point in (block.before_attention, block.before_mlp)]

    def block_list(self) -> list[Block]:
        """The blocks, in order."""
        return list(cast(Iterable[Block], self.blocks))

    def last_blocks(self, count: int | None) -> range:
        """Indices of the last `count` blocks; all of them for None.

        Raises:
            SettingsError: fewer than one block, or more than there are.
        """
        num_blocks = len(self.blocks)
        if count is None:
            return range(num_blocks)
        if not 1 <= count <= num_blocks:
            raise SettingsError(f"last_blocks={count}: the trunk has {num_blocks} blocks; choose 1 to {num_blocks}")
        return range(num_blocks - count, num_blocks)

    def first_blocks(self, count: int) -> range:
        """Indices of the first `count` blocks.

        Raises:
            SettingsError: fewer than one block, or more than there are.
        """
        num_blocks = len(self.blocks)
        if not 1 <= count <= num_blocks:
            raise SettingsError(f"first_blocks={count}: the trunk has {num_blocks} blocks; choose 1 to {num_blocks}")
        return range(count)

    def unfreeze(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let parameters learn, in fp32 and in their own storage, so that whatever shared it stays as it is."""
        for parameter in parameters:
            parameter.data = parameter.detach().to(torch.float32, copy=True)
            parameter.requires_grad_(True)

    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter that a forward pass reads, by name."""
        named = self.named_parameters()
        return {name: parameter for name, parameter in named if name.rsplit(".", 1)[-1] not in UNREAD_WEIGHTS}

    def lay_weights_side_by_side(self) -> None:
        """Put the weights that `pack` joins side by side in memory, so that all views share them."""
        for block in self.block_list():
            lay_side_by_side(block.attention)

    def pack(self) -> None:
        """Repack frozen attention and MLPs that are still as they were loaded: the same values for less work.

        This must be the last thing done to a trunk: it changes the names of their weights.
        """
        for block in self.block_list():
            if is_packable(block.attention):
                block.attention = PackedAttention(block.attention)
            pack_mlps(block)
            replace_quick_gelu(block)
            replace_linear(block)

    def use_attention(self, implementation: Literal["sdpa", "eager"]) -> None:
        """Choose the kernel of the frozen attention: same values up to rounding, at different cost (docs/log.md)."""
        for module in self.modules():
            config: Any = getattr(module, "config", None)
            if hasattr(config, "_attn_implementation"):
                config._attn_implementation = implementation

    def recompute_blocks(self) -> range:
        """Gradient checkpointing: keep only the input of a block, and recompute the rest in the backward pass.

        Two kinds of blocks are left as they are: those below the first that learns, of which nothing is kept anyway,
        and the last, where the backward pass starts, so that keeping it does not raise the peak. Anything added to a
        trunk afterwards is not taken into account.

        Returns:
            The indices of the blocks; empty if only the last one learns, or none does.
        """
        last = len(self.blocks) - 1
        self.recomputed = range(min(self.num_frozen_blocks(), last), last)
        return self.recomputed

    def forward(self, clips: Tensor, *, prefix_only: bool = False) -> Tensor:
        """Tokens of the last block; with `prefix_only` only the prefix tokens (B, T, num_prefix, D), for less work."""
        layout = self._layout(clips)
        return self._run(self._embedded(clips), layout, 0, len(self.blocks), prefix_only=prefix_only)

    def num_frozen_blocks(self) -> int:
        """How many of the first blocks give a clip the same tokens throughout training, as nothing up to there learns.

        0 if the embeddings or the first block are changed: then nothing stays the same.
        """
        if self._is_changed(self.embeddings) or self._is_changed(self.pre_norm):
            return 0
        return next((place for place, block in enumerate(self.blocks) if self._is_changed(block)), len(self.blocks))

    def frozen_tokens(self, clips: Tensor, *, prefix_only: bool = False) -> Tensor:
        """Tokens (B, T, N, D) after the last of the frozen blocks, as input for `finish`.

        If all blocks are frozen these are the tokens that `forward` returns; with `prefix_only`, only the prefix.
        """
        return self._run(
            self._embedded(clips), self._layout(clips), 0, self.num_frozen_blocks(), prefix_only=prefix_only
        )

    def finish(self, tokens: Tensor, *, height: int, width: int, prefix_only: bool = False) -> Tensor:
        """What `forward` returns for clips of `height` x `width` pixels, bit for bit, from their `frozen_tokens`."""
        frozen, num_frames, patch = self.num_frozen_blocks(), tokens.shape[1], self.info.patch_size
        if frozen == len(self.blocks):
            return tokens
        layout = TokenLayout(num_frames, self.num_prefix, height // patch, width // patch)
        return self._run(tokens.flatten(0, 1), layout, frozen, len(self.blocks), prefix_only=prefix_only)

    def _embedded(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) as the tokens (B*T, N, D) that enter the first block."""
        images = clips.flatten(0, 1).to(self.dtype)  # (B*T, 3, H, W)
        return normalise_tokens(self.pre_norm, self._embed(self.embeddings, images))

    def _run(self, x: Tensor, layout: TokenLayout, start: int, stop: int, *, prefix_only: bool) -> Tensor:
        """Run tokens (B*T, N, D) through the blocks `start` to `stop` - 1; return them as (B, T, N, D)."""
        rotary = self._rotary(x, layout)
        recomputed = self.recomputed if torch.is_grad_enabled() else range(0)
        for place in range(start, stop):
            block = self.blocks[place]
            if place in recomputed:
                x = checkpoint(block, x, layout, rotary, use_reentrant=False)
            else:
                x = block(x, layout, rotary, prefix_only=prefix_only and place == len(self.blocks) - 1)
        return x.view(-1, layout.num_frames, *x.shape[1:])

    def _rotary(self, x: Tensor, layout: TokenLayout) -> Rotary | None:
        """The position codes of the patches, if the family has them; only the size of the images matters."""
        if self.rotary is None:
            return None
        height, width = (side * self.info.patch_size for side in (layout.grid_height, layout.grid_width))
        codes: Rotary = self.rotary(x.new_empty(()).to(self.dtype).expand(x.shape[0], 3, height, width))
        return codes

    def _is_changed(self, module: nn.Module) -> bool:
        """Whether something in it learns or is random, or a strategy has inserted something into it."""
        learns = any(parameter.requires_grad for parameter in module.parameters())
        points = [module.before_attention, module.before_mlp] if isinstance(module, Block) else []
        filled = any(type(point) is not InsertionPoint for point in points)
        return learns or filled or any(part in self.inserted for part in module.modules())

    def _layout(self, clips: Tensor) -> TokenLayout:
        """The layout of these clips' tokens; refuses clips that the trunk cannot take."""
        if clips.ndim != 5 or clips.shape[2] != 3:
            raise SettingsError(f"clips of shape {tuple(clips.shape)}: expected (B, T, 3, H, W)")
        if 0 in clips.shape:
            raise SettingsError(f"clips of shape {tuple(clips.shape)}: expected at least one clip, frame and pixel")
        if not clips.is_floating_point():
            raise SettingsError(f"clips of {clips.dtype}: expected normalised floats; model.normalise makes them")
        num_frames, height, width, patch = clips.shape[1], clips.shape[3], clips.shape[4], self.info.patch_size
        self.info.check_size(height)
        self.info.check_size(width)
        return TokenLayout(num_frames, self.num_prefix, height // patch, width // patch)


def normalise_tokens(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, except that bf16 tokens with a bf16 norm stay bf16 under autocast on every device, as on a CPU.

    On a GPU autocast would convert them to fp32 for the norm and keep those for the backward pass, although the norm's
    kernel computes in fp32 internally anyway.
    """
    weight = norm.weight if isinstance(norm, nn.LayerNorm) else None
    if weight is None or weight.dtype != x.dtype or x.dtype == torch.float32:
        result: Tensor = norm(x)
        return result
    with torch.autocast(x.device.type, enabled=False):
        return cast(Tensor, norm(x))


def nearest_multiple(pixels: int, patch: int) -> int:
    """The multiple of `patch` that is nearest to `pixels`, at least one patch."""
    return max(patch, round(pixels / patch) * patch)


def share_weights(vit: ImageViT) -> ImageViT:
    """A second view of a trunk: its own modules on the same storage, so that ten tasks hold one trunk in memory.

    The parameters are separate objects, so casting, moving or unfreezing one view leaves the others alone.

    Raises:
        SettingsError: something has already been inserted into the trunk, or some of it learns.
    """
    adapted = any(not isinstance(point, InsertionPoint) for point in vit.insertion_points())
    if adapted or vit.inserted or any(parameter.requires_grad for parameter in vit.parameters()):
        raise SettingsError("this trunk is already adapted; load_backbone gives a fresh one")
    copies: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in vit.parameters()}
    copies |= {id(buffer): buffer.detach() for buffer in vit.buffers()}
    return copy.deepcopy(vit, copies)
