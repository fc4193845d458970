"""The classifier put together: its head, its casts, one trunk for many tasks, export. Laws: test_strategies.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stadapter.backbones import hash_weights
from stadapter.errors import ArtefactError, SettingsError
from stadapter.heads import make_classifier
from stadapter.model import build_model
from stadapter.tuning import BitFit, LinearProbe, LoRA, STAdapter, Tuning, tuning_from_json
from stadapter.vit import share_weights
from strategies import CASES, LABELS, build, disturb, relative_error
from trunks import FAMILIES, NUM_BLOCKS, WIDTH, make_clips, make_trunk, save_trunk

every_family = pytest.mark.parametrize("family", FAMILIES)
every_strategy = pytest.mark.parametrize("strategy", CASES)


@every_family
def test_logits_are_the_classifier_on_the_normed_average_over_frames(family: str) -> None:
    model = build(family).eval()
    clips = make_clips(num_frames=5)
    tokens = model.trunk(clips)
    features = tokens.mean((1, 2)) if family == "siglip" else tokens[:, :, 0].mean(1)
    logits = model.head.classifier(model.trunk.norm(features))
    torch.testing.assert_close(model(clips), logits, rtol=1e-5, atol=1e-6)
    assert logits.shape == (2, len(LABELS))


def test_dropout_acts_in_training_alone() -> None:
    for model in (build(dropout=0.5), build(strategy="lora-last-block")):
        disturb(model)
        clips = make_clips()
        model.train()
        assert not torch.equal(model(clips), model(clips))
        model.eval()
        assert torch.equal(model(clips), model(clips))


@pytest.mark.parametrize("strategy", ["linear-probe", "attentive-pooling"])
def test_dropout_takes_features_from_the_last_layer_and_nothing_before_it(strategy: str) -> None:
    head = build(strategy=strategy, dropout=0.5).train().head
    head.classifier = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.eye_(head.classifier.weight)  # shows what the last layer is given
    features = head(torch.randn(64, 4, 5, WIDTH))
    assert 0.3 < (features == 0).float().mean() < 0.7
    head.eval()
    assert (head(torch.randn(8, 4, 5, WIDTH)) != 0).all()


def test_a_fresh_classifier_is_near_indifference() -> None:
    classifier = make_classifier(768, 400)
    assert classifier.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not classifier.bias.any()


def test_the_head_shares_the_norm_of_the_trunk_which_is_counted_once() -> None:
    model = build(strategy="linear-probe")
    assert model.head.norm is model.trunk.norm
    trunk_total = sum(parameter.numel() for parameter in make_trunk("dinov2").parameters())
    count = model.count_parameters()
    assert count.trained == (WIDTH + 1) * len(LABELS)
    assert count.total == trunk_total + count.trained
    share = f"{100 * count.trained / count.total:.2f} %"
    assert str(count) == f"trained {count.trained:,} of {count.total:,} parameters ({share})"


def test_the_adapter_trains_as_many_parameters_as_the_paper_says() -> None:
    width, bottleneck = WIDTH, WIDTH // 2
    adapter = 2 * width * bottleneck + bottleneck + width + 3 * bottleneck + bottleneck
    model = build_model(backbone=make_trunk("clip"), labels=LABELS)
    assert model.count_parameters().trained == NUM_BLOCKS * adapter + (width + 1) * len(LABELS)


def test_a_model_is_built_from_a_folder_as_from_a_loaded_trunk(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    model = build_model(backbone=save_trunk(tmp_path, "vit"), labels=LABELS, tuning=STAdapter(width=8))
    assert torch.equal(torch.get_rng_state(), state)
    clips = make_clips()
    assert model.labels == LABELS
    assert torch.equal(model.eval()(clips), build("vit").eval()(clips))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"labels": ["one"]}, "at least two class names"),
        ({"labels": "left"}, "at least two class names"),
        ({"labels": ["a", "b", "a"]}, "given twice: a"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"dropout": -0.1}, "dropout -0.1"),
        ({"dropout": None}, "dropout None: expected at least 0 and less than 1"),
        ({"seed": 1.5}, "seed 1.5: expected a whole number from 0"),
        ({"seed": -1}, "seed -1: expected a whole number from 0"),
        ({"tuning": "lora"}, r"tuning 'lora': expected a strategy .* stadapter\.LoRA\(\)"),
        ({"tuning": LoRA}, "such as stadapter"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        build_model(**{"backbone": make_trunk("dinov2"), "labels": LABELS, **settings})


def test_a_model_is_fp32_on_a_trunk_in_fp64_which_stays_as_it_is() -> None:
    trunk = make_trunk("dinov2").to(torch.float64)
    model = build_model(backbone=trunk, labels=LABELS)
    assert {parameter.dtype for parameter in model.parameters()} == {model.dtype} == {torch.float32}
    assert model(make_clips()).isfinite().all()
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.float64}


@pytest.mark.parametrize("tuning", [STAdapter(width=8), BitFit(), LinearProbe()])
def test_on_a_trunk_in_half_precision_a_model_computes_in_it_and_learns_in_fp32(tuning: Tuning) -> None:
    trunk = make_trunk("dinov2").to(torch.bfloat16)
    model = build_model(backbone=trunk, labels=LABELS, tuning=tuning)
    assert model.dtype == torch.bfloat16
    model(make_clips()).sum().backward()
    trained = model.trained_tensors()
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_is_fp32_whatever_the_default_precision_of_new_tensors(dtype: torch.dtype) -> None:
    trunk = make_trunk("dinov2")
    torch.set_default_dtype(dtype)
    try:
        model = build_model(backbone=trunk, labels=LABELS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {tensor.dtype for tensor in (*model.parameters(), *model.buffers())} == {torch.float32}
    torch.testing.assert_close(model.mean, build().mean, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 4, 3, 28, 28), (2, 0, 3, 28, 28), (2, 4, 3, 0, 28)])
def test_clips_without_anything_in_them_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="expected at least one clip, frame and pixel"):
        build()(torch.zeros(shape))


def test_normalise_takes_pixels_and_passes_floats() -> None:
    model = build()
    pixels = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(model.normalise(pixels), (pixels / 255 - mean) / std)
    assert model.normalise(pixels[0]).shape == (3, 3, 8, 8)
    floats = make_clips()
    assert model.normalise(floats) is floats


@every_strategy
def test_tasks_on_one_trunk_share_its_storage_and_do_not_disturb_each_other(strategy: str) -> None:
    trunk = make_trunk("dinov3_vit")
    clips = make_clips()
    tokens, sha256 = trunk(clips), hash_weights(trunk)
    first = build_model(backbone=trunk, tuning=CASES[strategy], labels=LABELS).eval()
    second = build_model(backbone=trunk, tuning=CASES["st-adapter"], labels=LABELS[:2]).eval()
    weights = trunk.blocks[0].mlp.up_proj.weight
    assert second.trunk.blocks[0].mlp.up_proj.weight.data_ptr() == weights.data_ptr()
    assert second.trunk.norm.weight.data_ptr() == trunk.norm.weight.data_ptr()
    shared = {parameter.data_ptr() for parameter in trunk.parameters()}
    for parameter in first.trunk.parameters():
        assert (parameter.data_ptr() in shared) == (not parameter.requires_grad)
    expected = second(clips)
    disturb(first)
    first.trunk.use_attention("eager")
    first.cast_trunk(torch.bfloat16)
    first.trunk.requires_grad_(True)
    assert torch.equal(second(clips), expected)
    assert torch.equal(trunk(clips), tokens)
    assert hash_weights(trunk) == sha256
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    assert second.trunk.blocks[0].attention.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("strategy", ["st-adapter", "lora"])
def test_an_adapted_trunk_is_not_adapted_again(strategy: str) -> None:
    trunk = build(strategy=strategy).trunk
    with pytest.raises(SettingsError, match="already adapted"):
        build_model(backbone=trunk, labels=LABELS)
    with pytest.raises(SettingsError, match="already adapted"):
        share_weights(trunk)


@every_strategy
def test_trained_tensors_carry_a_task_to_another_model(strategy: str) -> None:
    trained = build("clip", strategy, seed=1).eval()
    disturb(trained)
    tensors = {name: tensor.detach().clone() for name, tensor in trained.trained_tensors().items()}
    fresh = build("clip", strategy, seed=2).eval()
    parameters = fresh.trained_tensors()
    fresh.load_trained(tensors)
    clips = make_clips()
    assert torch.equal(fresh(clips), trained(clips))
    assert all(fresh.trained_tensors()[name] is parameter for name, parameter in parameters.items())
    assert all(parameter.requires_grad for parameter in parameters.values())


def test_trained_tensors_that_do_not_fit_are_named_and_nothing_is_copied() -> None:
    model = build()
    before = {name: tensor.detach().clone() for name, tensor in model.trained_tensors().items()}
    wrong = {name: tensor + 1 for name, tensor in before.items()}
    del wrong["head.classifier.bias"]
    wrong["head.classifier.weight"] = torch.zeros(7, WIDTH)
    wrong["trunk.blocks.9.before_attention.up.bias"] = torch.zeros(WIDTH)
    with pytest.raises(ArtefactError) as caught:
        model.load_trained(wrong)
    message = str(caught.value)
    assert "missing: head.classifier.bias" in message
    assert "unknown: trunk.blocks.9.before_attention.up.bias" in message
    assert f"head.classifier.weight: shape (7, {WIDTH}), expected (3, {WIDTH})" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.trained_tensors().items())


@pytest.mark.parametrize("family", ["clip", "dinov2", "dinov3_vit"])
def test_a_model_is_exported_with_free_batch_and_frames(family: str) -> None:
    model = build(family).eval()
    disturb(model)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("frames", min=1, max=64)}
    program = torch.export.export(model, (make_clips(),), dynamic_shapes=(dynamic,))
    for batch, num_frames in [(2, 3), (3, 8), (1, 5)]:
        clips = make_clips(batch=batch, num_frames=num_frames, seed=9)
        assert relative_error(program.module()(clips).detach(), model(clips).detach()) < 1e-6


def test_an_unknown_strategy_or_setting_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"'prompts': expected one of st-adapter, linear-probe, .*, full-temporal"):
        tuning_from_json({"name": "prompts"})
    with pytest.raises(SettingsError, match="lora has no setting width"):
        tuning_from_json({"name": "lora", "width": 3})


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"rank": 0}, "rank 0"),
        ({"alpha": 0.0}, "nothing would learn"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"last_blocks": 9}, "the trunk has 3 blocks"),
    ],
)
def test_lora_refuses_settings_with_which_nothing_works(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        LoRA(**settings).apply(make_trunk("vit"))


@every_family
def test_lora_wraps_query_and_value_of_the_blocks_asked_for(family: str) -> None:
    names = [
        name.removesuffix(".lora_A.default.weight")
        for name in build(family, "lora-last-block").trained_tensors()
        if ".lora_A." in name
    ]
    last = f"trunk.blocks.{NUM_BLOCKS - 1}.attention"
    assert sorted(names) == [f"{last}.q_proj", f"{last}.v_proj"]


def test_lora_adds_what_its_equation_says() -> None:
    model = build("clip", "lora-last-block").eval()
    disturb(model)
    projection = model.trunk.blocks[-1].attention.q_proj
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    down, up = projection.lora_A["default"].weight, projection.lora_B["default"].weight
    expected = nn.functional.linear(x, projection.base_layer.weight, projection.base_layer.bias)
    torch.testing.assert_close(projection(x), expected + 3.5 / 2 * x @ down.T @ up.T)


def test_peft_is_imported_by_lora_alone() -> None:
    code = "import sys, stadapter.model; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_out_what_the_head_does_not_read_changes_nothing(family: str) -> None:
    model = build_model(backbone=make_trunk(family), labels=["a", "b"])
    clips = torch.randn(2, 3, 3, 16, 24)
    torch.testing.assert_close(model(clips), model.head(model.trunk(clips)), rtol=1e-5, atol=1e-6)
