"""Turn a checkpoint of the released ST-Adapter code into a run folder.

The released code saves what it trained, under the names of its own CLIP model:

    transformer.resblocks.{block}.adapter_pre_attn.{fc1,conv,fc2}.{weight,bias}    adapter before attention
    transformer.resblocks.{block}.adapter_pre_mlp.{fc1,conv,fc2}.{weight,bias}     adapter before the MLP
    fc.{weight,bias}                                                               classifier

Weights of the trunk are not among them; a checkpoint that holds any is refused, since they may have been trained.
"""

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from stadapter.artefact import save_artefact
from stadapter.backbones import load_backbone
from stadapter.clips import ClipConfig
from stadapter.errors import ArtefactError, SettingsError
from stadapter.model import VideoClassifier, build_model
from stadapter.paths import expanded
from stadapter.training.recipes import RECIPES
from stadapter.training.settings import TrainConfig
from stadapter.tuning import STAdapter
from stadapter.vit import ImageViT
from stadapter.wording import first_line, listed

RELEASED_NAMES = {
    "before_attention": "adapter_pre_attn",
    "before_mlp": "adapter_pre_mlp",
    "down": "fc1",
    "conv": "conv",
    "up": "fc2",
}
"""Our names of the places of adapters and of their layers -> the released names."""
_OURS = re.compile(r"trunk\.blocks\.(\d+)\.(before_attention|before_mlp)\.(down|conv|up)\.(weight|bias)")
_RELEASED = re.compile(r"transformer\.resblocks\.(\d+)\.(adapter_pre_attn|adapter_pre_mlp)\.(fc1|conv|fc2)\.weight")
_DIMENSIONS = {"fc1": 2, "conv": 5, "fc2": 2, "fc": 2}
"""Number of dimensions of each piece's weights: (A, D), (A, 1, t, h, w), (D, A) and (C, D)."""
_WRAPPED = "module."
"""What distributed training puts before every name."""


def convert_released(
    checkpoint: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    backbone: ImageViT | str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    recipe: str | None = None,
    num_frames: int | None = None,
    size: int | None = None,
    stride_frames: int | None = None,
    num_temporal_views: int | None = None,
    num_spatial_views: int | None = None,
) -> Path:
    """Write a run folder from a released `*.pth` checkpoint, and return it.

    The adapters' width, kernel and places are read from the checkpoint. The clips it was tested with are not in a
    checkpoint: they come from a recipe, or are given here.

    Args:
        checkpoint: the file; it is read without running any code in it.
        out: run folder to create; an existing one is refused.
        backbone: the CLIP trunk it was trained on: a Hub id, a folder, or a loaded trunk; default: the recipe's.
        labels: class names in the order of the classifier; default: "0", "1" …
        recipe: the published run it comes from, such as "k400-b16": its trunk and test views are the defaults below.
        num_frames: frames per clip; default: the recipe's, else 8.
        size: side of a clip in pixels; default: the trunk's own, the only one the released code knows.
        stride_frames: distance between frames; default: the recipe's, else spread over the whole video.
        num_temporal_views: clips along time to average; default: the recipe's, else 1.
        num_spatial_views: crops to average, 1 or 3; default: the recipe's, else 1.

    Raises:
        ArtefactError: not a released checkpoint, unknown or missing keys, sizes that do not fit the trunk, adapters
            in other places than the recipe's, or an existing `out`.
        BackboneError: the trunk cannot be loaded.
        SettingsError: an unknown recipe, neither recipe nor trunk, a wrong number of labels, or invalid clip settings.
    """
    checkpoint, out = expanded(checkpoint), expanded(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtefactError(f"{out} exists; expected a new folder: choose another, or remove it")
    published = _published(recipe)
    tensors = read_released(checkpoint)
    _check_readable(checkpoint, tensors)
    _check_places(checkpoint, tensors, recipe, published)
    trunk = _trunk(backbone, published)
    _check_fits(checkpoint, tensors, trunk)
    labels = _checked_labels(checkpoint, tensors, labels)
    given = {
        "num_frames": num_frames,
        "stride_frames": stride_frames,
        "num_temporal_views": num_temporal_views,
        "num_spatial_views": num_spatial_views,
    }
    clip_config = _released_clips(trunk, size, published, given)
    model = build_model(backbone=trunk, labels=labels, tuning=infer_tuning(tensors, num_blocks=len(trunk.blocks)))
    model.load_trained(_renamed(checkpoint, tensors, model))
    receipt = {"converted_from": checkpoint.name} | ({"recipe": recipe} if recipe is not None else {})
    return save_artefact(out, model, clip_config, receipt=receipt)


def read_released(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a released checkpoint by their released names, on the CPU.

    Raises:
        ArtefactError: missing, damaged, not a checkpoint, or one that would run code when read.
    """
    path = expanded(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise ArtefactError(f"{path}: {what}; expected a checkpoint of the released code (*.pth)")
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # it warns of what it then refuses
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
        _check_sums(path)
    except Exception as error:
        # Each kind of damage to a file has its own exception type here. What torch says about untrusted content ends in
        # the advice to trust it, which would run what is in there; a KeyError says only a number.
        reason = "" if isinstance(error, UnpicklingError | KeyError) else f" ({first_line(error).partition('. ')[0]})"
        raise ArtefactError(
            f"{path} is damaged or something else{reason}; "
            "expected a checkpoint of the released code, with nothing but tensors (*.pth)"
        ) from error
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise ArtefactError(f'{path} holds no dict of tensors; expected one, directly or under "model"')
    if tensors and all(name.startswith(_WRAPPED) for name in tensors):
        return {name.removeprefix(_WRAPPED): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _check_sums(path: Path) -> None:
    """Refuse a checkpoint whose bytes have changed since it was saved, which `torch.load` does not notice.

    Raises:
        BadZipFile: a piece does not match its CRC-32.
    """
    if not is_zipfile(path):
        return  # the format before torch 1.6 has none
    with ZipFile(path) as archive:
        has_sums = any(piece.CRC for piece in archive.infolist())  # torch can be told to leave them out
        if has_sums and (changed := archive.testzip()) is not None:
            raise BadZipFile(f"{changed} does not match its checksum")


def infer_tuning(tensors: Mapping[str, Tensor], *, num_blocks: int) -> STAdapter:
    """The strategy that made adapters with these released names, on a trunk of `num_blocks` blocks."""
    pieces = _pieces(tensors)
    convolution = next(tensors[name] for name, piece in pieces.items() if piece == "conv")  # (A, 1, t, h, w)
    time, height, width = (int(side) for side in convolution.shape[2:])
    blocks, points = {int(name.split(".")[2]) for name in pieces}, _points(tensors)
    return STAdapter(
        width=int(convolution.shape[0]),
        kernel_size=(time, height, width),
        before_attention="adapter_pre_attn" in points,
        before_mlp="adapter_pre_mlp" in points,
        last_blocks=num_blocks - min(blocks),
        activation=None,
        keep_unreachable=True,
    )


def read_labels(path: str | os.PathLike[str]) -> list[str]:
    """Class names from a UTF-8 text file, one per line; empty lines at the end are left out.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        text = expanded(path).read_text(encoding="utf-8-sig")
        return [line.strip() for line in text.rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"labels {path}: expected a UTF-8 text file with one class name per line ({error})"
        ) from error


def _published(recipe: str | None) -> TrainConfig | None:
    """The published run of that name; None for None."""
    runs = {name: make("", "") for name, make in RECIPES.items()}
    # The released code has one classifier.
    known = {name: run for name, run in runs.items() if run.resize == "released" and run.label_kind != "verb+noun"}
    if recipe is not None and recipe not in known:
        raise SettingsError(f"recipe {recipe!r}: expected a run of the released code: {', '.join(known)}")
    return known[recipe] if recipe is not None else None


def _check_readable(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors from which no strategy and no number of classes can be read."""
    pieces = _pieces(tensors)
    lacking = [f"adapter_pre_….{piece}.weight" for piece in ("fc1", "conv", "fc2") if piece not in pieces.values()]
    lacking += ["fc.weight"] if "fc.weight" not in tensors else []
    if lacking:
        raise ArtefactError(
            f"{checkpoint} lacks {', '.join(lacking)}; expected a checkpoint of the released ST-Adapter code; "
            f"it holds {listed(sorted(tensors))}"
        )
    for name, piece in {**pieces, "fc.weight": "fc"}.items():
        shape, expected = tuple(tensors[name].shape), _DIMENSIONS[piece]
        if len(shape) != expected:
            raise ArtefactError(f"{checkpoint}: {name} has shape {shape}; expected {expected} dimensions")


def _check_places(
    checkpoint: Path, tensors: Mapping[str, Tensor], recipe: str | None, published: TrainConfig | None
) -> None:
    """Refuse a checkpoint whose adapters are in other places than its recipe's: it comes from another run."""
    if published is None or not isinstance(published.tuning, STAdapter):
        return
    found = _points(tensors)
    flags = {"before_attention": published.tuning.before_attention, "before_mlp": published.tuning.before_mlp}
    expected = {RELEASED_NAMES[point] for point, is_adapted in flags.items() if is_adapted}
    if found != expected:
        raise ArtefactError(
            f"{checkpoint} has {' and '.join(sorted(found))}; the run {recipe} has {' and '.join(sorted(expected))}: "
            "name the recipe it comes from, or none and the clips it was tested with"
        )


def _check_fits(checkpoint: Path, tensors: Mapping[str, Tensor], trunk: ImageViT) -> None:
    """Refuse a trunk other than the kind and sizes the tensors were trained on."""
    if trunk.info.family != "clip_vision_model":
        raise ArtefactError(
            f"{checkpoint}: released checkpoints were trained on CLIP trunks; "
            f"{trunk.info.name} is of the family {trunk.info.family}: give the CLIP trunk it was trained on"
        )
    pieces = _pieces(tensors)
    num_blocks = max(int(name.split(".")[2]) for name in pieces) + 1
    width = next(tensors[name].shape[1] for name, piece in pieces.items() if piece == "fc1")
    if (num_blocks, width) != (len(trunk.blocks), trunk.width):
        raise ArtefactError(
            f"{checkpoint} was trained on a trunk of {num_blocks} blocks and width {width}; {trunk.info.name} has "
            f"{len(trunk.blocks)} blocks and width {trunk.width}: give the trunk it was trained on"
        )


def _pieces(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The released names of the adapters' weights -> which piece each is: fc1, conv or fc2."""
    return {match[0]: match[3] for match in map(_RELEASED.fullmatch, tensors) if match}


def _points(tensors: Mapping[str, Tensor]) -> set[str]:
    """Where adapters are: adapter_pre_attn, adapter_pre_mlp or both."""
    return {name.split(".")[3] for name in _pieces(tensors)}


def _trunk(backbone: ImageViT | str | os.PathLike[str] | None, published: TrainConfig | None) -> ImageViT:
    if backbone is None and published is not None:
        backbone = published.backbone
    if backbone is None:
        raise SettingsError(
            "no trunk and no recipe that names one: expected --backbone, such as openai/clip-vit-base-patch16"
        )
    return backbone if isinstance(backbone, ImageViT) else load_backbone(backbone)


def _released_clips(
    trunk: ImageViT, size: int | None, published: TrainConfig | None, given: Mapping[str, int | None]
) -> ClipConfig:
    """Clips as the released code tests with them, on this trunk: as given, else as published."""
    info = trunk.info
    size = size if size is not None else info.image_size
    info.check_size(size)
    settings = {name: getattr(published, name) for name in given} if published is not None else {}
    settings |= {name: value for name, value in given.items() if value is not None}
    return ClipConfig(size=size, resize="released", mean=info.mean, std=info.std, **settings)


def _checked_labels(checkpoint: Path, tensors: Mapping[str, Tensor], labels: Sequence[str] | None) -> list[str]:
    num_classes = len(tensors["fc.weight"])
    if labels is None:
        return [str(index) for index in range(num_classes)]
    if isinstance(labels, str) or len(labels) != num_classes:
        raise SettingsError(
            f"{checkpoint} has {num_classes} classes; found {len(labels)} labels: expected one name per class"
        )
    return list(labels)


def _renamed(checkpoint: Path, tensors: Mapping[str, Tensor], model: VideoClassifier) -> dict[str, Tensor]:
    """The tensors by our names, after checking that they are exactly what the model trains."""
    ours = model.trained_tensors()
    released = {released_name(name): name for name in ours}
    problems = [f"missing {name}" for name in sorted(released.keys() - tensors.keys())]
    problems += [f"unknown {name}" for name in sorted(tensors.keys() - released.keys())]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(ours[released[name]].shape)}"
        for name in sorted(released.keys() & tensors.keys())
        if tensors[name].shape != ours[released[name]].shape
    ]
    if problems:
        raise ArtefactError(
            f"{checkpoint} is not what the released code saves for {model.trunk.info.name}, {len(problems)} keys: "
            f"{listed(problems)}; expected adapters and classifier (fc), complete, and nothing of the trunk"
        )
    return {released[name]: tensor for name, tensor in tensors.items()}


def released_name(name: str) -> str:
    """The released name of one of our trained tensors."""
    if match := _OURS.fullmatch(name):
        block, point, piece, kind = match.groups()
        return f"transformer.resblocks.{block}.{RELEASED_NAMES[point]}.{RELEASED_NAMES[piece]}.{kind}"
    return name.replace("head.classifier.", "fc.")
