"""What a model costs, and where a result came from."""

# T frames, S side of a clip in pixels

import gc
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from stadapter.model import VideoClassifier

COUNTED = (
    "multiply-adds of linear layers, convolutions and attention's two products in one forward pass of the bare model, "
    "fp32, one view; norms, activations and softmax are not counted"
)
"""What `gmacs_per_view` says."""


def gmacs_per_view(model: VideoClassifier, *, num_frames: int, size: int) -> float:
    """10^9 multiply-adds of one forward pass on one view (1, T, 3, S, S); see `COUNTED`.

    The model's attention is left with the plain kernel, whose products can be counted, and its modes as they were.
    """
    model.trunk.use_attention("eager")
    parameter = next(model.parameters())
    clip = torch.zeros(1, num_frames, 3, size, size, device=parameter.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clip)
    return float(counter.get_total_flops() / 2 / 1e9)


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


def commit() -> str | None:
    """The git commit of this package, "+ changes" where files differ from it; None where it is no checkout."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    changes = git("status", "--porcelain", "--untracked-files=no", ".")
    return f"{git('rev-parse', 'HEAD')}{' + changes' if changes else ''}"


def processor() -> dict[str, Any]:
    """The processor by name where the system tells it, and the platform."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"processor": names[0] if names else platform.processor(), "platform": platform.platform()}
