"""Laws over strategy x trunk family, and what docs/strategies.md says of each strategy."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from stadapter.__main__ import main
from stadapter.artefact import load_artefact, save_artefact
from stadapter.backbones import hash_weights, view_model
from stadapter.cli.train import parse_train_flags
from stadapter.clips import ClipConfig
from stadapter.errors import ArtefactError, SettingsError
from stadapter.layers import TimeEmbedding, attend_over_time, to_frames, to_sequences
from stadapter.model import build_model
from stadapter.predict import Classifier, Prediction
from stadapter.synthetic import write_clips
from stadapter.tensor_file import read_tensors
from stadapter.tuning import (
    AIM,
    STRATEGIES,
    AttentivePooling,
    BitFit,
    Bottleneck,
    Full,
    FullTemporal,
    LoRA,
    Partial,
    Prompt,
    STAdapter,
    Temporal,
    Tuning,
    tuning_from_json,
    tuning_name,
    tuning_to_json,
)
from stadapter.vit import BackboneInfo, ImageViT, TokenLayout
from strategies import (
    CASES,
    LABELS,
    SEES_TIME,
    STARTS_OTHERWISE,
    build,
    disturb,
    learns,
    relative_error,
    shared_trunk,
)
from trunks import FAMILIES, NUM_BLOCKS, WIDTH, make_clips, make_trunk, save_trunk

every_family = pytest.mark.parametrize("family", FAMILIES)
every_strategy = pytest.mark.parametrize("strategy", CASES)
TARGETS = torch.tensor([0, 2])


@pytest.mark.parametrize("strategy", [name for name in CASES if name not in STARTS_OTHERWISE])
@every_family
def test_a_fresh_model_computes_what_its_trunk_computes(
    family: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; where the MLPs of CLIP are repacked, up to rounding."""
    probe, model = build(family, "linear-probe").eval(), build(family, strategy).eval()
    model.head.classifier.load_state_dict(probe.head.classifier.state_dict())
    monkeypatch.setattr(ImageViT, "pack", lambda vit: None)
    unpacked = build(family, strategy).eval()
    for num_frames in (4, 1):
        clips = make_clips(num_frames=num_frames, height=8, width=20)
        expected = shared_trunk(family)(clips)
        assert torch.equal(unpacked.trunk(clips), expected)
        if family == "clip":
            assert relative_error(model.trunk(clips), expected) < 1e-6
        else:
            assert torch.equal(model.trunk(clips), expected)
        torch.testing.assert_close(model(clips), probe(clips), rtol=0, atol=1e-6)


@every_strategy
@every_family
def test_gradients_come_only_where_promised_and_everywhere_promised(family: str, strategy: str) -> None:
    model = build(family, strategy)
    disturb(model)
    F.cross_entropy(model(make_clips()), TARGETS).backward()
    for name, parameter in model.named_parameters():
        promised = learns(strategy, name)
        assert parameter.requires_grad == promised, name
        if not promised:
            assert parameter.grad is None, name
            continue
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None, name
        # The softmax takes out what a key's bias adds: its gradient is rounding, or nothing.
        assert torch.count_nonzero(parameter.grad) > 0 or name.endswith("k_proj.bias"), name


@every_strategy
@pytest.mark.parametrize(("family", "kernel"), [("clip", "eager"), ("dinov3_vit", "sdpa")])
def test_gradients_come_from_torch_func_too(family: str, strategy: str, kernel: Any) -> None:
    model, clips = build(family, strategy).eval(), make_clips()
    model.trunk.use_attention(kernel)
    disturb(model)
    F.cross_entropy(model(clips), TARGETS).backward()
    trained = {name: tensor.detach() for name, tensor in model.trained_tensors().items()}

    def loss(trained: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = torch.func.functional_call(model, trained, (clips,), tie_weights=False)
        return F.cross_entropy(logits, TARGETS)

    for name, found in torch.func.grad(loss)(trained).items():
        torch.testing.assert_close(found, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


@every_strategy
@every_family
def test_a_few_steps_change_all_that_learns_and_nothing_else(family: str, strategy: str) -> None:
    trunk, clips = shared_trunk(family), make_clips()
    tokens, sha256 = trunk(clips), hash_weights(trunk)
    model = build(family, strategy).eval()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.trained_tensors().values(), lr=1e-3, weight_decay=0)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(clips), TARGETS)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == learns(strategy, name) or name.endswith("k_proj.bias"), name
    assert hash_weights(trunk) == sha256
    assert torch.equal(trunk(clips), tokens)
    assert not any(parameter.requires_grad for parameter in trunk.parameters())


@every_strategy
@every_family
def test_what_was_trained_is_saved_and_serves_as_it_trained(family: str, strategy: str, tmp_path: Path) -> None:
    model = build(family, strategy, seed=1)
    disturb(model)
    save_artefact(tmp_path, model, ClipConfig(num_frames=4, size=16), receipt={})
    assert set(read_tensors(tmp_path / "stadapter.safetensors")[0]) == set(model.trained_tensors())
    served = load_artefact(tmp_path, backbone=shared_trunk(family)).model
    assert served.tuning == CASES[strategy]
    model.trunk.use_attention("eager")
    for module in model.train().modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for num_frames, height, width in [(1, 8, 8), (2, 16, 16), (5, 8, 20)]:
        clips = make_clips(num_frames=num_frames, height=height, width=width)
        assert relative_error(served(clips).detach(), model(clips).detach()) < 1e-5


@every_strategy
@every_family
def test_the_order_of_frames_counts_where_the_docs_say_so(family: str, strategy: str) -> None:
    model = build(family, strategy).eval()
    clips = make_clips(num_frames=5)
    disturb(model)
    with torch.inference_mode():
        error = relative_error(model(clips[:, [3, 0, 4, 2, 1]]), model(clips))
    assert (error > 1e-4) if strategy in SEES_TIME else (error < 1e-5)


@every_strategy
@every_family
def test_training_mode_reaches_what_was_added_and_never_the_trunk(family: str, strategy: str) -> None:
    model = build(family, strategy, dropout=0.5).train()
    added = {
        id(part) for module in [*model.trunk.insertion_points(), *model.trunk.inserted] for part in module.modules()
    }
    for name, module in model.trunk.named_modules():
        assert module.training == (id(module) in added), name
        frozen = any(not parameter.requires_grad for parameter in module.parameters(recurse=False))
        assert not (frozen and module.training), name
    assert model.head.dropout.training
    assert not model.head.norm.training
    assert not model.eval().head.dropout.training
    assert not any(module.training for module in model.modules() if module is not model)


@every_strategy
@every_family
def test_a_trunk_in_half_the_memory_gives_nearly_the_same_logits(family: str, strategy: str) -> None:
    model = build(family, strategy).eval()
    disturb(model)
    clips = make_clips(num_frames=4, height=8, width=20)
    expected = model(clips).detach()
    model.cast_trunk(torch.bfloat16)
    halved = {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}
    assert torch.bfloat16 in halved or strategy in ("full", "full-temporal")
    assert all(parameter.dtype == torch.float32 for parameter in model.trained_tensors().values())
    logits = model(clips)
    assert logits.dtype == torch.float32
    assert relative_error(logits.detach(), expected) < 0.1
    F.cross_entropy(logits, TARGETS).backward()
    for name, parameter in model.trained_tensors().items():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@every_strategy
def test_building_is_a_function_of_the_seed_and_leaves_the_random_state_alone(strategy: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (build(strategy=strategy, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    tensors = first.trained_tensors()
    assert all(torch.equal(tensors[name], again.trained_tensors()[name]) for name in tensors)
    assert not torch.equal(first.head.classifier.weight, other.head.classifier.weight)


@every_strategy
def test_a_strategy_goes_through_json_and_back(strategy: str) -> None:
    tuning = CASES[strategy]
    values = tuning_to_json(tuning)
    assert tuning_name(tuning) == values["name"] in STRATEGIES
    assert tuning_from_json(json.loads(json.dumps(values))) == tuning


EXPORTS_TIME = pytest.mark.skipif(
    torch.__version__ < "2.13", reason="torch before 2.13 exports it for one length alone"
)


@pytest.mark.parametrize(
    "strategy",
    [
        "bottleneck",
        "prompt",
        "attentive-pooling",
        pytest.param("aim-twice", marks=EXPORTS_TIME),
        pytest.param("temporal", marks=EXPORTS_TIME),
    ],
)
def test_what_adds_structure_is_exported_with_free_batch_and_frames(strategy: str) -> None:
    model = build("dinov3_vit", strategy).eval()
    disturb(model)
    dynamic = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("frames", min=1, max=64)}
    program = torch.export.export(model, (make_clips(),), dynamic_shapes=(dynamic,))
    for batch, num_frames in [(2, 3), (3, 8), (1, 5)]:
        clips = make_clips(batch=batch, num_frames=num_frames, seed=9)
        assert relative_error(program.module()(clips).detach(), model(clips).detach()) < 1e-6


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_from_the_command_line_and_predicts(
    name: str, tmp_path: Path, clips: Path, trunk_folder: Path
) -> None:
    small = "--num-frames 3 --size 8 --batch-size 4 --epochs 1 --num-workers 0 --device cpu --precision bf16"
    flags = ["--data", str(clips), "--backbone", str(trunk_folder), "--out", str(tmp_path / "run"), "--tuning", name]
    assert main(["train", *flags, *small.split(), "--val-fraction", "0"]) == 0
    classifier = Classifier.load(tmp_path / "run")
    assert tuning_name(classifier.model.tuning) == name
    assert isinstance(classifier.predict(clips / "left" / "left_00.mp4"), Prediction)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    write_clips(folder, classes=("left", "right"), clips_per_class=2, size=16, num_frames=4)
    return folder


@pytest.fixture(scope="module")
def trunk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunks") / "dinov2", "dinov2")


TYPED: dict[str, Tuning] = {
    "--tuning attentive-pooling --tuning.num-frames None --tuning.num-heads 3": AttentivePooling(None, 3),
    "--tuning bitfit": BitFit(),
    "--tuning prompt --tuning.num-prompts 5 --tuning.dropout 0": Prompt(5, 0.0),
    "--tuning bottleneck --tuning.width 9 --tuning.before-mlp --tuning.last-blocks 2": Bottleneck(
        9, before_mlp=True, last_blocks=2
    ),
    "--tuning aim --tuning.width 4 --tuning.joint-scale 1 --tuning.adapt-before-time": AIM(4, 8, 1.0, True),
    "--tuning temporal --tuning.num-frames 16": Temporal(16),
    "--tuning partial --tuning.last-blocks 3": Partial(3),
    "--tuning full": Full(),
    "--tuning full-temporal --tuning.num-frames 4": FullTemporal(4),
}


@pytest.mark.parametrize("typed", TYPED)
def test_a_strategy_and_its_settings_are_flags(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--data", "x", "--out", "y", *typed.split()]
    assert parse_train_flags(needed).tuning == TYPED[typed]
    with pytest.raises(SystemExit):
        parse_train_flags([*needed, "--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in typed.split() if flag.startswith("--tuning."))


@pytest.mark.parametrize(
    ("strategy", "settings", "reason"),
    [
        (Prompt, {"num_prompts": 0}, "num_prompts 0: expected at least 1"),
        (Prompt, {"dropout": 1.0}, r"dropout 1\.0: expected 0 to below 1"),
        (LoRA, {"rank": 0}, "rank 0: expected at least 1"),
        (LoRA, {"alpha": 0.0}, r"alpha 0\.0: expected a finite number above 0"),
        (LoRA, {"dropout": -0.1}, r"dropout -0\.1: expected 0 to below 1"),
        (Temporal, {"num_frames": 0}, "num_frames 0: expected at least 1"),
        (FullTemporal, {"num_frames": -1}, "num_frames -1"),
        (AttentivePooling, {"num_frames": 0}, "num_frames 0"),
        (AttentivePooling, {"num_heads": 0}, "num_heads 0"),
        (AIM, {"width": 0}, "width 0: expected at least 1"),
        (AIM, {"joint_scale": 0.0}, "would never learn"),
        (AIM, {"num_frames": 0}, "num_frames 0"),
        (Bottleneck, {"width": 0}, "width 0"),
        (Bottleneck, {"activation": "sine"}, "'sine': expected 'gelu' or"),
        (Partial, {"last_blocks": 0}, "last_blocks 0: expected at least 1"),
        (LoRA, {"last_blocks": 0}, "last_blocks 0: expected at least 1"),
        (AIM, {"joint_scale": math.nan}, "joint_scale nan: expected a finite number"),
        (LoRA, {"alpha": math.inf}, "alpha inf: expected a finite number"),
        (Partial, {"last_blocks": 1.5}, r"last_blocks 1\.5: expected a whole number"),
        (STAdapter, {"before_attention": False}, "neither before_attention nor before_mlp trains nothing"),
        (Bottleneck, {"before_attention": False}, "neither before_attention nor before_mlp trains nothing"),
        (STAdapter, {"first_blocks": 1, "last_blocks": 2}, "first_blocks 1 and last_blocks 2: expected at most one"),
    ],
)
def test_settings_with_which_nothing_works_are_refused_as_they_are_made(
    strategy: type[Any], settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason):
        strategy(**settings)


@pytest.mark.parametrize(
    ("tuning", "reason"),
    [
        (Partial(4), r"last_blocks=4: the trunk has 3 blocks"),
        (AttentivePooling(num_heads=5), "num_heads 5: expected a number that divides the trunk's width, 32"),
        (Bottleneck(before_attention=False, before_mlp=True, last_blocks=1), "cannot reach the class token"),
    ],
)
def test_settings_that_a_trunk_cannot_hold_are_refused_with_the_reason(tuning: Tuning, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        build_model(backbone=shared_trunk("dinov2"), tuning=tuning, labels=LABELS)


def test_bitfit_on_a_trunk_without_biases_is_refused() -> None:
    trunk = make_trunk("vit")
    for module in trunk.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    with pytest.raises(SettingsError, match="without biases"):
        BitFit().apply(trunk)


def test_a_time_embedding_is_its_own_vectors_and_interpolates_others() -> None:
    embedding = TimeEmbedding(num_frames=4, width=2)
    assert torch.equal(embedding(7), torch.zeros(7, 2))
    with torch.no_grad():
        embedding.weight.copy_(torch.arange(8.0).view(4, 2))
    assert torch.equal(embedding(4), embedding.weight)
    torch.testing.assert_close(embedding(1)[0], embedding.weight.mean(0))
    longer = embedding(8)
    assert torch.all(longer[1:] >= longer[:-1])
    torch.testing.assert_close(longer[[0, -1]], embedding.weight[[0, -1]])


def test_sequences_over_time_hold_one_place_of_one_clip() -> None:
    layout = TokenLayout(num_frames=3, num_prefix=1, grid_height=1, grid_width=2)
    clip, frame, token = torch.arange(2).view(2, 1, 1), torch.arange(3).view(1, 3, 1), torch.arange(3).view(1, 1, 3)
    x = (100 * clip + 10 * frame + token).view(6, 3, 1)  # (B*T, N, D)
    sequences = to_sequences(x, layout)
    assert sequences[:, :, 0].tolist()[:2] == [[0, 10, 20], [1, 11, 21]]
    assert sequences[:, :, 0].tolist()[3] == [100, 110, 120]
    assert torch.equal(to_frames(sequences, num_tokens=3), x)


def test_attention_over_time_rotates_nothing() -> None:
    """In DINOv3 it equals the plain attention of the same weights in a family without rotation."""
    rotary, plain = make_trunk("dinov3_vit").blocks[0].attention, make_trunk("dinov2").blocks[0].attention
    for ours in ("q_proj", "k_proj", "v_proj", "o_proj"):
        getattr(plain, ours).weight = getattr(rotary, ours).weight
        getattr(plain, ours).bias = getattr(rotary, ours).bias
    x = make_clips(height=1, width=WIDTH)[:, :, 0, 0]  # (2, 3, D)
    torch.testing.assert_close(
        attend_over_time(rotary, x, rotary=True), attend_over_time(plain, x, rotary=False), rtol=1e-5, atol=1e-5
    )


@every_family
def test_temporal_attention_starts_as_a_copy_of_the_attention_beside_it(family: str) -> None:
    trunk = make_trunk(family)
    CASES["temporal"].apply(trunk)
    for index, block in enumerate(trunk.blocks):
        temporal = block.before_attention
        for ours, frozen in ((temporal.attention, block.attention), (temporal.norm, block.norm1)):
            for one, other in zip(ours.parameters(), frozen.parameters(), strict=True):
                assert torch.equal(one, other)
                assert one.data_ptr() != other.data_ptr()
        assert (temporal.time_embedding is not None) == (index == 0)


@pytest.mark.parametrize("family", ["dinov2_with_registers", "dinov3_vit"])
def test_temporal_attention_leaves_prefix_tokens_alone(family: str) -> None:
    model = build(family, "temporal")
    disturb(model)
    layout = TokenLayout(num_frames=2, num_prefix=3, grid_height=2, grid_width=1)
    x = torch.randn(4, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    y = model.trunk.blocks[0].before_attention(x, layout)
    assert torch.equal(y[:, :3], x[:, :3])
    assert not torch.isclose(y[:, 3:], x[:, 3:]).any(-1).all()


@every_family
def test_prompts_are_those_of_whole_blocks_that_drop_their_tokens(family: str) -> None:
    """VPT-Deep as published: prompts go through the whole block behind the class token and are then replaced."""
    model = build(family, "prompt").eval()
    disturb(model)
    trunk, clips = shared_trunk(family), make_clips(height=8, width=12)
    images = clips.flatten(0, 1)
    x = trunk.pre_norm(trunk._embed(trunk.embeddings, images))
    rotary = trunk.rotary(images) if trunk.rotary is not None else None
    num_prefix = trunk.num_prefix
    for block, prompted in zip(trunk.blocks, model.trunk.blocks, strict=True):
        prompts = prompted.attention.prompts.expand(len(x), -1, -1)
        x = torch.cat([x[:, :num_prefix], prompts, x[:, num_prefix:]], dim=1)
        x = block(x, TokenLayout(3, num_prefix + 2, 2, 3), rotary)
        x = torch.cat([x[:, :num_prefix], x[:, num_prefix + 2 :]], dim=1)
    assert relative_error(model.trunk(clips).flatten(0, 1).detach(), x.detach()) < 1e-5


@every_family
def test_aim_is_its_equations(family: str) -> None:
    """Yang et al., section 3: over time, over space, then beside the MLP, each with its adapter."""
    model = build(family, "aim").eval()
    disturb(model)
    trunk, clips = model.trunk, make_clips(num_frames=4)
    images = clips.flatten(0, 1)
    x = trunk.pre_norm(trunk._embed(trunk.embeddings, images))
    rotary = {"position_embeddings": trunk.rotary(images)} if trunk.rotary is not None else {}
    turned = {"position_embeddings": tuple(x.new_zeros(0, 1) for _ in range(2))} if rotary else {}
    x = (x.view(2, 4, *x.shape[1:]) + trunk.blocks[0].before_attention.time_embedding.weight[:, None]).flatten(0, 1)
    for block in trunk.blocks:
        over_time = block.norm1(x).view(2, 4, *x.shape[1:]).transpose(1, 2).flatten(0, 1)
        update = block.before_attention.adapter(block.attention.attention(over_time, **turned)[0])
        x = x + update.view(2, -1, 4, WIDTH).transpose(1, 2).flatten(0, 1)
        attended = block.attention.attention(block.norm1(x), **rotary)[0]
        x = x + block.scale1(attended + block.attention.adapter(attended))
        normed = block.norm2(x)
        x = x + block.scale2(block.mlp.mlp(normed) + 0.5 * block.mlp.adapter(normed))
    assert relative_error(model.trunk(clips).flatten(0, 1).detach(), x.detach()) < 1e-5


def test_attentive_pooling_is_attention_of_one_query_over_all_tokens() -> None:
    model = build("clip", "attentive-pooling").eval()
    disturb(model)
    head, clips = model.head, make_clips(num_frames=4)
    tokens = head.norm(model.trunk(clips)) + head.time_embedding.weight[:, None]
    tokens = tokens.flatten(1, 2)
    attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True).eval()
    with torch.no_grad():
        no_bias = torch.zeros(WIDTH)
        attention.in_proj_weight.copy_(torch.cat([torch.eye(WIDTH), head.key.weight, head.value.weight]))
        attention.in_proj_bias.copy_(torch.cat([no_bias, no_bias, head.value.bias]))
        attention.out_proj.load_state_dict(head.output.state_dict())
    pooled = attention(head.query.view(1, 1, WIDTH).expand(2, -1, -1), tokens, tokens)[0][:, 0]
    expected = head.classifier(head.pooled_norm(pooled))
    assert relative_error(model(clips).detach(), expected.detach()) < 1e-5


def test_prompt_dropout_acts_in_training_alone() -> None:
    model = build_model(backbone=shared_trunk("dinov2"), tuning=Prompt(num_prompts=4, dropout=0.5), labels=LABELS)
    clips = make_clips()
    model.train()
    assert not torch.equal(model(clips), model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))


def test_weights_that_no_forward_pass_reads_do_not_learn() -> None:
    model = build("dinov2", "full")
    frozen = [name for name, parameter in model.trunk.named_parameters() if not parameter.requires_grad]
    assert frozen == ["embeddings.mask_token"]


def vit_b16() -> ImageViT:
    """ViT-B/16 by its configuration, without storage."""
    with torch.device("meta"):
        model: Any = transformers.ViTModel(transformers.ViTConfig(), add_pooling_layer=False)
    half = (0.5, 0.5, 0.5)
    info = BackboneInfo(
        name="vit-b16", family="vit", revision=None, sha256="none", image_size=224, patch_size=16, mean=half, std=half
    )
    return view_model(model.eval(), info)


def trained_beside_the_classifier(trunk: ImageViT, tuning: Tuning) -> int:
    model = build_model(backbone=trunk, tuning=tuning, labels=LABELS)
    return model.count_parameters().trained - (trunk.width + 1) * len(LABELS)


def test_full_fine_tuning_of_the_paper_is_counted_exactly() -> None:
    """121.57 M: ViT-B/16, TimeSformer's temporal attention, an embedding of 8 frames, and a 400-class head."""
    labels = [str(label) for label in range(400)]
    model = build_model(backbone=vit_b16(), tuning=FullTemporal(num_frames=8), labels=labels)
    count = model.count_parameters()
    assert count.trained == count.total == 121_566_352
    assert f"{count.trained:,}" in DOCS


DOCS = (Path(__file__).resolve().parents[1] / "docs" / "strategies.md").read_text(encoding="utf-8")


def documented() -> dict[str, dict[str, str]]:
    """The rows of the table in the docs, by strategy, then by heading."""
    lines = [line for line in DOCS.split("<!-- table -->", 1)[1].splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(heading[1:], row[1:], strict=True)) for row in rows}


def test_the_docs_list_every_strategy_in_its_order() -> None:
    assert list(documented()) == list(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_docs_count_parameters_as_the_code_does(name: str) -> None:
    row, tuning = documented()[name], STRATEGIES[name]()
    formula = row["parameters"].strip("`")
    for trunk, hidden in ((vit_b16(), 3072), (shared_trunk("vit"), 48)):
        width = trunk.width
        symbols = {
            "L": len(trunk.blocks),
            "D": width,
            "M": hidden,
            "K": 3,
            "P": 50,
            "T": 8,
            "r": 8,
            "n": 1,
            "A": width // 4 if name == "aim" else width // 2,
            "V": sum(parameter.numel() for parameter in trunk.parameters()),
        }
        assert eval(formula, {}, symbols) == trained_beside_the_classifier(trunk, tuning)
    assert int(row["on ViT-B/16"].replace(",", "")) == trained_beside_the_classifier(vit_b16(), tuning)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_docs_say_who_sees_the_order_of_frames(name: str) -> None:
    assert documented()[name]["sees order"] == ("yes" if name in SEES_TIME else "no")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_names_its_source(name: str) -> None:
    sources = re.findall(r"arXiv[ :]\d{4}\.\d{5}", documented()[name]["source"])
    assert sources or name == "linear-probe"
    module = Path(STRATEGIES[name].apply.__code__.co_filename).read_text(encoding="utf-8")
    assert all(source in module for source in sources)


def test_bottleneck_adapters_have_the_places_and_widths_of_st_adapters() -> None:
    ours, theirs = (build_model(backbone=shared_trunk("clip"), tuning=STRATEGIES[name](), labels=LABELS)
                    for name in ("bottleneck", "st-adapter"))  # fmt: skip
    convolutions = NUM_BLOCKS * (3 + 1) * (WIDTH // 2)
    assert theirs.count_parameters().trained - ours.count_parameters().trained == convolutions


def test_a_full_fine_tuned_trunk_is_bound_to_the_trunk_it_came_from(tmp_path: Path) -> None:
    model = build("vit", "full")
    disturb(model)
    save_artefact(tmp_path, model, ClipConfig(size=16), receipt={})
    spec = json.loads((tmp_path / "stadapter.json").read_text())
    assert spec["backbone"]["sha256"] == hash_weights(shared_trunk("vit"))
    stored = sum(tensor.numel() for tensor in read_tensors(tmp_path / "stadapter.safetensors")[0].values())
    assert stored == model.count_parameters().total


def test_a_run_with_the_head_of_another_strategy_is_refused(tmp_path: Path) -> None:
    save_artefact(tmp_path, build("vit", "attentive-pooling"), ClipConfig(size=16), receipt={})
    description = tmp_path / "stadapter.json"
    spec = json.loads(description.read_text())
    assert spec["head"] == {"name": "attentive-pooling"}
    description.write_text(json.dumps({**spec, "head": {"name": "frame-average"}}))
    with pytest.raises(ArtefactError, match="'frame-average'; with this strategy"):
        load_artefact(tmp_path, backbone=shared_trunk("vit"))
