"""Compiled blocks give the values of plain ones under the same names; what cannot be compiled runs as it is."""

import dataclasses
import functools
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from stadapter.compiled import compile_nothing, try_compiled, uncompiled
from stadapter.model import VideoClassifier, build_model, prepare_trunk
from stadapter.synthetic import write_clips
from stadapter.training.loop import train
from stadapter.training.settings import TrainConfig
from stadapter.tuning import STAdapter
from strategies import CASES, LABELS, disturb
from trunks import make_clips, make_trunk, save_trunk

TARGETS = torch.tensor([0, 2])
SIZES: dict[str, Any] = {"batch_sizes": [2, 1], "num_frames": 3, "size": 16}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(family: str = "clip", strategy: str = "st-adapter") -> VideoClassifier:
    trunk = make_trunk(family, num_blocks=2)  # a first and a last: each is compiled by itself
    model = build_model(backbone=trunk, tuning=CASES[strategy], labels=LABELS)
    disturb(model)
    return model


def learn(model: VideoClassifier) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    clips = make_clips().to(model.mean.device)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        logits = model(clips)
    F.cross_entropy(logits, TARGETS.to(clips.device)).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_that_compiled_is_plain(model: VideoClassifier, *, backend: str, rtol: float) -> None:
    """Also with gradient checkpointing."""
    names = list(model.state_dict())
    logits, gradients = learn(model)
    assert try_compiled(model, **SIZES, backend=backend) is None
    for _ in range(2):
        found, its = learn(model)
        torch.testing.assert_close(found, logits, rtol=rtol, atol=rtol)
        assert its.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                its[name], gradient, rtol=rtol, atol=rtol * max(1.0, gradient.abs().max().item())
            )
        model.trunk.recompute_blocks()
    assert list(model.state_dict()) == names
    assert list(model.trained_tensors()) == list(gradients)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "strategy", "backend"),
    [
        ("clip", "st-adapter", "eager"),
        ("dinov3_vit", "lora", "eager"),
        pytest.param("clip", "st-adapter", "aot_eager", marks=pytest.mark.slow),
        pytest.param("dinov2", "aim", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_compiled_blocks_give_the_values_of_plain_ones(family: str, strategy: str, backend: str) -> None:
    check_that_compiled_is_plain(make(family, strategy), backend=backend, rtol=1e-5)  # other kernels


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["clip", "dinov2"])
def test_inductor_gives_the_values_of_plain_blocks(family: str) -> None:
    check_that_compiled_is_plain(make(family), backend="inductor", rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["clip", "dinov2", "dinov3_vit"])
def test_inductor_on_a_gpu_gives_the_values_of_plain_blocks(family: str) -> None:
    if not torch.cuda.is_available():
        assert os.environ.get("REQUIRE_GPU") != "1", "REQUIRE_GPU=1, but torch finds no CUDA device"
        pytest.skip("no CUDA device")
    model = make(family).to("cuda")
    check_that_compiled_is_plain(model, backend="inductor", rtol=1e-3)
    torch._dynamo.reset()
    bf16 = make(family).to("cuda")
    prepare_trunk(bf16, torch.device("cuda"), torch.bfloat16)
    logits, _ = learn(bf16)
    assert try_compiled(bf16, **SIZES) is None
    torch.testing.assert_close(learn(bf16)[0], logits, rtol=0.1, atol=0.1)


def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no C compiler here\nand\na long tale")


@pytest.mark.parametrize(("backend", "reason"), [("broken", "no C compiler here"), ("no-such-backend", "no-such-")])
def test_what_cannot_be_compiled_runs_as_it_is(backend: str, reason: str) -> None:
    if "broken" not in torch._dynamo.list_backends():
        torch._dynamo.register_backend(broken, name="broken")
    model = make()
    logits, gradients = learn(model)
    told = try_compiled(model, **SIZES, backend=backend)
    assert told is not None
    assert reason in told
    assert "\n" not in told
    assert "tale" not in told
    found, its = learn(model)
    assert torch.equal(found, logits)
    assert all(torch.equal(its[name], gradient) for name, gradient in gradients.items())


def test_too_little_memory_for_a_batch_is_not_the_compilers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(clips: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = make()
    monkeypatch.setattr(model, "forward", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        try_compiled(model, **SIZES, backend="eager")


def test_trying_leaves_no_gradients_and_undoing_leaves_nothing_compiled() -> None:
    model = make()
    assert try_compiled(model, **SIZES, backend="eager") is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(block._compiled_call_impl is not None for block in model.trunk.block_list())
    compile_nothing(model)
    assert all(block._compiled_call_impl is None for block in model.trunk.block_list())


def test_blocks_are_as_they_were_for_a_while_and_compiled_again() -> None:
    model = make()
    assert try_compiled(model, **SIZES, backend="eager") is None
    compiled = [block._compiled_call_impl for block in model.trunk.block_list()]
    with uncompiled(model):
        assert all(block._compiled_call_impl is None for block in model.trunk.block_list())
    assert [block._compiled_call_impl for block in model.trunk.block_list()] == compiled
    assert None not in compiled


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    write_clips(tmp_path / "clips", classes=("left", "right"), clips_per_class=3, size=32, num_frames=8)
    return TrainConfig(
        data=tmp_path / "clips",
        val_data=tmp_path / "clips",
        out=tmp_path / "run",
        backbone=save_trunk(tmp_path / "trunk", "dinov2", num_blocks=2),
        tuning=STAdapter(width=8),
        num_frames=4,
        size=16,
        epochs=2,
        batch_size=4,
        num_workers=0,
        device="cpu",
        precision="fp32",
    )


def test_a_compiled_training_learns_the_same_under_the_same_names(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(name: str, backend: str | None) -> tuple[dict[str, Tensor], str]:
        output = io.StringIO()
        module = sys.modules["stadapter.training.loop"]
        monkeypatch.setattr(module, "try_compiled", functools.partial(try_compiled, backend=backend))
        run = dataclasses.replace(config, out=tmp_path / name, compile=backend is not None)
        folder = train(run, console=Console(file=output, width=300)).folder
        return load_file(folder / "stadapter.safetensors"), output.getvalue()

    plain, said = trained("plain", None)
    assert "compil" not in said
    compiled, said = trained("compiled", "eager")
    assert "compiling blocks for batches of 4 and 2" in said
    failed, told = trained("failed", "no-such-backend")
    assert "the blocks could not be compiled and run uncompiled: " in told
    assert list(plain) == list(compiled) == list(failed)
    for name, tensor in plain.items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-5, atol=1e-6)
        assert torch.equal(failed[name], tensor)
