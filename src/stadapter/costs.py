"""What a model costs: arithmetic and memory."""

# B batch, T frames, S side of a clip in pixels

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stadapter.model import VideoClassifier, prepare_trunk
from stadapter.products import as_elsewhere, count_products
from stadapter.wording import bytes_text, counted, percent

COUNTED = (
    "multiply-adds of linear layers, convolutions and attention's two products in one forward pass of the bare model, "
    "fp32, one view; norms, activations and softmax are not counted"
)
"""What `gmacs_per_view` counts."""


def gmacs_per_view(model: VideoClassifier, *, num_frames: int, size: int) -> float:
    """10^9 multiply-adds of one forward pass on one view (1, T, 3, S, S); see `COUNTED`.

    Nothing is computed: a large model takes no longer than a small one, and the model stays as it is.
    """
    shapes = _without_values(model, _on_meta)
    shapes.trunk.use_attention("eager")  # the plain kernel's products can be counted
    clip = torch.zeros(1, num_frames, 3, size, size, device="meta")
    with torch.no_grad(), count_products() as counter:
        shapes(clip)
    return float(counter.get_total_flops() / 2 / 1e9)


@dataclass(frozen=True)
class StepCost:
    """The cost of the model's part of a training step on one batch."""

    gmacs: float
    """10^9 multiply-adds, forward and backward, of what `COUNTED` names."""
    kept_bytes: int
    """Memory that the forward pass keeps for the backward pass, besides the weights."""


@dataclass(frozen=True)
class CheckpointingCost:
    """What gradient checkpointing costs and saves in a training step on one batch; see `ImageViT.recompute_blocks`."""

    num_blocks: int
    """Number of blocks that are recomputed."""
    plain: StepCost
    """The step without checkpointing."""
    checkpointed: StepCost
    """The step with checkpointing."""
    block_bytes: int
    """Memory for the one block being recomputed, for as long as that takes."""

    def __str__(self) -> str:
        if not self.num_blocks:
            return "nothing to save: no block but the last keeps anything for the backward pass"
        more = self.checkpointed.gmacs - self.plain.gmacs
        return (
            f"{gmacs_text(more)} more a batch, {percent(more / self.plain.gmacs, 0)} of a step, to compute "
            f"{counted(self.num_blocks, 'block')} again; activations kept {bytes_text(self.checkpointed.kept_bytes)} "
            f"instead of {bytes_text(self.plain.kept_bytes)}, and {bytes_text(self.block_bytes)} while a block is "
            "computed again"
        )


def checkpointing_cost(
    model: VideoClassifier,
    *,
    num_clips: int,
    num_frames: int,
    size: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> CheckpointingCost:
    """Count a training step on clips (B, T, 3, S, S) with gradient checkpointing and without.

    Nothing is computed, and the model stays as it is. Even for a GPU the operators of a CPU are counted, without those
    of products.py, which only a CPU has; a GPU's own operators keep about the same.

    Args:
        model: the classifier, in any precision.
        num_clips: B of a batch.
        num_frames: T.
        size: S.
        device: where it will be trained.
        autocast_dtype: the precision it will be trained in; with `device` it determines the attention kernel.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # tensors with a shape and dtype but no values

    rotary = _rotary(model, size, autocast_dtype)
    with FakeTensorMode(), nullcontext() if device.type == "cpu" else as_elsewhere():
        fake = _without_values(model, _on_cpu)
        if rotary is not None:
            fake.trunk.rotary = _Given(_on_cpu(rotary[0]), _on_cpu(rotary[1]))
        clips = torch.empty(num_clips, num_frames, 3, size, size)

        def forward() -> Tensor:
            logits: Tensor = fake(clips)
            return logits

        def count(recomputed: range) -> StepCost:
            fake.trunk.recomputed = recomputed
            prepare_trunk(fake, device, autocast_dtype)
            kept_bytes = saved_bytes(forward, fake)
            fake.trunk.use_attention("eager")  # the plain kernel's products can be counted
            with count_products() as counter:
                forward().sum().backward()  # type: ignore[no-untyped-call]
            return StepCost(counter.get_total_flops() / 2 / 1e9, kept_bytes)

        blocks = fake.trunk.recompute_blocks()
        plain, checkpointed, all_but_one = count(range(0)), count(blocks), count(blocks[:-1])
    return CheckpointingCost(len(blocks), plain, checkpointed, all_but_one.kept_bytes - checkpointed.kept_bytes)


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes of memory that a forward pass keeps for the backward pass, besides the weights."""
    # Keyed by the storage itself, not its address, as tensors without values have none; a small integer identifies it.
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()  # held until everything is counted: freed memory would be reused, and counted twice
    del result
    return sum(kept.values())


def gmacs_text(count: float) -> str:
    """10^9 multiply-adds, to three digits or as a whole number.

    >>> gmacs_text(1.2345), gmacs_text(12345.6)
    ('1.23 GMACs', '12,346 GMACs')
    """
    return f"{count:,.0f} GMACs" if count >= 100 else f"{count:.3g} GMACs"


def _without_values(model: VideoClassifier, empty: Callable[[Tensor], Tensor]) -> VideoClassifier:
    """A copy of the model whose tensors have a shape but no values."""
    copies: dict[int, object] = {
        id(p): nn.Parameter(empty(p), requires_grad=p.requires_grad) for p in model.parameters()
    }
    copies |= {id(buffer): empty(buffer) for buffer in model.buffers()}
    return copy.deepcopy(model, copies)


def _rotary(model: VideoClassifier, size: int, autocast_dtype: torch.dtype | None) -> tuple[Tensor, Tensor] | None:
    """The rotary embeddings of a step: no fake tensor may enter transformers' cache of their inputs."""
    if model.trunk.rotary is None:
        return None
    casts = autocast_dtype is not None and not next(model.trunk.embeddings.parameters()).requires_grad
    images = torch.zeros(1, 3, size, size, device=model.mean.device, dtype=autocast_dtype if casts else torch.float32)
    rotary: tuple[Tensor, Tensor] = model.trunk.rotary(images)
    return rotary


def _on_cpu(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _on_meta(tensor: Tensor) -> Tensor:
    """The tensor on the meta device, as fp32: mixed-precision products are refused there."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return torch.empty_like(tensor, dtype=dtype, device="meta")


class _Given(nn.Module):
    """Stands in for a module whose result is known."""

    def __init__(self, *result: Tensor) -> None:
        super().__init__()
        self._result = result

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self._result
