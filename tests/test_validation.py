"""The held-out clips of a run, looked at between its epochs: what is told, and that nothing else changes."""

import dataclasses
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from stadapter import dataset
from stadapter.artefact import load_artefact
from stadapter.errors import DataError, SettingsError
from stadapter.evaluation import evaluate
from stadapter.model import VideoClassifier
from stadapter.records import read_records
from stadapter.synthetic import write_clips
from stadapter.training import validation
from stadapter.training.checkpoint import CHECKPOINT_NAME, read_checkpoint
from stadapter.training.loop import TrainConfig, train
from stadapter.training.preparation import prepare
from stadapter.training.validation import is_due
from stadapter.tuning import LinearProbe, STAdapter, Tuning
from trainings import stop_after
from trunks import save_trunk

STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for split, count in (("train", 6), ("val", 2)):
        write_clips(folder / split, classes=("left", "right"), clips_per_class=count, size=32, num_frames=8)
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path, trunk: Path) -> TrainConfig:
    return TrainConfig(
        data=data,
        backbone=trunk,
        out=tmp_path / "run",
        tuning=STAdapter(width=8),
        num_frames=4,
        size=16,
        epochs=4,
        batch_size=4,
        dropout=0.3,
        device="cpu",
        precision="fp32",
        num_workers=0,
        validate_every_epochs=1,
    )


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunk"), "dinov2")


def run(config: TrainConfig, **changes: Any) -> tuple[Path, str]:
    """The run folder, and what was said."""
    said = io.StringIO()
    folder = train(dataclasses.replace(config, **changes), console=Console(file=said, width=200)).folder
    return folder, said.getvalue()


def weights(folder: Path) -> bytes:
    return (folder / "stadapter.safetensors").read_bytes()


def validated(folder: Path | str) -> list[tuple[int, float, float]]:
    """Step, loss and top-1 of every validation of a run."""
    records = [record for record in read_records(Path(folder)) if record["kind"] == "validation"]
    return [(record["step"], record["loss"], record["top1"]) for record in records]


def test_looking_at_held_out_clips_changes_no_weight(config: TrainConfig) -> None:
    looked, said = run(config)
    not_looked, silent = run(config, out=config.out + "-not", validate_every_epochs=0)
    assert weights(looked) == weights(not_looked)
    figures = validated(looked)
    assert [step for step, *_ in figures] == [3, 6, 9, 12]
    assert len({loss for _, loss, _ in figures}) == 4  # of four states of the network
    assert validated(not_looked) == figures[-1:]
    for number, (_, loss, top1) in enumerate(figures[:-1], start=1):
        assert f"epoch {number}/4: held out, loss {loss:.3f}, top-1 {100 * top1:.1f} %" in said
    assert "held out, loss" not in silent


def test_its_figures_are_those_of_the_network_as_it_stands(config: TrainConfig) -> None:
    (_, loss, top1), *_ = validated(run(config, validate_every_epochs=2)[0])
    stopped = dataclasses.replace(config, out=config.out + "-stopped", validate_every_epochs=0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stop_after(monkeypatch, steps=2 * STEPS_PER_EPOCH)
        with pytest.raises(KeyboardInterrupt):
            run(stopped)
    prepared = prepare(dataclasses.replace(stopped, resume=True))
    tensors = load_file(Path(stopped.out) / CHECKPOINT_NAME)
    trained = {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("parameter/")}
    prepared.model.load_state_dict(trained, strict=False)
    assert prepared.val_set is not None
    report = evaluate(prepared.model, prepared.val_set, prepared.clip_config, batch_size=config.batch_size)
    assert (report.loss, report.top1) == pytest.approx((loss, top1), abs=1e-6)


@pytest.mark.parametrize(("tuning", "num_tokens"), [(STAdapter(width=8, last_blocks=2), 17), (LinearProbe(), 1)])
def test_held_out_clips_are_decoded_and_seen_by_the_frozen_blocks_once(
    config: TrainConfig, tmp_path: Path, tuning: Tuning, num_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, tuning=tuning, views_per_clip=1, token_cache_folder=tmp_path / "tokens")
    plain, _ = run(config, out=tmp_path / "plain", token_cache_gigabytes=0)
    num_decoded, num_seen = [0], [0]
    load_clip, frozen_tokens = dataset.load_clip, VideoClassifier.frozen_tokens

    def count_clips(*args: Any, **kwargs: Any) -> torch.Tensor:
        num_decoded[0] += 1
        return load_clip(*args, **kwargs)

    def count_views(model: VideoClassifier, clips: torch.Tensor) -> torch.Tensor:
        num_seen[0] += len(clips)
        return frozen_tokens(model, clips)

    monkeypatch.setattr(dataset, "load_clip", count_clips)
    monkeypatch.setattr(VideoClassifier, "frozen_tokens", count_views)
    folder, said = run(config)
    num_views = prepare(dataclasses.replace(config, out=tmp_path / "o")).clip_config.num_spatial_views
    assert num_decoded == [4]
    assert num_seen == [12 + 4 * num_views]
    num_bytes = 4 * num_tokens * 32 * 4  # frames, tokens of a frame, width, fp32
    assert f"their tokens, {num_seen[0] * num_bytes / 1e9:.2g} GB of" in said
    assert validated(folder) == validated(plain)
    assert len(validated(folder)) == 4
    run(config, out=tmp_path / "once", validate_every_epochs=0)
    assert num_decoded == [8]  # its own, which is needed once


def test_it_is_due_after_every_so_many_epochs_but_for_the_last(config: TrainConfig) -> None:
    def due(every: int) -> list[int]:
        prepared = prepare(dataclasses.replace(config, validate_every_epochs=every))
        assert prepared.plan.steps_per_epoch == STEPS_PER_EPOCH
        return [step for step in range(prepared.plan.total_steps + 1) if is_due(prepared, step)]

    assert [due(every) for every in (0, 1, 2, 3, 4)] == [[], [3, 6, 9], [6], [9], []]


def test_without_held_out_clips_it_is_refused(config: TrainConfig, data: Path) -> None:
    with pytest.raises(SettingsError, match="validate_every_epochs 1: no clips are held out"):
        prepare(dataclasses.replace(config, data=data / "train", val_fraction=0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_that_is_stopped_while_it_looks_goes_on_as_if_it_had_not_been(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    config = dataclasses.replace(config, num_workers=num_workers)
    whole, _ = run(config)
    asked = dataclasses.replace(config, out=config.out + "-asked")
    with monkeypatch.context() as patched:
        looks = []

        def stopped(*args: Any, **kwargs: Any) -> Any:
            looks.append(None)
            if len(looks) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(*args, **kwargs)

        patched.setattr(validation, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(asked)
    assert read_checkpoint(Path(asked.out))[0].step == 2 * STEPS_PER_EPOCH
    assert [step for step, *_ in validated(asked.out)] == [3]
    run(asked, resume=True)
    assert weights(Path(asked.out)) == weights(whole)
    assert validated(asked.out) == validated(whole)


def test_where_a_run_goes_on_its_validation_is_recorded_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(config)
    killed = dataclasses.replace(config, out=config.out + "-killed", checkpoint_minutes=0)
    stop_after(monkeypatch, steps=STEPS_PER_EPOCH + 1)
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    monkeypatch.undo()
    # As a kill after the validation and before the next checkpoint leaves it: the one of step 3, and records of later.
    metrics = Path(killed.out) / "metrics.jsonl"
    assert [step for step, *_ in validated(killed.out)] == [3]
    at_epoch = dataclasses.replace(killed, out=config.out + "-at-epoch")
    stop_after(monkeypatch, steps=STEPS_PER_EPOCH)
    with pytest.raises(KeyboardInterrupt):
        run(at_epoch)
    monkeypatch.undo()
    (Path(at_epoch.out) / "metrics.jsonl").write_text(metrics.read_text())
    run(at_epoch, resume=True)
    assert validated(at_epoch.out) == validated(whole)


def test_held_out_clips_that_vanish_cost_neither_the_training_nor_its_weights(
    config: TrainConfig, tmp_path: Path, data: Path
) -> None:
    whole, _ = run(config, validate_every_epochs=0)
    held_out = tmp_path / "held-out"
    write_clips(held_out, classes=("left", "right"), clips_per_class=1, size=32, num_frames=8)
    without = dataclasses.replace(config, data=data / "train", val_data=held_out, out=config.out + "-without")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch:

        def vanished(*args: Any, **kwargs: Any) -> Any:
            for clip in held_out.rglob("*.mp4"):
                clip.unlink()
            return evaluate(*args, **kwargs)

        monkeypatch.setattr(validation, "evaluate", vanished)
        with pytest.raises(DataError, match="none of 2 clips could be read"):
            train(without, console=Console(file=said, width=200))
    assert "epoch 1/4: not validated: none of 2 clips could be read" in said.getvalue()
    assert weights(Path(without.out)) == weights(whole)
    assert load_artefact(Path(without.out)).receipt["steps"] == 12


def test_the_figures_are_in_metrics_jsonl_and_a_curve_of_the_report(config: TrainConfig) -> None:
    folder, _ = run(config)
    kinds = [json.loads(line)["kind"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert kinds.count("validation") == 4
    page = (folder / "report.html").read_text()
    assert page.count('class="held-out"') == 2  # of the loss and of the accuracy
