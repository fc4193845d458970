"""The released implementation, imported from a checkout of it, to run next to this program in the same process.

Nothing of it is in this package. Its settings file is replaced by a stand-in, and so is torchvision if that is not
installed: the measured paths import it but call nothing in it.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from stadapter.convert import RELEASED_NAMES, released_name
from stadapter.errors import SettingsError
from stadapter.paths import expanded
from stadapter.wording import first_line

_SETTINGS = {"CLIP_VIT_B16_PATH": "", "CLIP_VIT_L14_PATH": "", "DWCONV3D_DISABLE_CUDNN": True}
"""The values of its configs.py.example."""
_STOOD_IN = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


@dataclass(frozen=True)
class Released:
    """The parts of the released code that could be imported."""

    models: Any
    """Its module of models."""
    clips: Any
    """Its module of the data set; None if it cannot be imported."""
    transform: Any
    """Its module of transforms."""
    notes: tuple[str, ...]
    """What could not be imported or needed a stand-in, and why."""


def import_released(folder: str | Path) -> Released:
    """Import a checkout of the released code; the modules of this process are unchanged afterwards.

    Raises:
        SettingsError: the folder is not such a checkout, or its models cannot be imported.
    """
    folder = expanded(folder).absolute()
    if not (folder / "models_adapter.py").is_file():
        raise SettingsError(
            f"{folder} has no models_adapter.py; expected a checkout of github.com/linziyi96/st-adapter"
        )
    configs = ModuleType("configs")
    vars(configs).update(_SETTINGS)
    notes = ["its main.py needs NCCL and CUDA: only what its training loop does in a step is measured"]
    stand_ins: dict[str, ModuleType] = {"configs": configs}
    if importlib.util.find_spec("torchvision") is None:
        stand_ins |= {name: _Absent(name) for name in _STOOD_IN}
        for name in _STOOD_IN[1:]:
            parent, _, child = name.rpartition(".")
            setattr(stand_ins[parent], child, stand_ins[name])
        notes.append("torchvision is not installed: its data set is imported without it, its RandAugment cannot run")
    with _in_place(stand_ins):
        try:
            models = _load("models_adapter", folder / "models_adapter.py")
        except Exception as error:
            # Foreign code may fail in any way, above all with other versions of what it imports.
            raise SettingsError(f"{folder}/models_adapter.py cannot be imported: {first_line(error)}") from error
        clips = transform = None
        try:
            package = _load("video_dataset", folder / "video_dataset" / "__init__.py")
            clips, transform = package.dataset, package.transform
        except Exception as error:  # likewise
            notes.append(f"video_dataset cannot be imported ({type(error).__name__}: {first_line(error)})")
    return Released(models, clips, transform, tuple(notes))


def released_adapter(released: Released, adapter: nn.Module, *, width: int, bottleneck: int) -> Any:
    """Their adapter with the weights of ours."""
    kernel: Any = adapter.get_submodule("conv")
    theirs = released.models.Adapter(width, bottleneck, tuple(kernel.kernel_size))
    ours = {tuple(name.split(".")): value for name, value in adapter.state_dict().items()}
    theirs.load_state_dict({f"{RELEASED_NAMES[piece]}.{kind}": value for (piece, kind), value in ours.items()})
    return theirs.to(next(adapter.parameters()).device)


def released_model(
    released: Released,
    weights: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    *,
    sizes: Any,
    num_classes: int,
) -> Any:
    """Their model with the weights of a transformers CLIP vision model and the trained tensors of ours, in fp32.

    An adapter that ours leaves out, because it cannot reach the class token, starts as the identity.
    """
    model = released.models.VisionTransformer(
        input_resolution=sizes.image_size,
        patch_size=sizes.patch_size,
        width=sizes.width,
        layers=sizes.num_blocks,
        heads=sizes.num_heads,
        num_classes=num_classes,
        adapter_width=sizes.bottleneck,
        adapter_layers=sizes.num_blocks,
        adapter_kernel_size=(3, 1, 1),
        adapter_pre_attn=sizes.before_attention,
        adapter_pre_mlp=sizes.before_mlp,
    ).float()
    tensors = _openai_names(weights, sizes.num_blocks)
    tensors |= {released_name(name): value for name, value in trained.items()}
    missing, unknown = model.load_state_dict(tensors, strict=False)
    last = f"transformer.resblocks.{sizes.num_blocks - 1}.adapter_pre_mlp."
    assert not unknown, unknown
    assert all(name.startswith(last) for name in missing), missing
    return model


def _openai_names(weights: Mapping[str, Tensor], num_blocks: int) -> dict[str, Tensor]:
    """The vision tower of a CLIP model by OpenAI's names, as in the released code."""
    renamed = {
        "class_embedding": weights["embeddings.class_embedding"],
        "conv1.weight": weights["embeddings.patch_embedding.weight"],
        "positional_embedding": weights["embeddings.position_embedding.weight"],
    }
    pieces = {
        "attn.out_proj": "self_attn.out_proj",
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for kind in ("weight", "bias"):
        renamed[f"ln_pre.{kind}"] = weights[f"pre_layrnorm.{kind}"]
        renamed[f"ln_post.{kind}"] = weights[f"post_layernorm.{kind}"]
        for index in range(num_blocks):
            theirs, ours = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
            joint = [weights[f"{ours}.self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            renamed[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(joint)
            for their_piece, our_piece in pieces.items():
                renamed[f"{theirs}.{their_piece}.{kind}"] = weights[f"{ours}.{our_piece}.{kind}"]
    return renamed


def _load(name: str, path: Path) -> Any:
    is_package = path.name == "__init__.py"
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)] if is_package else None
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class _Absent(ModuleType):
    """Stands in for a module that is not installed: importing it works, using it does not."""

    __path__: list[str] = []  # noqa: RUF012  an import system's protocol

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.__name__}.{name}: {self.__name__} is not installed")


@contextmanager
def _in_place(modules: Mapping[str, ModuleType]) -> Iterator[None]:
    """Make modules importable while others are imported; afterwards everything is as it was."""
    before = dict(sys.modules)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            if name in modules or name == "models_adapter" or name.split(".")[0] == "video_dataset":
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in modules if name in before})
