"""Run folders: what is in them, that they give the same model back, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from small_hub import small_hub
from stadapter.artefact import (
    FORMAT_VERSION,
    SPEC_NAME,
    WEIGHTS_NAME,
    load_artefact,
    model_card,
    read_spec,
    save_artefact,
)
from stadapter.backbones import EMBEDDED_BACKBONE, load_backbone
from stadapter.clips import ClipConfig
from stadapter.errors import ArtefactError, BackboneError, SettingsError
from stadapter.model import VideoClassifier, build_model
from stadapter.predict import Classifier
from stadapter.records import METRICS_NAME
from stadapter.tensor_file import digest
from stadapter.tuning import LinearProbe, LoRA, STAdapter, Tuning
from stadapter.vit import ImageViT
from trunks import make_clips, make_trunk, save_trunk

LABELS = ["wave", "tick", "naïve ☂"]
CLIP_CONFIG = ClipConfig(num_frames=3, size=16, stride_frames=2, num_temporal_views=2, fit="stretch", resize="released")
TUNINGS: dict[str, Tuning] = {
    "st-adapter": STAdapter(width=4, kernel_size=(3, 3, 1), before_mlp=True, last_blocks=2),
    "linear-probe": LinearProbe(),
    "lora": LoRA(rank=2),
}


@pytest.fixture(scope="module")
def trunk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunks") / "clip", "clip")


def trained_model(backbone: ImageViT | Path | str, tuning: Tuning = TUNINGS["st-adapter"]) -> VideoClassifier:
    """A model none of whose trained tensors has its starting value."""
    model = build_model(backbone=backbone, labels=LABELS, tuning=tuning)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.trained_tensors().values():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return model.eval()


@dataclass(frozen=True)
class FinalNorm:
    """A strategy that is not of the package."""

    scale: float = 1.0

    def apply(self, vit: ImageViT) -> None:
        vit.unfreeze(vit.norm.parameters())


def test_a_setting_that_json_does_not_know_is_refused_before_anything_is_written(
    trunk_folder: Path, tmp_path: Path
) -> None:
    @dataclass(frozen=True)
    class Remembered(FinalNorm):
        source: Path = Path("norm.safetensors")

    model = trained_model(trunk_folder, Remembered())
    with pytest.raises(SettingsError, match="setting source of Remembered: expected what JSON can hold"):
        save_artefact(tmp_path / "run", model, CLIP_CONFIG, receipt={})
    assert not (tmp_path / "run").exists()


def test_a_strategy_of_ones_own_is_given_again(trunk_folder: Path, tmp_path: Path) -> None:
    model = trained_model(trunk_folder, FinalNorm(scale=2))
    run = save_artefact(tmp_path / "run", model, CLIP_CONFIG, receipt={})
    with pytest.raises(ArtefactError, match=r"trained with FinalNorm, .* as tuning=FinalNorm\(…\) to Classifier"):
        load_artefact(run)
    with pytest.raises(ArtefactError, match=r"the strategy .*'scale': 2}, but .*'scale': 1\.0} was given"):
        load_artefact(run, tuning=FinalNorm())
    loaded = Classifier.load(run, tuning=FinalNorm(scale=2))
    clips = make_clips()
    with torch.no_grad():
        assert torch.equal(loaded.model(clips), model(clips))


def test_the_sha256_of_tensors_tells_names_types_shapes_and_metadata() -> None:
    zeros = torch.zeros(2, 3)
    contents: list[tuple[dict[str, torch.Tensor], dict[str, str]]] = [
        ({"a": zeros}, {}),
        ({"b": zeros}, {}),
        ({"a": zeros.T}, {}),
        ({"a": zeros.int()}, {}),
        ({"a": zeros + 1}, {}),
        ({"a": zeros}, {"step": "1"}),
    ]
    assert len({digest(tensors, metadata) for tensors, metadata in contents}) == len(contents)
    both = {"a": zeros, "b": zeros + 1}
    assert digest(both, {}) == digest(dict(reversed(both.items())), {})


def test_class_names_are_no_markdown(trunk_folder: Path, tmp_path: Path) -> None:
    labels = ["<img src=x>", "a, `b`", "``"]
    model = build_model(backbone=trunk_folder, labels=labels, tuning=LinearProbe())
    card = (save_artefact(tmp_path / "run", model, CLIP_CONFIG, receipt={}) / "README.md").read_text()
    assert "Classes: `<img src=x>`, `` a, `b` ``, ``` `` ```." in card


def test_names_that_are_no_text_are_kept(trunk_folder: Path, tmp_path: Path) -> None:
    labels = ["caf\udce9", "thé"]
    model = build_model(backbone=trunk_folder, labels=labels, tuning=LinearProbe())
    receipt = {"unreadable": {"d\udce9/a.mp4": "no video"}}
    loaded = load_artefact(save_artefact(tmp_path / "run", model, CLIP_CONFIG, receipt=receipt))
    assert loaded.model.labels == tuple(labels)
    assert loaded.receipt == receipt
    assert "thé" in (tmp_path / "run" / SPEC_NAME).read_text(encoding="utf-8")
    assert r"caf\udce9" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_a_trunk_is_found_again_from_wherever_a_classifier_is_loaded(
    trunk_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / EMBEDDED_BACKBONE).symlink_to(trunk_folder)
    monkeypatch.chdir(tmp_path)
    embedded = build_model(backbone=EMBEDDED_BACKBONE, labels=LABELS, tuning=LinearProbe())
    local = build_model(backbone=Path(EMBEDDED_BACKBONE), labels=LABELS, tuning=LinearProbe())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, model in (("embedded", embedded), ("local", local)):
        folder = save_artefact(tmp_path / name, model, CLIP_CONFIG, receipt={})
        monkeypatch.chdir(tmp_path)  # where the name alone is ambiguous
        assert load_artefact(folder).model.trunk.info == model.trunk.info
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert embedded.trunk.info.sha256 != local.trunk.info.sha256


@pytest.fixture
def run(trunk_folder: Path, tmp_path: Path) -> Path:
    return save_artefact(tmp_path / "run", trained_model(trunk_folder), CLIP_CONFIG, receipt={"seed": 3})


def edit_spec(run: Path, **changes: Any) -> None:
    spec = read_spec(run) | changes
    (run / SPEC_NAME).write_text(json.dumps({name: value for name, value in spec.items() if value is not None}))


def edit_weights(run: Path, change: Any) -> None:
    tensors = load_file(run / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, run / WEIGHTS_NAME)


@pytest.mark.parametrize("name", TUNINGS)
def test_a_saved_model_comes_back_with_the_same_logits(trunk_folder: Path, tmp_path: Path, name: str) -> None:
    model, clips = trained_model(trunk_folder, TUNINGS[name]), make_clips()
    artefact = load_artefact(save_artefact(tmp_path / "run", model, CLIP_CONFIG, receipt={"seed": 3}))

    assert torch.equal(artefact.model(clips), model(clips))
    assert artefact.model.labels == tuple(LABELS)
    assert artefact.model.tuning == TUNINGS[name]
    assert artefact.clip_config == CLIP_CONFIG
    assert artefact.receipt == {"seed": 3}
    assert not artefact.model.training
    assert artefact.model.trained_tensors().keys() == model.trained_tensors().keys()


def test_only_what_was_trained_is_stored(run: Path, trunk_folder: Path) -> None:
    stored = load_file(run / WEIGHTS_NAME)
    assert stored.keys() == trained_model(trunk_folder).trained_tensors().keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert sorted(path.name for path in run.iterdir()) == ["README.md", SPEC_NAME, WEIGHTS_NAME]


def test_a_half_precision_model_is_stored_in_fp32(trunk_folder: Path, tmp_path: Path) -> None:
    run = save_artefact(tmp_path / "run", trained_model(trunk_folder).to(torch.bfloat16), CLIP_CONFIG, receipt={})
    assert {tensor.dtype for tensor in load_file(run / WEIGHTS_NAME).values()} == {torch.float32}
    load_artefact(run)


def test_the_description_says_what_is_needed_to_use_it_again(run: Path, trunk_folder: Path) -> None:
    spec = json.loads((run / SPEC_NAME).read_text(encoding="utf-8"))
    assert (spec["format"], spec["format_version"]) == ("stadapter", FORMAT_VERSION)
    assert spec["labels"] == LABELS
    assert spec["backbone"]["sha256"] == load_backbone(trunk_folder).info.sha256
    assert spec["tuning"]["name"] == "st-adapter"
    assert spec["clip"]["num_frames"] == 3
    assert spec["parameters"]["trained"] == sum(map(torch.Tensor.numel, load_file(run / WEIGHTS_NAME).values()))


def test_the_model_card_names_trunk_classes_and_accuracy(trunk_folder: Path, tmp_path: Path) -> None:
    receipt = {"metrics": {"top1": 0.875, "top5": 1.0, "loss": 1.399}, "num_held_out_clips": 8}
    run = save_artefact(tmp_path / "run", trained_model(trunk_folder), CLIP_CONFIG, receipt=receipt)
    card = (run / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: stadapter\n")
    assert "Classes: `wave`, `tick`, `naïve ☂`." in card
    assert "## On 8 held-out clips" in card
    assert "| top-1 | 87.5 % |" in card
    assert "top-5" not in card  # there are three classes only
    assert "| loss | 1.3990 |" in card
    assert "base_model" not in card
    assert str(trunk_folder.parent) not in card  # what the folder is called, not where it was


def test_a_run_takes_the_revision_of_its_trunk_that_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--lab--vit"
    old, new = "a" * 40, "b" * 40
    for seed, revision in enumerate((old, new)):
        save_trunk(repository / "snapshots" / revision, "clip", seed=seed)
    (repository / "refs").mkdir()
    main = repository / "refs" / "main"
    main.write_text(old)
    run = save_artefact(tmp_path / "run", trained_model("lab/vit"), CLIP_CONFIG, receipt={})
    main.write_text(new)  # its owner has pushed other weights
    assert load_backbone("lab/vit").info.revision == new
    assert load_backbone(f"lab/vit@{old}").info.revision == old
    assert Classifier.load(run).model.trunk.info.revision == old
    shutil.rmtree(repository / "snapshots" / old)
    with pytest.raises(BackboneError, match=f"lab/vit at {old} is not .*; the current revision has other weights"):
        Classifier.load(run)
    save_trunk(repository / "snapshots" / new, "clip", seed=0)  # the same weights under another revision
    assert Classifier.load(run).model.trunk.info.revision == new
    with pytest.raises(BackboneError, match=f"lab/vit at {old} is not a local folder, is not in the local cache"):
        load_backbone(f"lab/vit@{old}")


def test_the_model_card_names_a_trunk_of_the_hub_as_its_base(tmp_path: Path) -> None:
    trunk = make_trunk("clip")
    trunk.info = replace(trunk.info, name="tiny/trunk", revision="0123")
    run = save_artefact(tmp_path / "run", trained_model(trunk), CLIP_CONFIG, receipt={})
    assert "\nbase_model: tiny/trunk\n---\n" in (run / "README.md").read_text(encoding="utf-8")


def test_saving_again_replaces_the_earlier_artefact(run: Path, trunk_folder: Path) -> None:
    save_artefact(run, trained_model(trunk_folder, LinearProbe()), CLIP_CONFIG, receipt={})
    assert load_artefact(run).model.tuning == LinearProbe()


def test_a_trunk_that_moved_is_found_where_the_user_says(trunk_folder: Path, tmp_path: Path) -> None:
    first = save_trunk(tmp_path / "first", "clip")
    model, clips = trained_model(first), make_clips()
    run = save_artefact(tmp_path / "run", model, CLIP_CONFIG, receipt={})
    first.rename(tmp_path / "second")

    with pytest.raises(BackboneError, match="--backbone"):
        load_artefact(run)
    for backbone in (tmp_path / "second", str(trunk_folder), load_backbone(trunk_folder)):
        assert torch.equal(load_artefact(run, backbone=backbone).model(clips), model(clips))


def test_a_run_can_be_used_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_trunk(tmp_path / "here" / "trunk", "clip")
    monkeypatch.chdir(tmp_path / "here")
    run = save_artefact(tmp_path / "run", trained_model(Path("trunk")), CLIP_CONFIG, receipt={})
    monkeypatch.chdir(tmp_path)
    load_artefact(run)


def test_a_loaded_trunk_is_left_as_it_was(run: Path, trunk_folder: Path) -> None:
    trunk = load_backbone(trunk_folder)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    first, second = load_artefact(run, backbone=trunk).model, load_artefact(run, backbone=trunk).model
    assert trunk.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    assert first.trunk.norm.weight.data_ptr() == second.trunk.norm.weight.data_ptr()


@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_another_trunk_is_refused_by_name(run: Path, tmp_path: Path, family: str) -> None:
    other = save_trunk(tmp_path / "other", family, seed=1)
    trained_on = read_spec(run)["backbone"]
    with pytest.raises(ArtefactError, match="was trained on the trunk") as refusal:
        load_artefact(run, backbone=other)
    for part in (trained_on["name"], trained_on["sha256"][:16], str(other), load_backbone(other).info.sha256[:16]):
        assert part in str(refusal.value)


def test_a_loaded_trunk_that_is_another_is_refused(run: Path) -> None:
    with pytest.raises(ArtefactError, match="tiny-clip has sha256"):
        load_artefact(run, backbone=make_trunk("clip", seed=1))


def test_a_newer_format_is_refused_with_advice(run: Path) -> None:
    edit_spec(run, format_version=FORMAT_VERSION + 1)
    with pytest.raises(ArtefactError, match=r"format version 2.*up to 1.*install a newer stadapter"):
        load_artefact(run)


@pytest.mark.parametrize("version", [None, "1", 0])
def test_a_format_version_that_never_was_is_refused(run: Path, version: Any) -> None:
    edit_spec(run, format_version=version)
    with pytest.raises(ArtefactError, match=f"has {version!r} as its format version; expected a whole number"):
        load_artefact(run)


def test_what_a_description_lacks_is_named(run: Path) -> None:
    edit_spec(run, labels=None)
    with pytest.raises(ArtefactError, match=f"{SPEC_NAME} lacks labels"):
        load_artefact(run)


def test_a_missing_tensor_is_named(run: Path) -> None:
    edit_weights(run, lambda tensors: tensors.pop("trunk.blocks.1.before_mlp.up.bias"))
    with pytest.raises(ArtefactError, match=r"missing: trunk\.blocks\.1\.before_mlp\.up\.bias"):
        load_artefact(run)


def test_of_many_missing_tensors_the_first_five_are_named_and_the_run(run: Path) -> None:
    edit_weights(run, lambda tensors: [tensors.pop(name) for name in sorted(tensors) if "blocks" in name])
    with pytest.raises(ArtefactError, match=f"^{run / WEIGHTS_NAME}: .* not fit the model, 18 mismatched") as refusal:
        load_artefact(run)
    assert str(refusal.value).count("missing: ") == 5
    assert "and 13 more" in str(refusal.value)


def test_an_unknown_tensor_and_a_wrong_shape_are_named(run: Path) -> None:
    edit_weights(run, lambda tensors: tensors.update({"extra": torch.zeros(1), "head.classifier.bias": torch.zeros(7)}))
    with pytest.raises(ArtefactError, match=r"unknown: extra; head\.classifier\.bias: shape \(7,\), expected \(3,\)"):
        load_artefact(run)


def test_truncated_weights_are_refused(run: Path) -> None:
    os.truncate(run / WEIGHTS_NAME, 200)
    with pytest.raises(ArtefactError, match=f"{WEIGHTS_NAME} is truncated"):
        load_artefact(run)


def test_a_flipped_bit_in_the_weights_is_found(run: Path) -> None:
    content = bytearray((run / WEIGHTS_NAME).read_bytes())
    content[-5] ^= 1
    (run / WEIGHTS_NAME).write_bytes(content)
    with pytest.raises(ArtefactError, match=f"{WEIGHTS_NAME} is damaged: its content does not match the sha256 in it"):
        load_artefact(run)


def test_weights_that_are_not_finite_are_refused(run: Path) -> None:
    edit_weights(run, lambda tensors: tensors["head.classifier.bias"].fill_(float("nan")))
    with pytest.raises(ArtefactError, match=r"not finite in head\.classifier\.bias"):
        load_artefact(run)


def test_the_same_weights_are_the_same_bytes(run: Path, trunk_folder: Path) -> None:
    model, contents = load_artefact(run).model, set()
    for _ in range(8):
        save_artefact(run, model, CLIP_CONFIG, receipt={})
        contents.add((run / WEIGHTS_NAME).read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("name", [SPEC_NAME, WEIGHTS_NAME])
def test_a_file_that_was_not_copied_is_named(run: Path, name: str) -> None:
    (run / name).unlink()
    (run / METRICS_NAME).touch()  # as training leaves it
    with pytest.raises(ArtefactError, match=f"has no {name}; .*copy the whole run folder$"):
        load_artefact(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not readable JSON: .*; copy the file again, or correct it"),
        (b"\xff\xfe", "is not readable JSON: .*; copy the file again, or correct it"),
        (b"[]", "was not written by stadapter"),
        (b'{"format": "other"}', "was not written by stadapter"),
    ],
)
def test_a_description_that_is_not_ours_is_refused(run: Path, content: bytes, message: str) -> None:
    (run / SPEC_NAME).write_bytes(content)
    with pytest.raises(ArtefactError, match=f"{SPEC_NAME} {message}"):
        load_artefact(run)


@pytest.mark.parametrize(
    "damage",
    [
        {"clip": None},
        {"labels": None},
        {"labels": "wave"},
        {"labels": ["wave"]},
        {"backbone": {"name": "x"}},
        {"backbone": []},
        {"tuning": {"name": "st-adaptor"}},
        {"tuning": {"name": "st-adapter", "widht": 4}},
        {"tuning": []},
        {"clip": {"num_frames": 0}},
        {"receipt": 3},
        {"receipt": [1]},
    ],
    ids=str,
)
def test_a_damaged_description_is_an_error_of_ours(run: Path, damage: dict[str, Any]) -> None:
    edit_spec(run, **damage)
    with pytest.raises(ArtefactError):
        load_artefact(run)


def test_a_description_without_a_known_head_is_refused(run: Path) -> None:
    edit_spec(run, head={"name": "attention-pool"})
    with pytest.raises(ArtefactError, match="attention-pool"):
        load_artefact(run)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/no/such/run", "not on/the hub", "someone/no-such-run"])
def test_what_is_no_run_folder_is_an_error_at_once(name: str) -> None:
    with pytest.raises(ArtefactError, match=name):
        load_artefact(name)


def test_a_file_is_no_run_folder(run: Path) -> None:
    with pytest.raises(ArtefactError, match="is not a folder"):
        load_artefact(run / SPEC_NAME)


def test_a_trunk_that_was_named_and_is_not_there_is_told_by_its_own_name(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="nowhere") as caught:
        load_artefact(run, backbone=tmp_path / "nowhere")
    assert "say where" not in str(caught.value)


def test_an_empty_name_is_not_the_folder_one_is_in(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    with pytest.raises(ArtefactError, match="'' is not a folder"):
        load_artefact("")


def test_every_clip_setting_survives(trunk_folder: Path, tmp_path: Path) -> None:
    config = replace(CLIP_CONFIG, mean=(0.1, 0.2, 1 / 3), short_clips="error", fit="crop", num_spatial_views=3)
    run = save_artefact(tmp_path / "run", trained_model(trunk_folder), config, receipt={})
    assert load_artefact(run).clip_config == config


LOAD_A_RUN = """
import sys
from stadapter.artefact import load_artefact
from stadapter.errors import ArtefactError
for name in sys.argv[2:]:
    try:
        print(load_artefact(name, backbone=sys.argv[1]).receipt)
    except ArtefactError as error:
        print(error)
"""


def test_a_run_on_the_hub_is_fetched_once_and_then_found_without_the_hub(
    run: Path, trunk_folder: Path, tmp_path: Path
) -> None:
    def load(*names: str) -> list[str]:
        command = [sys.executable, "-c", LOAD_A_RUN, trunk_folder, *names]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.splitlines()

    with small_hub(run, tmp_path / "cache") as environment:
        assert load("tiny/trunk", "tiny/nothing") == [
            "{'seed': 3}",
            "tiny/nothing is neither a folder nor a model on the Hub; check the spelling "
            "(a private model needs `hf auth login`)",
        ]
    found, absent = load("tiny/trunk", "tiny/other")
    assert found == "{'seed': 3}"
    assert "not in the local cache, and the Hub does not answer" in absent
    assert absent.endswith("or pass a folder with stadapter.json and stadapter.safetensors")


def test_an_artefact_of_before_there_were_heads_gives_the_scores_it_gave() -> None:
    """Made by commit 9b07183 on the package's own trunk, from clips of `write_clips`; scores.json is what it said."""
    folder = Path(__file__).parent / "artefact_1"
    scores = json.loads((folder / "scores.json").read_text())
    for name, expected in scores.items():
        prediction = Classifier.load(folder).predict(Path(__file__).parent / "released" / name)
        assert prediction.scores == pytest.approx(expected, rel=1e-5)
        assert not prediction.heads
    assert "## On held-out clips" in model_card(read_spec(folder))
    assert load_artefact(folder).model.label_space.to_json() == read_spec(folder)["labels"] == ["left", "right", "up"]
