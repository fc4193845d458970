"""Load a pre-trained image ViT, from a local folder or the Hugging Face Hub, as a frozen `ImageViT`.

transformers does the loading (shards, key renames, dtypes); this module only knows, for each family, which modules of
the loaded model play which part.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stadapter.errors import BackboneError
from stadapter.hub import DEFAULT_BACKBONE, fetch_snapshot, is_hub_id
from stadapter.paths import expanded
from stadapter.vit import UNREAD_WEIGHTS, BackboneInfo, Block, ImageViT
from stadapter.wording import counted, listed

EMBEDDED_BACKBONE = "tiny"
"""The trunk that comes with the package: 3.6 million parameters, 64 pixels, pre-trained on the still images of CIFAR-10
(experiments/tiny_backbone.py). For first steps and tests; real clips deserve a larger trunk."""

Triple = tuple[float, float, float]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Family:
    """How the modules of one transformers family map to the parts of an `ImageViT`."""

    model_class: str
    layers: str
    norm: str
    block: dict[str, str]
    """From our name for a piece of a block to its name in the family's layer."""
    mean: Triple
    std: Triple
    pre_norm: str | None = None
    rotary: str | None = None
    has_class_token: bool = True
    asks_to_interpolate: bool = False
    """Whether its embeddings take `interpolate_pos_encoding`."""
    build_options: dict[str, Any] = field(default_factory=dict)
    config_options: dict[str, Any] = field(default_factory=dict)


_CLIP_BLOCK = {"norm1": "layer_norm1", "attention": "self_attn", "norm2": "layer_norm2", "mlp": "mlp"}
_DINO_BLOCK = {
    "norm1": "norm1",
    "attention": "attention",
    "scale1": "layer_scale1",
    "norm2": "norm2",
    "mlp": "mlp",
    "scale2": "layer_scale2",
}
_VIT_BLOCK = {"norm1": "layernorm_before", "attention": "attention", "norm2": "layernorm_after", "mlp": "mlp"}

FAMILIES: dict[str, Family] = {
    "clip_vision_model": Family(
        "CLIPVisionModel",
        "encoder.layers",
        "post_layernorm",
        _CLIP_BLOCK,
        CLIP_MEAN,
        CLIP_STD,
        pre_norm="pre_layrnorm",
        asks_to_interpolate=True,
    ),
    "siglip_vision_model": Family(
        "SiglipVisionModel",
        "encoder.layers",
        "post_layernorm",
        _CLIP_BLOCK,
        HALF,
        HALF,
        has_class_token=False,
        asks_to_interpolate=True,
        config_options={"vision_use_head": False},
    ),
    "dinov2": Family("Dinov2Model", "encoder.layer", "layernorm", _DINO_BLOCK, IMAGENET_MEAN, IMAGENET_STD),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel", "encoder.layer", "layernorm", _DINO_BLOCK, IMAGENET_MEAN, IMAGENET_STD
    ),
    "dinov3_vit": Family(
        "DINOv3ViTModel", "model.layer", "norm", _DINO_BLOCK, IMAGENET_MEAN, IMAGENET_STD, rotary="rope_embeddings"
    ),
    "vit": Family(
        "ViTModel",
        "layers",
        "layernorm",
        _VIT_BLOCK,
        HALF,
        HALF,
        asks_to_interpolate=True,
        build_options={"add_pooling_layer": False},
    ),
}
_TOWER_OF = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""From two-tower families to the family of their `vision_config`."""


def load_backbone(name_or_path: str | os.PathLike[str]) -> ImageViT:
    """Load a frozen image trunk in fp32.

    Args:
        name_or_path: a folder in Hugging Face layout (config.json + model.safetensors), or a Hub id such as
            "facebook/dinov2-small", optionally followed by "@" and a branch, tag or commit to ask for that revision.
            Families: CLIP, SigLIP, DINOv2 (with and without registers), DINOv3, ViT.
            "tiny" is the small trunk that comes with the package; write "./tiny" for a folder of that name.

    Raises:
        BackboneError: nothing there, no weights, missing weights, a family or a model this package cannot view,
            or a Hub that does not answer.
    """
    name, folder, revision = _locate(name_or_path)
    if not (folder / "config.json").is_file():
        raise BackboneError(
            f"{name_or_path} has no config.json; expected a folder with config.json and model.safetensors"
        )
    config = _read_json(folder / "config.json")
    family_name = _family_name(config, name_or_path)
    family = FAMILIES[family_name]
    model = _load_model(family, folder, name_or_path)
    model_config: Any = model.config
    mean, std, image_size = _preprocessing(folder, family, model_config)
    info = BackboneInfo(
        name=name,
        family=family_name,
        revision=revision,
        sha256="",
        image_size=image_size,
        patch_size=_square(model_config.patch_size),
        mean=mean,
        std=std,
    )
    return view_model(model, info)


def view_model(model: nn.Module, info: BackboneInfo) -> ImageViT:
    """View a loaded transformers vision model as an `ImageViT`; the model's own modules are used, not copied.

    `info.sha256` is computed here if it is empty.
    """
    family = FAMILIES[info.family]
    config: Any = model.config
    vit = ImageViT(
        embeddings=model.get_submodule("embeddings"),
        embed=_embed_any_size if family.asks_to_interpolate else _embed,
        pre_norm=_part(model, family.pre_norm),
        blocks=[_block(layer, family) for layer in model.get_submodule(family.layers).children()],
        norm=model.get_submodule(family.norm),
        rotary=_part(model, family.rotary),
        num_prefix=int(family.has_class_token) + int(getattr(config, "num_register_tokens", 0)),
        has_class_token=family.has_class_token,
        width=int(config.hidden_size),
        info=info,
    )
    if not info.sha256:
        vit.info = replace(info, sha256=hash_weights(vit))
    return vit


def hash_weights(vit: ImageViT) -> str:
    """sha256 over sorted (name, shape, fp32 bytes) of a trunk's weights, as loaded.

    Shards, key prefixes and half-precision copies of the same values give the same hash. Call it before anything is
    inserted into the trunk.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(vit.state_dict().items()):
        if name.rsplit(".", 1)[-1] in UNREAD_WEIGHTS:
            continue
        digest.update(f"{name}:{tuple(tensor.shape)}:".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _embed(embeddings: nn.Module, images: Tensor) -> Tensor:
    tokens: Tensor = embeddings(images)
    return tokens


def _embed_any_size(embeddings: nn.Module, images: Tensor) -> Tensor:
    tokens: Tensor = embeddings(images, interpolate_pos_encoding=True)
    return tokens


def _part(model: nn.Module, name: str | None) -> nn.Module | None:
    return model.get_submodule(name) if name is not None else None


def _block(layer: nn.Module, family: Family) -> Block:
    return Block(**{ours: layer.get_submodule(theirs) for ours, theirs in family.block.items()})


def _locate(name_or_path: str | os.PathLike[str]) -> tuple[str, Path, str | None]:
    """A trunk's name, made valid in every working directory, its folder, and its Hub revision if any."""
    name = str(name_or_path)
    if name_or_path == EMBEDDED_BACKBONE:
        return name, Path(__file__).parent / EMBEDDED_BACKBONE, None
    path = expanded(name)
    needed = ("config.json", "model.safetensors")
    if name and path.is_dir():
        return str(path.absolute()), path, None
    if name and path.exists():
        raise BackboneError(f"{name} is a file; expected a folder with {' and '.join(needed)}, or a Hub id")
    if not is_hub_id(name):
        raise BackboneError(
            f"no folder {name}; give a folder with {' and '.join(needed)}, a Hub id such as {DEFAULT_BACKBONE}, "
            f"or {EMBEDDED_BACKBONE} for first steps"
        )
    folder = fetch_snapshot(name, _trunk_patterns, needed=needed)
    return name.partition("@")[0], folder, folder.name


def _trunk_patterns(files: Sequence[str]) -> list[str]:
    """Configurations and weights; pickled weights, which transformers reads with weights_only=True, if no others."""
    pickled = not any(file.endswith(".safetensors") for file in files)
    return ["*.json", "pytorch_model*.bin" if pickled else "*.safetensors"]


def _family_name(config: dict[str, Any], name: str | os.PathLike[str]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise BackboneError(f"{name}: its config.json names no model_type; expected a model saved by transformers")
    family_name = _TOWER_OF.get(model_type, model_type)
    if family_name in FAMILIES:
        return family_name
    supported = "CLIP, SigLIP, DINOv2, DINOv2 with registers, DINOv3 and ViT"
    if "vocab_size" in config and "vision_config" not in config:
        raise BackboneError(f"{name} is a text-only model ({model_type}); expected an image trunk: {supported}")
    raise BackboneError(f"{name} is of the family {model_type!r}, which is not supported; expected one of {supported}")


def _load_model(family: Family, folder: Path, name: str | os.PathLike[str]) -> nn.Module:
    import transformers

    if not any(folder.glob("*.safetensors")) and not any(folder.glob("pytorch_model*.bin")):
        raise BackboneError(f"{name} has a config.json but no weights; expected model.safetensors next to it")
    model_class = getattr(transformers, family.model_class)
    try:
        with quiet_loading():
            config = model_class.config_class.from_pretrained(folder, **family.config_options)
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                local_files_only=True,
                output_loading_info=True,
                **family.build_options,
            )
    except Exception as error:
        # transformers and safetensors raise many types for a damaged or mismatched file.
        raise BackboneError(f"{name} could not be loaded as {family.model_class}: {error}") from error
    missing = sorted(key for key in report["missing_keys"] if key.rsplit(".", 1)[-1] not in UNREAD_WEIGHTS)
    if missing:
        raise BackboneError(
            f"{name} lacks {counted(len(missing), 'weight')} of {family.model_class}: {listed(missing)}; "
            "is it a whole checkpoint?"
        )
    loaded: nn.Module = model.eval()
    return loaded


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Suppress transformers' own bars and advice while it loads or saves, then restore the user's settings."""
    from transformers.utils import logging as untyped_logging

    logging: Any = untyped_logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _preprocessing(folder: Path, family: Family, config: Any) -> tuple[Triple, Triple, int]:
    """Mean, std and native size, from the checkpoint's image processor if it has one, or the family's defaults."""
    # Read as JSON: the processor class of DINOv3 would import torchvision.
    path, settings = folder / "preprocessor_config.json", {}
    if path.is_file():
        settings = _read_json(path)
    elif (folder / "processor_config.json").is_file():
        # Here transformers 5 writes the image processor of a two-tower model.
        path = folder / "processor_config.json"
        settings = _read_json(path).get("image_processor", {})
    crop = settings.get("crop_size") if settings.get("do_center_crop", True) else None
    try:
        return (
            _triple(settings.get("image_mean"), family.mean),
            _triple(settings.get("image_std"), family.std),
            _square(crop if crop is not None else config.image_size),
        )
    except (TypeError, ValueError, KeyError) as error:
        raise BackboneError(f"{path}: image_mean, image_std or crop_size cannot be read: {error}") from error


def _triple(values: Any, default: Triple) -> Triple:
    if values is None:
        return default
    red, green, blue = values
    return float(red), float(green), float(blue)


def _square(size: Any) -> int:
    """One side of a square given as a number, a pair, or {"height", "width"} / {"shortest_edge"}."""
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size["shortest_edge"]
    sides = {int(side) for side in size} if isinstance(size, list | tuple) else {int(size)}
    if len(sides) != 1:
        raise ValueError(f"{size} is not square")
    return sides.pop()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BackboneError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content
