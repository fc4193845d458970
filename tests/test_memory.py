"""What training holds in memory: the frozen trunk once, nothing for what is frozen, no more activations than needed."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from stadapter.artefact import save_artefact
from stadapter.clips import ClipConfig
from stadapter.costs import saved_bytes
from stadapter.model import VideoClassifier, build_model, prepare_trunk
from stadapter.predict import Classifier
from stadapter.samples import Batch
from stadapter.synthetic import write_clips
from stadapter.training.description import describe
from stadapter.training.loop import train
from stadapter.training.preparation import prepare
from stadapter.training.settings import TrainConfig
from stadapter.training.trial import Stepper
from stadapter.tuning import Bottleneck, LoRA, Partial, STAdapter, Tuning
from strategies import CASES, LABELS, build, disturb, shared_trunk
from trunks import FAMILIES, NUM_BLOCKS, make_clips, make_trunk, save_trunk

CPU = torch.device("cpu")
TARGETS = torch.tensor([0, 2])
every_strategy = pytest.mark.parametrize("strategy", CASES)
LAST_BLOCKS: dict[str, Any] = {
    "st-adapter": lambda count: STAdapter(width=8, last_blocks=count),
    "st-adapter-both": lambda count: STAdapter(width=8, before_mlp=True, last_blocks=count),
    "bottleneck": lambda count: Bottleneck(width=8, last_blocks=count),
    "lora": lambda count: LoRA(rank=2, last_blocks=count),
    "partial": lambda count: Partial(last_blocks=count),
}
"""Strategies that can leave the first blocks alone."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("memory")
    write_clips(folder / "clips", classes=("left", "right"), clips_per_class=4, size=32, num_frames=8)
    return TrainConfig(
        data=folder / "clips",
        out=folder / "run",
        backbone=save_trunk(folder / "trunk", "dinov2"),
        tuning=STAdapter(width=8),
        val_fraction=0.0,
        num_frames=4,
        size=16,
        epochs=2,
        batch_size=4,
        dropout=0.3,
        num_workers=0,
        device="cpu",
        precision="fp32",
    )


def run(config: TrainConfig, **changes: Any) -> Path:
    return train(dataclasses.replace(config, **changes), console=Console(file=io.StringIO())).folder


def learn(model: VideoClassifier, *, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss of a batch and every gradient, dropout the same in every call."""
    model.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(make_clips())
        loss = F.cross_entropy(logits, TARGETS)
        loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def where_it_keeps(model: VideoClassifier) -> list[int | str]:
    """Where a forward pass keeps something for the backward pass, in order: block by number, or what comes outside."""
    places: list[int | str] = []
    now: list[int | str] = ["before"]
    for index, block in enumerate(model.trunk.block_list()):
        block.register_forward_pre_hook(lambda *_, index=index: now.append(index))
        block.register_forward_hook(lambda *_: now.append("between"))

    def note(tensor: Tensor) -> Tensor:
        places.append(now[-1])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(make_clips())
    return places


def blocks_entered(model: VideoClassifier) -> list[int]:
    """The blocks that a step enters, in order, forward and backward."""
    entered: list[int] = []
    for index, block in enumerate(model.trunk.block_list()):
        block.register_forward_pre_hook(lambda *_, index=index: entered.append(index))
    learn(model)
    return entered


@pytest.mark.parametrize("strategy", LAST_BLOCKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_kept_below_the_first_block_that_learns(family: str, strategy: str) -> None:
    for count in (1, 2):
        tuning: Tuning = LAST_BLOCKS[strategy](count)
        places = where_it_keeps(build_model(backbone=shared_trunk(family), tuning=tuning, labels=LABELS))
        blocks = [place for place in places if isinstance(place, int)]
        assert set(blocks) == set(range(NUM_BLOCKS - count, NUM_BLOCKS))
        assert "before" not in places


@pytest.mark.parametrize("strategy", ["linear-probe", "attentive-pooling", "attentive-pooling-no-time"])
def test_what_learns_after_the_trunk_alone_keeps_nothing_in_it(strategy: str) -> None:
    model = build("dinov2", strategy)
    assert not [place for place in where_it_keeps(model) if isinstance(place, int) or place == "before"]


@every_strategy
def test_only_what_learns_has_gradients_and_optimizer_state(
    config: TrainConfig, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a step as training takes it."""
    stepper = Stepper(prepare(dataclasses.replace(config, tuning=CASES[strategy], precision="bf16")))
    kept: list[dict[str, Tensor | None]] = []
    monkeypatch.setattr(stepper._optimizer, "zero_grad", lambda *_: kept.append({}))
    clips = torch.zeros(2, 4, 3, 16, 16, dtype=torch.uint8)
    stepper.step(Batch(clips=clips, labels=torch.tensor([[0], [1]]), indices=torch.arange(2), failures=[]))
    assert kept
    trained = stepper.model.trained_tensors()
    with_state = {id(parameter) for parameter, state in stepper._optimizer.state.items() if state}
    assert with_state == {id(parameter) for parameter in trained.values()}
    for name, parameter in stepper.model.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        if name not in trained and parameter.ndim == 2 and "norm" not in name:
            assert parameter.dtype == torch.bfloat16, name


def storages(module: nn.Module) -> dict[int, int]:
    """The memory behind the frozen weights of a module, by address; bytes."""
    frozen = [parameter.untyped_storage() for parameter in module.parameters() if not parameter.requires_grad]
    return {storage.data_ptr(): storage.nbytes() for storage in frozen}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trunk_in_half_precision_is_held_once_for_all_its_models(family: str) -> None:
    trunk = make_trunk(family).to(torch.bfloat16)
    for strategy in ("st-adapter", "linear-probe", "st-adapter"):
        model = build_model(backbone=trunk, tuning=CASES[strategy], labels=LABELS)
        prepare_trunk(model, CPU, torch.bfloat16)
        assert storages(model.trunk).keys() <= storages(trunk).keys()
    whole = sum(parameter.numel() * parameter.element_size() for parameter in trunk.parameters())
    assert sum(storages(trunk).values()) == whole == 2 * sum(p.numel() for p in trunk.parameters())


def test_classifiers_on_one_loaded_trunk_hold_it_once(tmp_path: Path) -> None:
    trunk = make_trunk("clip")
    for name in ("first", "second"):
        model = build_model(backbone=trunk, tuning=CASES["st-adapter"], labels=LABELS)
        save_artefact(tmp_path / name, model, ClipConfig(num_frames=4, size=16), receipt={})
    served = [Classifier.load(tmp_path / name, backbone=trunk).model for name in ("first", "second")]
    assert all(storages(model.trunk).keys() <= storages(trunk).keys() for model in served)


@every_strategy
@pytest.mark.parametrize("family", ["clip", "dinov3_vit"])
def test_gradient_checkpointing_changes_neither_loss_nor_gradients_and_keeps_less(family: str, strategy: str) -> None:
    model = build(family, strategy, dropout=0.5).train()
    disturb(model)
    for module in model.modules():  # so that the same has to be drawn again
        if isinstance(module, nn.Dropout) and module is not model.head.dropout and module.training:
            module.p = 0.5
    for autocast in (False, True):
        model.trunk.recomputed = range(0)
        loss, gradients = learn(model, autocast=autocast)
        before = saved_bytes(lambda: model(make_clips()), model)
        blocks = model.trunk.recompute_blocks()
        found, again = learn(model, autocast=autocast)
        assert torch.equal(found, loss)
        for name, gradient in gradients.items():
            its = again[name]
            assert (gradient is None) == (its is None), name
            if gradient is not None and its is not None:
                torch.testing.assert_close(its, gradient, rtol=1e-6, atol=1e-7 * max(1.0, gradient.abs().max().item()))
        after = saved_bytes(lambda: model(make_clips()), model)
        assert (after < before) if blocks else (after == before)


@pytest.mark.parametrize("strategy", LAST_BLOCKS)
def test_gradient_checkpointing_leaves_the_blocks_that_keep_nothing_and_the_last(strategy: str) -> None:
    trunk = make_trunk("dinov2")
    expected = {1: range(2, 2), 2: range(1, 2), 3: range(2)}
    for count, blocks in expected.items():
        model = build_model(backbone=trunk, tuning=LAST_BLOCKS[strategy](count), labels=LABELS)
        assert model.trunk.recompute_blocks() == blocks
        assert blocks_entered(model) == [*range(NUM_BLOCKS), *reversed(blocks)]


def test_what_gradient_checkpointing_keeps_grows_by_a_blocks_input() -> None:
    """Deeper trunks keep one tensor of tokens more a block, where they would keep the whole inside."""
    clips = make_clips()
    tokens = 2 * 3 * 17 * 32 * 4
    kept = []
    for count in (2, 3):
        model = build_model(backbone=make_trunk("vit"), tuning=Partial(last_blocks=count), labels=LABELS)
        model.trunk.recompute_blocks()
        kept.append(saved_bytes(lambda model=model: model(clips), model))
    assert kept[1] - kept[0] == tokens


def test_nothing_is_computed_again_without_gradients() -> None:
    model = build("dinov2", "st-adapter")
    model.trunk.recompute_blocks()
    calls: list[int] = []
    model.trunk.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        model(make_clips())
    assert calls == [1]


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"accumulation_steps": 2, "batch_size": 2}])
def test_a_training_learns_the_same_with_gradient_checkpointing(
    config: TrainConfig, tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = load_file(run(config, out=tmp_path / "plain", **changes) / "stadapter.safetensors")
    folder = run(config, out=tmp_path / "checkpointed", gradient_checkpointing=True, **changes)
    found = load_file(folder / "stadapter.safetensors")
    assert found.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_run_with_gradient_checkpointing_says_what_it_takes_and_saves(config: TrainConfig) -> None:
    told = "\n".join(describe(prepare(dataclasses.replace(config, gradient_checkpointing=True))))
    assert "gradient checkpointing: " in told
    assert "GMACs more per batch" in told
    assert "to recompute 2 blocks; activations kept: " in told
    assert "gradient checkpointing" not in "\n".join(describe(prepare(config)))
