"""Weights of the released implementation: golden ones, with what it computes with them, and small ones made up."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

GOLDEN = ("pre_attn", "pre_mlp", "both", "k511_frames8", "last_layer_k333")


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


def relative_error(ours: Tensor, golden: Tensor) -> float:
    return ((ours.detach() - golden).norm() / golden.norm()).item()


def released_weights(trunk: Path) -> dict[str, Tensor]:
    """Adapters in the last two blocks of the tiny CLIP trunk, as the released code would save them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "fc1.weight": (8, 32),
        "fc1.bias": (8,),
        "conv.weight": (8, 1, 3, 1, 1),
        "conv.bias": (8,),
        "fc2.weight": (32, 8),
        "fc2.bias": (32,),
    }
    weights = {
        f"transformer.resblocks.{block}.adapter_pre_{point}.{name}": torch.randn(shape, generator=generator)
        for block in (1, 2)
        for point in ("attn", "mlp")
        for name, shape in shapes.items()
    }
    return weights | {"fc.weight": torch.randn(3, 32, generator=generator), "fc.bias": torch.zeros(3)}


def write_released(path: Path, weights: dict[str, Any]) -> Path:
    torch.save({"model": weights, "optimizer": {}, "lr_sched": {}, "loss_scaler": {}, "next_epoch": 50}, path)
    return path
