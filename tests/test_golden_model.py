"""Logits and gradients of five small models, as the released implementation computes them.

The golden files hold the released code's weights, input, logits and gradients, in its own key names.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from golden import GOLDEN, make_golden_clip, part, read_golden, relative_error
from stadapter.backbones import view_model
from stadapter.model import VideoClassifier, build_model
from stadapter.tuning import STAdapter
from stadapter.vit import BackboneInfo

TOLERANCE = 1e-5


def our_name(released: str) -> str:
    """A released key of the task's weights to the name of the parameter here."""
    for theirs, ours in {
        "transformer.resblocks.": "trunk.blocks.",
        "adapter_pre_attn.": "before_attention.",
        "adapter_pre_mlp.": "before_mlp.",
        ".fc1.": ".down.",
        ".fc2.": ".up.",
    }.items():
        released = released.replace(theirs, ours)
    return f"head.classifier.{released.removeprefix('fc.')}" if released.startswith("fc.") else released


def build_golden(config: dict[str, Any], tensors: dict[str, Tensor]) -> VideoClassifier:
    vision = make_golden_clip(config, part(tensors, "backbone"))
    info = BackboneInfo(
        name="golden",
        family="clip_vision_model",
        revision=None,
        sha256="",
        image_size=config["resolution"],
        patch_size=config["patch"],
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    tuning = STAdapter(
        width=config["adapter_width"],
        kernel_size=tuple(config["kernel"]),
        before_attention=config["pre_attn"],
        before_mlp=config["pre_mlp"],
        last_blocks=config["adapter_layers"],
        activation=None,
        keep_unreachable=True,
    )
    labels = [str(index) for index in range(config["classes"])]
    model = build_model(backbone=view_model(vision, info), tuning=tuning, labels=labels)
    model.load_trained({our_name(key): value for key, value in part(tensors, "task").items()})
    return model.eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_and_every_gradient_equal_the_released_ones(shared: Path, name: str) -> None:
    config, tensors = read_golden(shared / "golden" / "model" / f"{name}.safetensors")
    model = build_golden(config, tensors)
    logits = model(tensors["input.video"].transpose(1, 2))  # (B, 3, T, H, W) -> (B, T, 3, H, W)
    loss = F.cross_entropy(logits, tensors["input.labels"])
    loss.backward()

    assert relative_error(logits, tensors["output.logits"]) < TOLERANCE
    assert loss.item() == pytest.approx(config["loss"], rel=TOLERANCE)
    golden = {our_name(key): value for key, value in part(tensors, "grad").items()}
    assert golden.keys() == model.trained_tensors().keys()
    for key, parameter in model.trained_tensors().items():
        if torch.count_nonzero(golden[key]):
            assert parameter.grad is not None, key
            assert relative_error(parameter.grad, golden[key]) < TOLERANCE, key
        else:
            assert parameter.grad is None or not torch.count_nonzero(parameter.grad), key


@pytest.mark.parametrize("name", ["pre_mlp", "both"])
def test_the_last_adapter_before_an_mlp_cannot_reach_the_golden_logits(shared: Path, name: str) -> None:
    config, tensors = read_golden(shared / "golden" / "model" / f"{name}.safetensors")
    model = build_golden(config, tensors)
    clips = tensors["input.video"].transpose(1, 2)
    before = model(clips)
    with torch.no_grad():
        for key, parameter in model.trained_tensors().items():
            if key.startswith(f"trunk.blocks.{config['layers'] - 1}.before_mlp."):
                parameter.normal_()
    assert torch.equal(model(clips), before)
