"""How long a training step takes on a CPU, by attention kernel and by precision of the frozen weights.

    python benchmarks/train_step.py --backbone FOLDER_OR_HUB_ID [--size 112] [--rounds 5]

The variants take turns (A B C A B C …); medians and ratios to the first are printed as JSON. Before timing, the logits
of all variants are compared with those of fp32.
"""

import argparse
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F

from stadapter.backbones import load_backbone
from stadapter.model import VideoClassifier, build_model

VARIANTS = {
    "bf16 trunk, fused attention": ("sdpa", torch.bfloat16, True),
    "bf16 trunk, plain attention": ("eager", torch.bfloat16, True),
    "fp32 trunk under bf16 autocast, plain attention": ("eager", torch.float32, True),
    "fp32, fused attention": ("sdpa", torch.float32, False),
    "fp32, plain attention": ("eager", torch.float32, False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--num-frames", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    clips = torch.randn(flags.batch_size, flags.num_frames, 3, flags.size, flags.size)
    labels = torch.arange(flags.batch_size) % 10
    models = {name: make(flags.backbone, *variant[:2]) for name, variant in VARIANTS.items()}
    reference = logits(models["fp32, fused attention"], clips, autocast=False)
    errors = {}
    for name, (_, _, autocast) in VARIANTS.items():
        found = logits(models[name], clips, autocast=autocast)
        errors[name] = float((found - reference).norm() / reference.norm())
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(flags.rounds + 1):  # the first round warms up
        for name, (_, _, autocast) in VARIANTS.items():
            seconds[name].append(step(models[name], clips, labels, autocast=autocast))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    print(
        json.dumps(
            {
                "medians_seconds": {name: round(median, 3) for name, median in medians.items()},
                "times_as_fast_as_the_first": {name: round(first / median, 2) for name, median in medians.items()},
                "error_of_logits": {name: round(error, 5) for name, error in errors.items()},
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "machine": platform.machine(),
            },
            indent=1,
        )
    )


def make(backbone: str, attention: str, dtype: torch.dtype) -> VideoClassifier:
    """A classifier whose adapters do something, as after some training."""
    model = build_model(backbone=load_backbone(backbone), labels=[str(label) for label in range(10)])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv.weight"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.cast_trunk(dtype)
    model.trunk.use_attention("eager" if attention == "eager" else "sdpa")
    return model


def logits(model: VideoClassifier, clips: torch.Tensor, *, autocast: bool) -> torch.Tensor:
    """fp32 logits (B, C), without gradients."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(clips).float()


def step(model: VideoClassifier, clips: torch.Tensor, labels: torch.Tensor, *, autocast: bool) -> float:
    """Seconds of one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        scores = model(clips)
    F.cross_entropy(scores.float(), labels).backward()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
