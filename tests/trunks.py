"""Tiny trunks with random weights, one of every family: as transformers models, in a folder, or viewed."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from stadapter.backbones import view_model
from stadapter.vit import BackboneInfo, ImageViT

FAMILIES = ("clip", "siglip", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
IMAGE_SIZE, PATCH_SIZE, WIDTH, NUM_BLOCKS, NUM_HEADS = 16, 4, 32, 3, 4
_SIZES = {
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "hidden_size": WIDTH,
    "num_hidden_layers": NUM_BLOCKS,
    "num_attention_heads": NUM_HEADS,
}
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 8,
}
_MODEL_TYPES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def make_model(family: str, *, seed: int = 0, num_blocks: int = NUM_BLOCKS) -> Any:
    """The vision model of a family, fp32, in eval mode; every weight random, so that none can hide."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _randomise(_BUILDERS[family](_SIZES | {"num_hidden_layers": num_blocks}))


def make_two_towers(family: str, *, seed: int = 0) -> Any:
    """CLIP or SigLIP with its text tower; its vision tower holds the weights of `make_model`."""
    vision = {**_SIZES, "intermediate_size": 48}
    config = {
        "clip": lambda: transformers.CLIPConfig(text_config=_TEXT, vision_config=vision, projection_dim=16),
        "siglip": lambda: transformers.SiglipConfig(text_config=_TEXT, vision_config=vision),
    }[family]()
    model_class: Any = transformers.CLIPModel if family == "clip" else transformers.SiglipModel
    model = model_class(config)
    model.vision_model.load_state_dict(make_model(family, seed=seed).state_dict())
    return model.eval()


def make_trunk(family: str, *, seed: int = 0, num_blocks: int = NUM_BLOCKS) -> ImageViT:
    """`make_model`, viewed."""
    return view(make_model(family, seed=seed, num_blocks=num_blocks), family)


def view(model: Any, family: str) -> ImageViT:
    """View a model of `make_model`."""
    return view_model(
        model,
        BackboneInfo(
            name=f"tiny-{family}",
            family=_MODEL_TYPES.get(family, family),
            revision=None,
            sha256="",
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            mean=(0.5, 0.4, 0.3),
            std=(0.2, 0.3, 0.4),
        ),
    )


def save_trunk(folder: Path, family: str, *, seed: int = 0, num_blocks: int = NUM_BLOCKS) -> Path:
    """A folder that `load_backbone` takes, holding the weights of `make_model`."""
    make_model(family, seed=seed, num_blocks=num_blocks).save_pretrained(folder)
    return folder


def make_clips(*, batch: int = 2, num_frames: int = 3, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    """Random normalised clips (B, T, 3, H, W)."""
    return torch.randn(batch, num_frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _randomise(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval().requires_grad_(False)


_BUILDERS = {
    "clip": lambda sizes: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, intermediate_size=48)),
    "siglip": lambda sizes: transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(**sizes, intermediate_size=48)
    ),
    "dinov2": lambda sizes: transformers.Dinov2Model(transformers.Dinov2Config(**sizes)),
    "dinov2_with_registers": lambda sizes: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=2)
    ),
    "dinov3_vit": lambda sizes: transformers.DINOv3ViTModel(
        transformers.DINOv3ViTConfig(**sizes, intermediate_size=48, num_register_tokens=2)
    ),
    "vit": lambda sizes: transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=48)),
}
