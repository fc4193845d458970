"""What a model costs: arithmetic and memory."""

# T frames, S side of a clip in pixels

import copy
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stadapter.model import VideoClassifier

COUNTED = (
    "multiply-adds of linear layers, convolutions and attention's two products in one forward pass of the bare model, "
    "fp32, one view; norms, activations and softmax are not counted"
)
"""What `gmacs_per_view` says."""


def gmacs_per_view(model: VideoClassifier, *, num_frames: int, size: int) -> float:
    """10^9 multiply-adds of one forward pass on one view (1, T, 3, S, S); see `COUNTED`.

    Nothing is computed: it takes as long for a large model as for a small one, and leaves the model as it is.
    """
    shapes = _without_values(model)
    shapes.trunk.use_attention("eager")  # the plain kernel's products can be counted
    clip = torch.zeros(1, num_frames, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes(clip)
    return float(counter.get_total_flops() / 2 / 1e9)


def _without_values(model: VideoClassifier) -> VideoClassifier:
    """The model with tensors that have a shape and no values, in fp32."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return torch.empty_like(tensor, dtype=dtype, device="meta")

    copies: dict[int, object] = {id(p): nn.Parameter(empty(p), requires_grad=False) for p in model.parameters()}
    copies |= {id(buffer): empty(buffer) for buffer in model.buffers()}
    return copy.deepcopy(model, copies)


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` begin anew. On a CPU this works on Linux alone; elsewhere the peak is of all time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_bytes(device: torch.device) -> tuple[int, str]:
    """The most memory of this process so far, and of what kind: "cuda" as allocated, or "process", resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda"
    gc.collect()
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would tell the parent's peak where that was higher: it survives exec
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1]), "process"
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak, "process"
