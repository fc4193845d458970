"""What training leaves behind: a folder with the trained tensors and everything needed to use them again.

    stadapter.safetensors   the trained tensors only, fp32, by their names in the model
    stadapter.json          format version, trunk (name, revision, hash), strategy, head, labels, clips, receipt
    README.md               a model card

A folder rebuilds its own model. A trunk whose weights differ from those it was trained on is refused.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stadapter.backbones import load_backbone
from stadapter.clips import ClipConfig
from stadapter.durable import write_whole
from stadapter.errors import ArtefactError, BackboneError, SettingsError
from stadapter.field_types import from_json
from stadapter.hub import fetch_snapshot, is_hub_id
from stadapter.labels import LabelSpace
from stadapter.model import VideoClassifier, build_model
from stadapter.model_card import model_card
from stadapter.paths import expanded
from stadapter.records import METRICS_NAME
from stadapter.tensor_file import read_tensors, write_tensors
from stadapter.tuning import STRATEGIES, Tuning, check_json, tuning_from_json, tuning_to_json
from stadapter.vit import BackboneInfo, ImageViT
from stadapter.wording import counted, listed

FORMAT = "stadapter"
FORMAT_VERSION = 1
WEIGHTS_NAME = "stadapter.safetensors"
SPEC_NAME = "stadapter.json"
CARD_NAME = "README.md"


@dataclass(frozen=True)
class Artefact:
    """A trained classifier, loaded from its folder and ready to run."""

    folder: Path
    model: VideoClassifier
    clip_config: ClipConfig
    receipt: dict[str, Any] = field(default_factory=dict)
    """How it was trained: settings, data hash, seed, versions, metrics."""


def save_artefact(
    folder: str | os.PathLike[str], model: VideoClassifier, clip_config: ClipConfig, *, receipt: Mapping[str, Any]
) -> Path:
    """Write a model's trained tensors and its description into a folder, each file whole or not at all.

    Args:
        folder: created if it does not exist; files of an earlier artefact in it are replaced.
        model: on any device, in any precision; its trained tensors are stored in fp32.
        clip_config: the test-time preprocessing that the model is to be used with.
        receipt: JSON values that say how it was trained.

    Raises:
        ArtefactError: other parameters learn than the strategy trains, some of those have been replaced, or some are
            not finite numbers: the folder could not be loaded; or a file cannot be written.
        OSError: the folder cannot be made.
        SettingsError: a strategy of somebody's own has a setting that JSON does not know.
    """
    check_json(model.tuning)
    tensors = model.trained_tensors()
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if odd := sorted(model.trained_names ^ (tensors.keys() | learning)):
        raise ArtefactError(
            f"{counted(len(odd), 'parameter')} learn besides what the strategy trains, or are missing from it: "
            f"{listed(odd)}; a run folder holds what its strategy trains: write a strategy that trains these"
        )
    if broken := [name for name, tensor in tensors.items() if not bool(tensor.detach().isfinite().all())]:
        raise ArtefactError(f"{listed(broken)}: not finite numbers; a run folder with them could not be loaded")
    folder = expanded(folder)
    folder.mkdir(parents=True, exist_ok=True)
    count = model.count_parameters()
    spec = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "backbone": asdict(model.trunk.info),
        "tuning": tuning_to_json(model.tuning),
        "head": {"name": model.head.name},
        "labels": model.label_space.to_json(),
        "clip": asdict(clip_config),
        "parameters": {"trained": count.trained, "total": count.total, "summary": str(count)},
        "receipt": dict(receipt),
    }
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    write_tensors(folder / WEIGHTS_NAME, weights, {})  # several metadata entries would come in random order
    # Bytes of a file name that are not text become \udce9, which means the same in JSON.
    for name, text in ((CARD_NAME, model_card(spec)), (SPEC_NAME, json.dumps(spec, indent=1, ensure_ascii=False))):
        write_whole(folder / name, f"{text.rstrip()}\n".encode(errors="backslashreplace"))
    return folder


def load_artefact(
    run: str | os.PathLike[str],
    *,
    backbone: ImageViT | str | os.PathLike[str] | None = None,
    tuning: Tuning | None = None,
) -> Artefact:
    """Rebuild a trained classifier, in fp32 on the CPU and in eval mode.

    Args:
        run: a run folder, or the Hub id of one.
        backbone: where the trunk is now, if it has moved since training; or a loaded trunk.
        tuning: the strategy with its original settings, if it is not one of this package's.

    Raises:
        ArtefactError: not a run folder, a newer format, damaged, incomplete, or made for another trunk.
        BackboneError: the trunk cannot be found or loaded.
    """
    folder = find_run(run)
    spec = read_spec(folder)
    try:
        info = from_json(BackboneInfo, spec["backbone"])
        clip_config = from_json(ClipConfig, spec["clip"])
        tuning = _own_tuning(folder, spec["tuning"], tuning) or tuning_from_json(spec["tuning"])
        labels = LabelSpace.from_json(spec["labels"])
        receipt = dict(spec.get("receipt", {}))
        head = spec["head"]["name"]
    except KeyError as error:
        raise ArtefactError(f"{folder / SPEC_NAME} lacks {error.args[0]}; copy the whole file again") from error
    except (TypeError, ValueError, SettingsError) as error:
        raise ArtefactError(f"{folder / SPEC_NAME} is damaged or not ours: {error}") from error
    trunk = _matching_trunk(folder, info, backbone)
    try:
        model = build_model(backbone=trunk, labels=labels, tuning=tuning)
    except SettingsError as error:
        raise ArtefactError(f"{folder / SPEC_NAME} describes no model that can be built: {error}") from error
    if head != model.head.name:
        raise ArtefactError(
            f"{folder / SPEC_NAME} has the head {head!r}; with this strategy only {model.head.name!r} is known"
        )
    tensors, _ = read_tensors(folder / WEIGHTS_NAME)
    try:
        model.load_trained(tensors)
    except ArtefactError as error:
        raise ArtefactError(f"{folder / WEIGHTS_NAME}: {error}") from error
    return Artefact(folder=folder, model=model.eval(), clip_config=clip_config, receipt=receipt)


def _own_tuning(folder: Path, told: Mapping[str, Any], given: Tuning | None) -> Tuning | None:
    """The strategy given for a run, if it is the one the run was trained with; None if none is needed."""
    if given is None and told["name"] not in STRATEGIES:
        raise ArtefactError(
            f"{folder} was trained with {told['name']}, a strategy that is not part of this package; from Python, pass "
            f"it as tuning={told['name']}(…) to Classifier.load; its settings were {dict(told)}"
        )
    if given is not None:
        found = json.loads(json.dumps(tuning_to_json(given)))
        if {name: found.get(name) for name in told} != told:
            raise ArtefactError(f"{folder} was trained with the strategy {dict(told)}, but {found} was given")
    return given


def find_run(run: str | os.PathLike[str]) -> Path:
    """The folder of a run: the one given, or the snapshot of a Hub repository.

    Raises:
        ArtefactError: it is neither a folder nor a Hub id that can be fetched.
    """
    name = os.fspath(run)
    path = expanded(name)
    if name and path.is_dir():
        return path
    if path.exists() or not is_hub_id(name):
        raise ArtefactError(f"{name!r} is not a folder; expected a run folder with {SPEC_NAME}, or a Hub id")
    try:
        return fetch_snapshot(name, lambda _: [SPEC_NAME, WEIGHTS_NAME, CARD_NAME], needed=(SPEC_NAME, WEIGHTS_NAME))
    except BackboneError as error:
        raise ArtefactError(str(error)) from error


def read_spec(folder: Path) -> dict[str, Any]:
    """The content of a folder's stadapter.json.

    Raises:
        ArtefactError: absent, not JSON, not ours, or in a newer format than this program knows.
    """
    path = folder / SPEC_NAME
    if not path.is_file():
        if (folder / METRICS_NAME).is_file():
            raise ArtefactError(
                f"{folder} has no {SPEC_NAME}; if its training has not finished, continue it with stadapter train "
                "--resume, otherwise copy the whole run folder"
            )
        raise ArtefactError(f"{folder} has no {SPEC_NAME}; expected a folder that stadapter train or convert made")
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path} is not readable JSON: {error}; copy the file again, or correct it") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        raise ArtefactError(f"{path} was not written by stadapter")
    version = spec.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ArtefactError(
            f"{path} has {version!r} as its format version; expected a whole number of at least 1: it is damaged"
        )
    if version > FORMAT_VERSION:
        raise ArtefactError(
            f"{path} has format version {version}; this program knows versions up to {FORMAT_VERSION}: "
            "install a newer stadapter"
        )
    return spec


def _own_trunk(info: BackboneInfo) -> ImageViT:
    """The trunk by its name: from the Hub at the revision used in training or, if that cannot be had, the current one.

    Raises:
        BackboneError: neither can be loaded, or only the current one can and it has other weights.
    """
    if info.revision is None:
        return load_backbone(info.name)
    try:
        return load_backbone(f"{info.name}@{info.revision}")
    except BackboneError as error:
        trunk = load_backbone(info.name)
        if trunk.info.sha256 != info.sha256:
            raise BackboneError(f"{error}; the current revision has other weights") from error
        return trunk


def _matching_trunk(folder: Path, info: BackboneInfo, backbone: ImageViT | str | os.PathLike[str] | None) -> ImageViT:
    if isinstance(backbone, ImageViT):
        trunk = backbone
    else:
        try:
            trunk = load_backbone(backbone) if backbone is not None else _own_trunk(info)
        except BackboneError as error:
            if backbone is not None:
                raise
            raise BackboneError(
                f"the trunk of {folder}, {info.name}, cannot be loaded: {error}. "
                "If it has moved, say where it is: --backbone, or backbone= in Python"
            ) from error
    if trunk.info.sha256 != info.sha256:
        raise ArtefactError(
            f"{folder} was trained on the trunk {info.name} with sha256 {info.sha256[:16]}…; "
            f"{trunk.info.name} has sha256 {trunk.info.sha256[:16]}…: use the trunk it was trained on"
        )
    return trunk
