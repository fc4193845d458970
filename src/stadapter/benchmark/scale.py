"""One device at work: a training step and inference as they are, and with each option switched on; copies to a GPU."""

# B batch, T frames, H W pixels

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from stadapter.benchmark.config import BenchmarkConfig, Precision
from stadapter.benchmark.floors import backward_products, flops, forward_products, replay
from stadapter.benchmark.networks import (
    DTYPES,
    Networks,
    forward_pass,
    gradients,
    inference,
    make_networks,
    peak_bytes,
    ready,
    sizes_of,
    training_step,
)
from stadapter.benchmark.released import Released
from stadapter.benchmark.timing import Call, Case, Check, badness, relative_error, relative_errors
from stadapter.compiled import try_compiled
from stadapter.costs import saved_bytes
from stadapter.model import VideoClassifier

COMPILER = "inductor"
"""The backend of torch.compile."""
_CHECKPOINTED, _COMPILED = "gradient checkpointing", "compiled"
_AGAIN, _EXACT, _ROUNDED = 1e-3, 1e-4, 0.1
"""How far apart (relative, per tensor) a recomputed result may be, which is no further apart than two steps on a GPU;
a compiled one in fp32; and one in bf16."""


def cases(config: BenchmarkConfig, released: Released | None, device: torch.device) -> Iterator[Case]:
    """The first preset in every precision, and the copy of a batch to a GPU."""
    networks = make_networks(sizes_of(config, config.presets[0], device), device)
    for precision in config.precisions:
        yield _training_case(config, networks, precision)
        yield _inference_case(config, networks, precision)
    if device.type == "cuda":
        yield _copy_case(networks.clips(config.num_frames))


def _training_case(config: BenchmarkConfig, networks: Networks, precision: Precision) -> Case:
    clips, targets = networks.clips(config.num_frames), networks.targets(config.num_frames)
    models, notes = _variants(config, networks, precision, training=True)
    steps: dict[str, Call] = {name: training_step(model, clips, targets) for name, model in models.items()}
    facts: dict[str, Any] = {
        "clips": len(clips),
        "trained_parameters": models["ours"].count_parameters().trained,
        "saved_bytes": {
            name: saved_bytes(forward_pass(model, clips), model)
            for name, model in models.items()
            if _COMPILED not in name
        },
    }
    if networks.device.type == "cuda":
        facts["peak_bytes"] = {name: peak_bytes(step, models[name]) for name, step in steps.items()}
    products = [*forward_products(networks.sizes), *backward_products(networks.sizes)]
    return Case(
        "scale",
        f"training step, {config.presets[0]}, {precision}",
        ours=steps.pop("ours"),
        others=steps,
        floors={"matrix products": replay(products, DTYPES[precision], networks.device)},
        checks=lambda: _compare(models, clips, targets, precision),
        flops=flops(products),
        facts=facts,
        notes=notes,
    )


def _inference_case(config: BenchmarkConfig, networks: Networks, precision: Precision) -> Case:
    clips = networks.clips(config.num_frames)
    models, notes = _variants(config, networks, precision, training=False)
    calls = {name: inference(model, clips) for name, model in models.items()}
    products = forward_products(networks.sizes)

    def checks() -> list[Check]:
        exact = calls["ours"]()
        limit = _EXACT if precision == "fp32" else _ROUNDED
        return [Check(f"logits, {name}", relative_error(calls[name](), exact), limit, side=name) for name in others]

    others: dict[str, Call] = {name: call for name, call in calls.items() if name != "ours"}
    return Case(
        "scale",
        f"inference, {config.presets[0]}, {precision}",
        ours=calls["ours"],
        others=others,
        floors={"matrix products": replay(products, DTYPES[precision], networks.device)},
        checks=checks,
        flops=flops(products),
        facts={"clips": len(clips)},
        notes=notes,
    )


def _variants(
    config: BenchmarkConfig, networks: Networks, precision: Precision, *, training: bool
) -> tuple[dict[str, VideoClassifier], tuple[str, ...]]:
    """The same classifier as it is, recomputing blocks, compiled, and both; and what was not possible."""
    torch.compiler.reset()  # beyond 8 variants of one block over all cases, it would silently stop compiling
    ours = ready(networks.ours(), precision, training=training)
    models = {"ours": ours}
    if training:
        models[_CHECKPOINTED] = ready(networks.ours(), precision, training=True)
        models[_CHECKPOINTED].trunk.recompute_blocks()
    if networks.device.type == "cpu" and config.trunk != "tiny":
        return models, ("not compiled: on a CPU that gains nothing",)
    for name in [_COMPILED, f"{_COMPILED}, {_CHECKPOINTED}"] if training else [_COMPILED]:
        model = ready(networks.ours(), precision, training=training)
        if _CHECKPOINTED in name:
            model.trunk.recompute_blocks()
        reason = try_compiled(
            model,
            batch_sizes=[networks.sizes.num_images // config.num_frames],
            num_frames=config.num_frames,
            size=networks.sizes.image_size,
            training=training,
            backend=COMPILER,
        )
        if reason is not None:
            return models, (f"{name}: could not be compiled: {reason}",)
        models[name] = model
    return models, ()


def _compare(models: dict[str, VideoClassifier], clips: Tensor, targets: Tensor, precision: Precision) -> list[Check]:
    """The gradients of every variant against those of the first; the worst of each."""
    for model in models.values():
        training_step(model, clips, targets)()
    found = {name: gradients(model) for name, model in models.items()}
    expected = found.pop("ours")
    checks = []
    for name, ours in found.items():
        worst = max(relative_errors(ours, expected).values(), key=badness)
        limit = _AGAIN if name == _CHECKPOINTED else _EXACT if precision == "fp32" else _ROUNDED
        checks.append(Check(f"gradients, {name} (the worst of {len(expected)})", worst, limit, side=name))
    return checks


def _copy_case(clips: Tensor) -> Case:
    """Copying from pinned memory, as the training loop does, against memory that is not pinned."""
    plain = torch.zeros(clips.shape, dtype=torch.uint8)
    pinned = plain.pin_memory()
    return Case(
        "scale",
        "copying a batch of uint8 clips to the device",
        ours=lambda: pinned.to(clips.device, non_blocking=True),
        others={"from memory that is not pinned": lambda: plain.to(clips.device)},
        facts={"clips": len(clips), "bytes": plain.numel()},
    )
