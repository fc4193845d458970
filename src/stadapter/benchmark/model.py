"""The whole model: inference and a training step, for each preset and precision."""

# B batch, T frames, H W pixels

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from stadapter.benchmark.config import BenchmarkConfig, Precision, Preset
from stadapter.benchmark.floors import backward_products, bare, flops, forward_products, replay
from stadapter.benchmark.networks import (
    DTYPES,
    Networks,
    autocast_dtype,
    forward_pass,
    gradients,
    inference,
    make_networks,
    peak_bytes,
    ready,
    released_step,
    released_title,
    runs_in_half,
    sizes_of,
    training_step,
)
from stadapter.benchmark.released import Released
from stadapter.benchmark.timing import Call, Case, Check, badness, relative_error, relative_errors
from stadapter.convert import released_name
from stadapter.costs import saved_bytes
from stadapter.model import VideoClassifier, fastest_attention

_EXACT, _ROUNDED = 1e-5, 5e-2
"""How far apart two fp32 computations of the same thing may be, and bf16 from fp32 (relative, per tensor)."""
_ROUNDED_GRADIENT = 0.1
"""The same for a single gradient in bf16: 0.015 was measured at the size of ViT-B/16, a bug gives 1 or more."""
_KERNELS = {"sdpa": "with fused attention", "eager": "with attention by plain products"}


def cases(config: BenchmarkConfig, released: Released | None, device: torch.device) -> Iterator[Case]:
    """Inference and a training step for every preset and precision."""
    for preset in config.presets:
        networks = make_networks(sizes_of(config, preset, device), device)
        for precision in config.precisions:
            yield _inference_case(config, networks, released, preset, precision)
            yield _training_case(config, networks, released, preset, precision)


def _inference_case(
    config: BenchmarkConfig, networks: Networks, released: Released | None, preset: Preset, precision: Precision
) -> Case:
    clips, half = networks.clips(config.num_frames), runs_in_half(networks.device, precision)
    model = ready(networks.ours(), precision, training=False)
    trunk = ready(networks.ours(adapted=False), precision, training=False)
    others: dict[str, Call] = {}
    if released is not None:
        theirs = networks.released(released, half=half).eval()
        their_clips = clips.transpose(1, 2).contiguous()  # (B, 3, T, H, W)
        others[released_title(half)] = inference(theirs, their_clips, torch.float16 if half else None)
    dtype = autocast_dtype(precision)
    products = forward_products(networks.sizes)
    return Case(
        "model",
        f"inference, {preset}, {precision}",
        ours=inference(model, clips, dtype),
        others=others,
        floors={
            "matrix products": replay(products, DTYPES[precision], networks.device),
            "the bare trunk": inference(trunk, clips, dtype),
        },
        checks=lambda: _compare_logits(config, networks, released, model, precision),
        flops=flops(products),
        facts={"clips": len(clips), "bare_trunk_flops": flops(forward_products(bare(networks.sizes)))},
    )


def _training_case(
    config: BenchmarkConfig, networks: Networks, released: Released | None, preset: Preset, precision: Precision
) -> Case:
    clips, targets = networks.clips(config.num_frames), networks.targets(config.num_frames)
    half = runs_in_half(networks.device, precision)
    model = ready(networks.ours(), precision, training=True)
    steps: dict[str, Call] = {"ours": training_step(model, clips, targets)}
    held: dict[str, nn.Module] = {"ours": model}
    facts: dict[str, Any] = {
        "clips": len(clips),
        "saved_bytes": {"ours": saved_bytes(forward_pass(model, clips), model)},
    }
    if released is not None:
        theirs = networks.released(released, half=half)
        their_clips = clips.transpose(1, 2).contiguous()
        step = released_step(theirs, half=half)
        title, forward = released_title(half), forward_pass(theirs, their_clips, torch.float16 if half else None)
        steps[title] = lambda: step(their_clips, targets[:, 0])
        held[title] = theirs
        facts["saved_bytes"][title] = saved_bytes(forward, theirs)
    steps.update(_with_the_other_attention(model, steps["ours"], networks.device, precision))
    if networks.device.type == "cuda":
        facts["peak_bytes"] = {name: peak_bytes(steps[name], network) for name, network in held.items()}
    products = [*forward_products(networks.sizes), *backward_products(networks.sizes)]
    return Case(
        "model",
        f"training step, {preset}, {precision}",
        ours=steps.pop("ours"),
        others=steps,
        floors={"matrix products": replay(products, DTYPES[precision], networks.device)},
        checks=lambda: _compare_gradients(config, networks, released, precision),
        flops=flops(products),
        facts=facts,
    )


def _with_the_other_attention(
    model: VideoClassifier, step: Call, device: torch.device, precision: Precision
) -> dict[str, Call]:
    """The step with the attention kernel that is not the default for this device and precision."""
    chosen = fastest_attention(device, autocast_dtype(precision))
    other: Literal["sdpa", "eager"] = "eager" if chosen == "sdpa" else "sdpa"

    def run() -> None:
        model.trunk.use_attention(other)
        step()
        model.trunk.use_attention(chosen)

    return {f"ours, {_KERNELS[other]}": run}


def _compare_logits(
    config: BenchmarkConfig,
    networks: Networks,
    released: Released | None,
    model: VideoClassifier,
    precision: Precision,
) -> list[Check]:
    clips = networks.clips(config.num_frames)
    exact = networks.ours().eval()
    logits = inference(exact, clips)()
    trunk = networks.ours(adapted=False).trunk
    vision = networks.vision.to(networks.device)  # tensors made in inference mode cannot be trained on
    with torch.inference_mode():
        images = clips.flatten(0, 1)  # (B*T, 3, H, W)
        theirs = vision(images).last_hidden_state
        tokens = trunk(clips).flatten(0, 1)
    checks = [Check("tokens of the bare trunk, against transformers", relative_error(tokens, theirs), _EXACT)]
    if released is not None:
        their_logits = inference(networks.released(released, half=False).eval(), clips.transpose(1, 2))()
        checks.append(Check("logits, fp32, against released", relative_error(logits, their_logits), _EXACT))
    if precision != "fp32":
        rounded = inference(model, clips, DTYPES[precision])()
        checks.append(Check(f"logits, {precision} against fp32", relative_error(rounded, logits), _ROUNDED))
    return checks


def _compare_gradients(
    config: BenchmarkConfig, networks: Networks, released: Released | None, precision: Precision
) -> list[Check]:
    """The loss and the gradient of every trained tensor, in eval mode: dropout would differ."""
    clips, targets = networks.clips(config.num_frames), networks.targets(config.num_frames)
    exact = ready(networks.ours(), "fp32", training=True).eval()
    training_step(exact, clips, targets)()
    expected = gradients(exact)
    checks: list[Check] = []
    if released is not None:
        theirs = networks.released(released, half=False)
        step = released_step(theirs, half=False)
        theirs.eval()
        step(clips.transpose(1, 2), targets[:, 0])
        their_gradients = gradients(theirs)
        renamed = {name: their_gradients[released_name(name)] for name in expected}
        checks += [
            Check(f"gradient of {name}, fp32, against released", error, _EXACT)
            for name, error in relative_errors(expected, renamed).items()
        ]
    if precision != "fp32":
        rounded = ready(networks.ours(), precision, training=True).eval()
        training_step(rounded, clips, targets)()
        checks += [
            Check(f"gradient of {name}, {precision} against fp32", error, _ROUNDED_GRADIENT)
            for name, error in relative_errors(gradients(rounded), expected).items()
        ]
    else:
        plain = networks.ours().eval()
        plain.trunk.use_attention("eager")
        training_step(plain, clips, targets)()
        checks += [
            Check(f"gradient of {name}, with plain products in attention", error, _EXACT)
            for name, error in relative_errors(gradients(plain), expected).items()
        ]
    return _worst(checks)


def _worst(checks: Sequence[Check]) -> list[Check]:
    """The worst of each kind of check, and how many of them there were."""
    kinds: dict[str, list[Check]] = {}
    for check in checks:
        kinds.setdefault(check.what.split(", ", 1)[1], []).append(check)
    worst = {kind: max(members, key=lambda check: badness(check.error)) for kind, members in kinds.items()}
    return [
        Check(f"{check.what} (the worst of {len(kinds[kind])})", check.error, check.limit)
        for kind, check in worst.items()
    ]
