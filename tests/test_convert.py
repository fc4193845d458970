"""Released checkpoints as run folders: the same logits, and nothing taken that does not fit."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden import GOLDEN, make_golden_clip, part, read_golden, relative_error, released_weights, write_released
from stadapter.backbones import load_backbone
from stadapter.clips import ClipConfig
from stadapter.convert import convert_released, infer_tuning, read_labels
from stadapter.errors import ArtefactError, SettingsError, STAdapterError
from stadapter.model import build_model
from stadapter.predict import Classifier
from stadapter.tuning import STAdapter
from trunks import save_trunk

TOLERANCE = 1e-5
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunks") / "clip", "clip")


@pytest.fixture
def checkpoint(trunk: Path, tmp_path: Path) -> Path:
    return write_released(tmp_path / "checkpoint-49.pth", released_weights(trunk))


def save_golden_trunk(folder: Path, config: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """The golden CLIP trunk in Hugging Face layout."""
    vision = make_golden_clip(config, weights)
    vision.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", GOLDEN)
def test_a_converted_checkpoint_gives_the_released_logits(shared: Path, tmp_path: Path, name: str) -> None:
    golden = shared / "golden" / "model"
    config, tensors = read_golden(golden / f"{name}.safetensors")
    trunk = save_golden_trunk(tmp_path / "trunk", config, part(tensors, "backbone"))
    run = convert_released(golden / f"{name}.checkpoint.pth", backbone=trunk, out=tmp_path / "run")

    classifier = Classifier.load(run)
    assert classifier.model.tuning == STAdapter(
        width=config["adapter_width"],
        kernel_size=tuple(config["kernel"]),
        before_attention=config["pre_attn"],
        before_mlp=config["pre_mlp"],
        last_blocks=config["adapter_layers"],
        activation=None,
        keep_unreachable=True,
    )
    assert classifier.labels == tuple(str(index) for index in range(config["classes"]))
    with torch.no_grad():
        logits = classifier.model(tensors["input.video"].transpose(1, 2))  # (B, 3, T, H, W) -> (B, T, 3, H, W)
    assert relative_error(logits, tensors["output.logits"]) < TOLERANCE


def test_every_released_tensor_is_in_the_run_folder_unchanged(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    run = convert_released(checkpoint, backbone=trunk, out=tmp_path / "run", labels=NAMES)
    released, stored = released_weights(trunk), load_file(run / "stadapter.safetensors")
    assert len(stored) == len(released)
    for theirs, ours in {
        "transformer.resblocks.1.adapter_pre_attn.fc1.weight": "trunk.blocks.1.before_attention.down.weight",
        "transformer.resblocks.2.adapter_pre_mlp.conv.weight": "trunk.blocks.2.before_mlp.conv.weight",
        "transformer.resblocks.2.adapter_pre_mlp.fc2.bias": "trunk.blocks.2.before_mlp.up.bias",
        "fc.weight": "head.classifier.weight",
    }.items():
        assert torch.equal(stored[ours], released[theirs]), theirs


def test_the_clips_of_a_converted_checkpoint_are_the_released_ones(
    checkpoint: Path, trunk: Path, tmp_path: Path
) -> None:
    views = {"stride_frames": 16, "num_temporal_views": 3}
    run = convert_released(checkpoint, backbone=trunk, out=tmp_path / "run", labels=NAMES, size=32, **views)  # type: ignore[arg-type]
    info = load_backbone(trunk).info
    expected = ClipConfig(
        num_frames=8,
        size=32,
        stride_frames=16,
        num_temporal_views=3,
        num_spatial_views=1,
        resize="released",
        mean=info.mean,
        std=info.std,
    )
    assert Classifier.load(run).clip_config == expected


def test_clips_are_normalised_as_the_trunk_wants_them(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    backbone = load_backbone(trunk)
    backbone.info = replace(backbone.info, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    run = convert_released(checkpoint, backbone=backbone, out=tmp_path / "run")
    config = Classifier.load(run, backbone=backbone).clip_config
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_the_kernel_of_a_checkpoint_is_time_height_width() -> None:
    names = ("fc1.weight", "conv.weight", "fc2.weight")
    shapes = ((8, 32), (8, 1, 3, 1, 5), (32, 8))
    tensors = {
        f"transformer.resblocks.0.adapter_pre_attn.{name}": torch.zeros(shape)
        for name, shape in zip(names, shapes, strict=True)
    }
    assert infer_tuning(tensors, num_blocks=1).kernel_size == (3, 1, 5)


def test_size_and_labels_have_defaults(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(convert_released(checkpoint, backbone=trunk, out=tmp_path / "run"))
    assert classifier.clip_config.size == 16  # the trunk's own
    assert classifier.labels == ("0", "1", "2")
    assert classifier.receipt == {"converted_from": "checkpoint-49.pth"}


@pytest.mark.parametrize(
    "wrap", [lambda weights: weights, lambda weights: {f"module.{k}": v for k, v in weights.items()}]
)
def test_bare_and_wrapped_checkpoints_are_the_same(checkpoint: Path, trunk: Path, tmp_path: Path, wrap: Any) -> None:
    other = tmp_path / "other.pth"
    torch.save(wrap(released_weights(trunk)), other)
    loaded = load_backbone(trunk)
    first = convert_released(checkpoint, backbone=loaded, out=tmp_path / "first")
    second = convert_released(other, backbone=loaded, out=tmp_path / "second")
    assert (first / "stadapter.safetensors").read_bytes() == (second / "stadapter.safetensors").read_bytes()


def test_half_precision_checkpoints_become_fp32(trunk: Path, tmp_path: Path) -> None:
    half = {name: tensor.half() for name, tensor in released_weights(trunk).items()}
    run = convert_released(write_released(tmp_path / "half.pth", half), backbone=trunk, out=tmp_path / "run")
    stored = load_file(run / "stadapter.safetensors")
    assert torch.equal(stored["head.classifier.weight"], half["fc.weight"].float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer.resblocks.1.adapter_pre_mlp.fc2.bias": None}, r"missing .*1\.adapter_pre_mlp\.fc2\.bias"),
        ({"fc.bias": None}, r"missing fc\.bias"),
        ({"fc.weight": None}, r"lacks fc\.weight"),
        ({"surprise": torch.zeros(2)}, "unknown surprise"),
        ({"conv1.weight": torch.zeros(32, 3, 4, 4)}, r"unknown conv1\.weight.*nothing of the trunk"),
        (
            {"transformer.resblocks.2.adapter_pre_mlp.fc2.weight": torch.zeros(32, 9)},
            r"2\.adapter_pre_mlp\.fc2\.weight has shape \(32, 9\), expected \(32, 8\)",
        ),
        ({"fc.weight": torch.zeros(3, 31)}, r"fc\.weight has shape \(3, 31\), expected \(3, 32\)"),
    ],
)
def test_keys_and_shapes_that_do_not_fit_are_named(
    trunk: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    weights = {name: tensor for name, tensor in (released_weights(trunk) | change).items() if tensor is not None}
    path = write_released(tmp_path / "changed.pth", weights)
    with pytest.raises(ArtefactError, match=message):
        convert_released(path, backbone=trunk, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_unfitting_key_is_an_error_of_ours(trunk: Path, tmp_path: Path) -> None:
    loaded = load_backbone(trunk)
    for name, tensor in released_weights(trunk).items():
        for other in (tensor.reshape(-1)[:1], torch.tensor(0.0), tensor[..., None], tensor[None]):
            path = write_released(tmp_path / "changed.pth", released_weights(trunk) | {name: other})
            with pytest.raises(STAdapterError):
                convert_released(path, backbone=loaded, out=tmp_path / "run")


def test_a_trunk_of_other_sizes_is_refused_with_both_sizes(shared: Path, trunk: Path, tmp_path: Path) -> None:
    golden = shared / "golden" / "model" / "both.checkpoint.pth"
    with pytest.raises(ArtefactError, match=f"3 blocks and width 64; {trunk} has 3 blocks and width 32"):
        convert_released(golden, backbone=trunk, out=tmp_path / "run")


def test_a_trunk_of_more_blocks_is_refused(trunk: Path, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in released_weights(trunk).items() if "resblocks.2" not in name}
    path = write_released(tmp_path / "short.pth", weights)
    with pytest.raises(ArtefactError, match="trained on a trunk of 2 blocks and width 32"):
        convert_released(path, backbone=trunk, out=tmp_path / "run")


def test_a_trunk_that_is_not_clip_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    other = save_trunk(tmp_path / "vit", "vit")
    with pytest.raises(ArtefactError, match="trained on CLIP trunks"):
        convert_released(checkpoint, backbone=other, out=tmp_path / "run")


def test_a_checkpoint_that_would_run_code_is_refused(trunk: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model": {"fc.weight": Path("/")}}, path)
    with pytest.raises(ArtefactError, match=r"is damaged or something else; expected .* nothing but tensors") as caught:
        convert_released(path, backbone=trunk, out=tmp_path / "run")
    assert "weights_only" not in str(caught.value)  # no advice to run the code


@pytest.mark.parametrize("content", [b"", b"junk", b"hello, this is text", b"PK\x03\x04junk"])
def test_a_damaged_checkpoint_is_refused(trunk: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.pth"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"damaged\.pth is damaged") as caught:
        convert_released(path, backbone=trunk, out=tmp_path / "run")
    assert not re.search(r"\(\d+\)", str(caught.value))  # a number without a word says nothing


def test_a_changed_bit_of_a_weight_is_noticed(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    with ZipFile(checkpoint) as archive:
        weights = [archive.read(piece) for piece in archive.infolist() if "/data/" in piece.filename]
    content = bytearray(checkpoint.read_bytes())
    content[content.index(max(weights, key=len)) + 103] ^= 0x40
    checkpoint.write_bytes(content)
    torch.load(checkpoint, weights_only=True)  # torch notices nothing
    with pytest.raises(
        ArtefactError, match=r"is damaged or something else \(.*/data/\d+ does not match its checksum\)"
    ):
        convert_released(checkpoint, backbone=trunk, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_saved_without_checksums_is_converted(trunk: Path, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = write_released(tmp_path / "checkpoint.pth", released_weights(trunk))
    finally:
        torch.serialization.set_crc32_options(True)
    with ZipFile(path) as archive:
        assert archive.testzip() is not None
    convert_released(path, backbone=trunk, out=tmp_path / "run")


def test_a_truncated_checkpoint_is_refused(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(ArtefactError, match="is damaged"):
        convert_released(checkpoint, backbone=trunk, out=tmp_path / "run")


@pytest.mark.parametrize(
    "content", [[1, 2], {"model": [1]}, {"model": {"fc.weight": 3}}, {0: torch.zeros(1)}, torch.zeros(2)], ids=str
)
def test_another_kind_of_file_is_refused(trunk: Path, tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(ArtefactError, match="holds no dict of tensors"):
        convert_released(path, backbone=trunk, out=tmp_path / "run")


@pytest.mark.parametrize("weights", [{}, {"head.weight": torch.zeros(2, 2)}], ids=["empty", "another model"])
def test_a_checkpoint_without_adapters_is_refused(trunk: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(ArtefactError, match=r"lacks adapter_pre_….fc1.weight.*expected a checkpoint of the released"):
        convert_released(write_released(tmp_path / "no.pth", weights), backbone=trunk, out=tmp_path / "run")


def test_a_checkpoint_that_is_not_there_is_named(trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"none\.pth: no such file"):
        convert_released(tmp_path / "none.pth", backbone=trunk, out=tmp_path / "run")


def test_an_existing_run_folder_is_left_alone(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    run = convert_released(checkpoint, backbone=trunk, out=tmp_path / "run")
    with pytest.raises(ArtefactError, match="exists"):
        convert_released(checkpoint, backbone=trunk, out=run)


@pytest.mark.parametrize("labels", [["a", "b"], "abc", ["a", "a", "b"]])
def test_labels_that_do_not_fit_are_refused(checkpoint: Path, trunk: Path, tmp_path: Path, labels: Any) -> None:
    with pytest.raises(SettingsError):
        convert_released(checkpoint, backbone=trunk, out=tmp_path / "run", labels=labels)


def test_a_size_that_the_patches_do_not_divide_is_refused(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"size 18: .* patches are 4 pixels wide; the nearest size it takes is 16"):
        convert_released(checkpoint, backbone=trunk, out=tmp_path / "run", size=18)


def test_labels_are_read_from_a_file_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffpushing left\npushing, right\n\n", encoding="utf-8")
    assert read_labels(path) == ["pushing left", "pushing, right"]
    with pytest.raises(SettingsError, match=r"none\.txt: expected a UTF-8 text file"):
        read_labels(tmp_path / "none.txt")


def test_a_tilde_is_the_home_folder(
    checkpoint: Path, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "labels.txt").write_text("\n".join(NAMES))
    labels = read_labels("~/labels.txt")
    assert convert_released(f"~/{checkpoint.name}", backbone=trunk, out="~/run", labels=labels) == tmp_path / "run"
    assert Classifier.load("~/run", backbone=trunk).labels == tuple(NAMES)


def test_a_converted_run_says_what_it_is(checkpoint: Path, trunk: Path, tmp_path: Path) -> None:
    run = convert_released(checkpoint, backbone=trunk, out=tmp_path / "run", labels=NAMES)
    spec = json.loads((run / "stadapter.json").read_text(encoding="utf-8"))
    built = build_model(backbone=trunk, labels=NAMES, tuning=Classifier.load(run).model.tuning)
    assert spec["parameters"]["summary"] == str(built.count_parameters())
