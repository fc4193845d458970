"""What needs a CUDA device: skipped without one, and failed without one where REQUIRE_GPU=1 says there must be."""

import dataclasses
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stadapter.costs import checkpointing_cost
from stadapter.model import build_model, prepare_trunk
from stadapter.predict import Classifier
from stadapter.synthetic import write_clips
from stadapter.training.estimate import estimate
from stadapter.training.loop import TrainConfig, train
from stadapter.training.preparation import prepare
from stadapter.tuning import STAdapter
from trunks import make_trunk, save_trunk

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("REQUIRE_GPU") == "1":
        pytest.fail("REQUIRE_GPU=1, but torch finds no CUDA device")
    pytest.skip("no CUDA device")


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "dinov3_vit"])
def test_a_gpu_gives_the_logits_of_the_cpu(family: str, cuda: torch.device) -> None:
    model = build_model(backbone=make_trunk(family), labels=["a", "b", "c"])
    clips = torch.randn(2, 4, 3, 16, 16)
    expected = model(clips)
    torch.testing.assert_close(model.to(cuda)(clips.to(cuda)).cpu(), expected, rtol=1e-3, atol=1e-4)


def test_a_run_on_a_gpu_serves_on_a_cpu(tmp_path: Path, cuda: torch.device) -> None:
    write_clips(tmp_path / "clips", classes=("left", "right"), clips_per_class=4, size=32, num_frames=8)
    run = train(
        TrainConfig(
            data=tmp_path / "clips",
            backbone=save_trunk(tmp_path / "trunk", "dinov2"),
            out=tmp_path / "run",
            tuning=STAdapter(width=8),
            size=16,
            num_frames=4,
            epochs=2,
            device="cuda",
        ),
        console=Console(file=io.StringIO()),
    )
    video = next((tmp_path / "clips" / "left").iterdir())
    on_cpu = Classifier.load(run.folder).predict(video)
    on_gpu = Classifier.load(run.folder, device="cuda").predict(video)
    assert on_gpu.score == pytest.approx(on_cpu.score, abs=1e-3)


def test_tokens_that_are_kept_train_the_same_on_a_gpu_up_to_rounding(tmp_path: Path, cuda: torch.device) -> None:
    write_clips(tmp_path / "clips", classes=("left", "right"), clips_per_class=4, size=32, num_frames=8)
    config = TrainConfig(
        data=tmp_path / "clips",
        backbone=save_trunk(tmp_path / "trunk", "dinov2"),
        out=tmp_path / "plain",
        tuning=STAdapter(width=8, last_blocks=2),
        val_fraction=0,
        size=16,
        num_frames=4,
        epochs=4,
        batch_size=3,
        device="cuda",
        precision="fp32",
        views_per_clip=2,
        token_cache_gigabytes=0,
        token_cache_folder=tmp_path / "cache",
    )
    console = Console(file=io.StringIO())
    plain = load_file(train(config, console=console).folder / "stadapter.safetensors")
    for name in ("cold", "warm"):
        kept = replace(config, out=tmp_path / name, token_cache_gigabytes=None)
        weights = load_file(train(kept, console=console).folder / "stadapter.safetensors")
        assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 16
        for key, tensor in plain.items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-2, atol=1e-4)


def test_an_estimate_tells_the_memory_of_the_gpu(tmp_path: Path, cuda: torch.device) -> None:
    write_clips(tmp_path / "clips", classes=("left", "right"), clips_per_class=4, size=32, num_frames=8)
    config = TrainConfig(
        data=tmp_path / "clips",
        backbone=save_trunk(tmp_path / "trunk", "dinov2"),
        out=tmp_path / "run",
        size=16,
        num_frames=4,
        batch_size=4,
        device="cuda",
    )
    result = estimate(prepare(config))
    assert result.is_whole
    assert result.fits
    held, *trials = result.trials
    assert 0 < held.peak_bytes < trials[0].peak_bytes <= trials[-1].peak_bytes < 10**9
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # of a compiler
def test_gradient_checkpointing_and_compilation_learn_the_same(tmp_path: Path, cuda: torch.device) -> None:
    write_clips(tmp_path / "clips", classes=("left", "right"), clips_per_class=4, size=32, num_frames=8)
    config = TrainConfig(
        data=tmp_path / "clips",
        backbone=save_trunk(tmp_path / "trunk", "dinov2"),
        out=tmp_path / "run",
        tuning=STAdapter(width=8),
        size=16,
        num_frames=4,
        epochs=2,
        batch_size=3,
        precision="fp32",
        device="cuda",
    )
    names, losses = [], []
    for changes in ({}, {"gradient_checkpointing": True}, {"compile": True}):
        output = io.StringIO()
        run = dataclasses.replace(config, out=tmp_path / "-".join(["run", *changes]), **changes)
        folder = train(run, console=Console(file=output)).folder
        assert "could not be compiled" not in output.getvalue()
        names.append(list(load_file(folder / "stadapter.safetensors")))
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses.append([step["loss"] for step in steps if step["kind"] == "train"][-1])
    assert names[0] == names[1] == names[2]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-2)


def test_gradient_checkpointing_saves_about_what_it_says(cuda: torch.device) -> None:
    model = build_model(backbone=make_trunk("clip"), labels=["a", "b"])
    size, dtype = 64, torch.bfloat16
    cost = checkpointing_cost(model, num_clips=64, num_frames=8, size=size, device=cuda, autocast_dtype=dtype)
    model.to(cuda)
    prepare_trunk(model, cuda, dtype)
    clips = torch.randn(64, 8, 3, size, size, device=cuda)

    def peak(recomputed: range) -> int:
        model.trunk.recomputed = recomputed
        for _ in range(2):
            model.zero_grad()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model(clips).sum().backward()
            torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    saved = peak(range(0)) - peak(range(cost.num_blocks))
    expected = cost.plain.kept_bytes - cost.checkpointed.kept_bytes - cost.block_bytes
    assert saved == pytest.approx(expected, rel=0.5)
