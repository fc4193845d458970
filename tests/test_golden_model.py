"""Logits and gradients of five small models, as the released implementation computes them.

The golden files hold the released code's weights, input, logits and gradients, in its own key names.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from stadapter.backbones import view_model
from stadapter.model import VideoClassifier, build_model
from stadapter.tuning import STAdapter
from stadapter.vit import BackboneInfo

GOLDEN = ("pre_attn", "pre_mlp", "both", "k511_frames8", "last_layer_k333")
TOLERANCE = 1e-5


def read_golden(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def clip_from_openai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI CLIP's names of the vision tower to those of transformers."""
    renamed = {
        "embeddings.class_embedding": weights["class_embedding"],
        "embeddings.patch_embedding.weight": weights["conv1.weight"],
        "embeddings.position_embedding.weight": weights["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        renamed[f"pre_layrnorm.{kind}"] = weights[f"ln_pre.{kind}"]
        renamed[f"post_layernorm.{kind}"] = weights[f"ln_post.{kind}"]
    pieces = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    num_layers = 1 + max(int(key.split(".")[2]) for key in weights if key.startswith("transformer."))
    for index in range(num_layers):
        theirs, ours = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            for their_piece, our_piece in pieces.items():
                renamed[f"{ours}.{our_piece}.{kind}"] = weights[f"{theirs}.{their_piece}.{kind}"]
            joint = weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            for projection, value in zip("qkv", joint, strict=True):
                renamed[f"{ours}.self_attn.{projection}_proj.{kind}"] = value
    return renamed


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


def make_golden_clip(config: dict[str, Any], weights: dict[str, Tensor]) -> CLIPVisionModel:
    """The golden trunk as transformers has it, from weights in OpenAI CLIP's key names."""
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config["width"],
            intermediate_size=4 * config["width"],
            num_hidden_layers=config["layers"],
            num_attention_heads=config["heads"],
            image_size=config["resolution"],
            patch_size=config["patch"],
            hidden_act="quick_gelu",
        )
    )
    vision.load_state_dict(clip_from_openai(weights))
    return vision


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


def relative_error(ours: Tensor, golden: Tensor) -> float:
    return ((ours.detach() - golden).norm() / golden.norm()).item()


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
