import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from stadapter import machine
from stadapter.model import ParameterCount
from stadapter.synthetic import write_clips
from stadapter.training import estimate as module
from stadapter.training.checkpoint import Checkpoints, Progress
from stadapter.training.estimate import Estimate, estimate, tables
from stadapter.training.loop import train
from stadapter.training.preparation import Prepared, prepare
from stadapter.training.settings import TrainConfig
from stadapter.training.trial import Trial
from stadapter.tuning import STAdapter
from trunks import save_trunk


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("estimate")
    write_clips(folder / "clips", classes=("left", "right"), clips_per_class=5, num_frames=12)
    save_trunk(folder / "trunk", "dinov2")
    return TrainConfig(
        data=folder / "clips",
        out=folder / "run",
        backbone=folder / "trunk",
        num_frames=2,
        size=16,
        batch_size=4,
        epochs=6,
        num_workers=0,
        dropout=0.3,
        device="cpu",
        precision="fp32",
    )


@pytest.fixture(scope="module")
def run(config: TrainConfig) -> Prepared:
    return prepare(config)


def known(run: Prepared, **values: Any) -> Estimate:
    """An estimate of 10^9 bytes and 1 s a batch of 4 clips of 2 frames, each of which takes 0.5 s to read."""
    figures = {
        "run": run,
        "parameters": ParameterCount(1000, 20000),
        "gmacs_per_view": 1.5,
        "num_workers": 1,
        "trials": (Trial(1, 2, (0.4,), 400_000_000), Trial(4, 2, (0.9, 1.0, 1.1), 1_000_000_000)),
        "reading_seconds": 0.05,
        "held_out_reading_seconds": 0.05,
        "forward_seconds": 0.01,
        "failures": (),
        "available_bytes": 8_000_000_000,
        "held_bytes": 200_000_000,
    }
    return Estimate(**{**figures, **values})


def shown(result: Estimate) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(tables(result))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def row(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip("│ ").startswith(name))


def stopping_after(save: Callable[..., None], step: int) -> Callable[..., None]:
    """`Checkpoints.save` that is interrupted once that of a step is on disk."""

    def stop(checkpoints: Checkpoints, progress: Progress) -> None:
        save(checkpoints, progress)
        if progress.step == step:
            raise KeyboardInterrupt

    return stop


def test_an_estimate_is_measured_and_leaves_nothing(config: TrainConfig, run: Prepared) -> None:
    around = sorted(Path(config.data).parent.rglob("*"))
    state = torch.get_rng_state()
    result = estimate(run, seconds=600)
    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(Path(config.data).parent.rglob("*")) == around
    assert result.is_whole
    assert result.fits
    assert result.reading_seconds is not None
    assert result.training_seconds == pytest.approx(run.plan.total_steps * result.seconds_per_step)
    assert 0 < result.peak_bytes < 10**10
    assert result.validation_seconds > 0
    text = shown(result)
    assert f"{result.parameters.trained:,}" in row(text, "parameters")
    assert f"{run.plan.total_steps:,}" in row(text, "steps")
    for name in ("memory", "per step", "training", "validation", "total"):
        assert any(letter.isdigit() for letter in row(text, name))


def test_a_training_learns_the_same_with_an_estimate_before_it(config: TrainConfig, tmp_path: Path) -> None:
    short = replace(config, epochs=1, val_fraction=0)
    plain = train(replace(short, out=tmp_path / "plain")).folder
    later = replace(short, out=tmp_path / "later")
    estimate(prepare(later), seconds=60)
    weights = [(folder / "stadapter.safetensors").read_bytes() for folder in (plain, train(later).folder)]
    assert weights[0] == weights[1]


def test_time_is_that_of_the_slower_where_decoding_has_cores_of_its_own(
    run: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "count_cores", lambda: torch.get_num_threads() + 1)
    assert known(run).seconds_per_step == 1.0
    assert known(run, reading_seconds=0.5).seconds_per_step == 2.0
    assert known(run, num_workers=2, reading_seconds=0.5).seconds_per_step > 1.0
    assert known(run, num_workers=0, reading_seconds=0.5).seconds_per_step == 3.0
    assert known(run, reading_seconds=None).seconds_per_step == 1.0


def test_decoding_takes_its_share_of_the_cores_it_has_to_share(run: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "count_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert known(run, num_workers=2).seconds_per_step == pytest.approx(1 + 0.2 / 4)
    assert known(run, num_workers=2, reading_seconds=1.2).seconds_per_step == pytest.approx(2.4)  # as fast as two read


def test_decoding_takes_turns_where_it_has_no_core_of_its_own(run: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "count_cores", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert known(run).seconds_per_step == pytest.approx(1 + 0.2)
    assert known(run, num_workers=2, reading_seconds=0.6).seconds_per_step == pytest.approx(1 + 2.4 / 2)
    assert known(run, num_workers=8, reading_seconds=0.6).seconds_per_step == pytest.approx(1 + 2.4 / 2)


def test_on_a_gpu_decoding_goes_on_beside_the_model(run: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "count_cores", lambda: 1)
    on_gpu = replace(run, accelerator=SimpleNamespace(device=torch.device("cuda"), num_processes=1))
    assert known(on_gpu, num_workers=2, reading_seconds=0.6).seconds_per_step == pytest.approx(1.2)
    assert known(on_gpu, num_workers=2).seconds_per_step == 1.0


def test_a_step_of_several_batches_takes_as_often_as_long(config: TrainConfig) -> None:
    run = prepare(replace(config, accumulation_steps=3))
    once = known(run, num_workers=0, reading_seconds=0.0)
    assert once.seconds_per_step == 3.0
    assert "x 3 batches" in row(shown(once), "steps")


def test_the_last_step_of_an_epoch_may_have_fewer_batches(config: TrainConfig) -> None:
    run = prepare(replace(config, batch_size=3, accumulation_steps=2))
    assert len(run.train_set.entries) == 8  # batches of 3, 3 and 2 clips: a step of two, and one of one
    result = known(run, num_workers=0, reading_seconds=0.0)
    assert run.plan.total_steps == 12
    assert result.training_seconds == pytest.approx(6 * 3 * result.batch_seconds)
    # After step 3 the second epoch has its last batch to come, and four more follow.
    assert replace(result, steps_done=3).training_seconds == pytest.approx((1 + 4 * 3) * result.batch_seconds)


def test_steps_on_tokens_that_are_kept_are_measured_and_nothing_is_kept_yet(
    config: TrainConfig, tmp_path: Path
) -> None:
    few = replace(config, tuning=STAdapter(width=8, last_blocks=1), views_per_clip=2, val_fraction=0, dropout=0.0)
    result = estimate(prepare(replace(few, token_cache_folder=tmp_path / "cache")), seconds=600)
    assert result.on_tokens_seconds is not None
    assert not (tmp_path / "cache").exists()
    assert "after 2 epochs, on kept tokens" in row(shown(result), "per later step")
    never = prepare(replace(few, views_per_clip=None))
    assert known(never).fresh_epochs == never.plan.epochs
    assert "per later step" not in shown(known(never))


def test_epochs_of_views_that_come_again_are_shorter(config: TrainConfig) -> None:
    run = prepare(replace(config, tuning=STAdapter(width=8, last_blocks=1), views_per_clip=2, accumulation_steps=2))
    assert (run.plan.epochs, run.plan.batches_per_epoch, run.plan.steps_per_epoch) == (6, 2, 1)
    result = known(run, num_workers=0, reading_seconds=0.0, on_tokens_seconds=0.01)
    later = 4 * 2 * 0.01  # a batch: 4 clips of 2 frames
    assert result.seconds_per_later_step == pytest.approx(2 * later)
    assert result.training_seconds == pytest.approx(2 * 2 * result.batch_seconds + 4 * 2 * later)
    assert replace(result, steps_done=1).training_seconds == pytest.approx(2 * result.batch_seconds + 4 * 2 * later)
    assert replace(result, steps_done=4).training_seconds == pytest.approx(2 * 2 * later)


def test_of_a_training_that_is_resumed_the_rest_is_told(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = replace(config, out=tmp_path / "stopped", checkpoint_minutes=0)
    steps = prepare(stopped).plan.steps_per_epoch
    monkeypatch.setattr(Checkpoints, "save", stopping_after(Checkpoints.save, steps))
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    result = estimate(prepare(replace(stopped, resume=True)), seconds=20)
    assert result.steps_done == steps
    assert f"{5 * steps} steps left after step {steps};" in row(shown(result), "training")
    assert "left" not in row(shown(replace(result, steps_done=0)), "training")


def test_validation_counts_views_and_orders(run: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.val_set is not None
    count = len(run.val_set.entries)
    result = known(run, num_workers=0, held_out_reading_seconds=0.3)
    # Three crops of two frames, in order, shuffled, reversed and one repeated; read once.
    assert result.validation_seconds == pytest.approx(count * (0.3 + 3 * 2 * 4 * 0.01))
    monkeypatch.setattr(module, "TIME_CHECK_CLIPS", count)
    assert result.num_orders == 4
    monkeypatch.setattr(module, "TIME_CHECK_CLIPS", count - 1)
    assert result.validation_seconds == pytest.approx(count * (0.3 + 3 * 2 * 0.01))
    monkeypatch.undo()
    half = replace(run.config, tuning=STAdapter(width=8, last_blocks=len(run.model.trunk.blocks) - 1))
    some = replace(result, run=prepare(half))
    frozen = 1 / len(run.model.trunk.blocks)
    assert some.validation_seconds == pytest.approx(count * (0.3 + 3 * 2 * (4 - 3 * frozen) * 0.01))
    without = replace(result, run=replace(run, val_set=None))
    assert without.validation_seconds == 0
    assert "validation" not in shown(without)


def test_validations_on_the_way_count_but_for_those_that_are_over(run: Prepared) -> None:
    assert run.val_set is not None
    config = replace(run.config, validate_every_epochs=2)
    result = replace(known(run, num_workers=0, held_out_reading_seconds=0.3), run=replace(run, config=config))
    plan = run.plan
    assert plan.epochs == 6
    assert result.validations_on_the_way == 2  # after 2 and 4, and at the end
    assert result.on_the_way_seconds == pytest.approx(2 * len(run.val_set.entries) * (0.3 + 3 * 2 * 0.01))
    assert "2 validations" in row(shown(result), "mid-run validation")
    assert result.seconds == result.training_seconds + result.on_the_way_seconds + result.validation_seconds
    steps_after = 2 * plan.steps_per_epoch  # where it is looked at again
    assert [replace(result, steps_done=steps_after + n).validations_on_the_way for n in (0, 1)] == [2, 1]
    assert replace(result, run=run).validations_on_the_way == 0


def test_what_is_scaled_is_said_to_be(run: Prepared) -> None:
    trials = (Trial(0, 0, (0.0,), 10**8), Trial(1, 1, (0.2,), 300_000_000), Trial(1, 2, (0.3,), 400_000_000))
    result = known(run, trials=trials, num_workers=0, reading_seconds=0.0)
    assert not result.is_whole
    assert result.batch_seconds == pytest.approx(0.3 + 6 * 0.1)
    assert result.peak_bytes == 400_000_000 + 6 * 100_000_000
    text = shown(result)
    assert "extrapolated: a whole batch was too much to try. Tried: 1 clip of 1 frame, 1 clip of 2 frames" in text
    assert "a fixed part and one proportional" in text
    assert "both were taken to be proportional" in shown(replace(result, trials=trials[:2]))
    assert "scaled" not in shown(known(run))


def test_it_says_what_gradient_checkpointing_would_take_and_save(run: Prepared) -> None:
    result = known(run, checkpointing=run.checkpointing_cost())
    assert "off" in row(shown(result), "gradient checkpointing")
    assert "--gradient-checkpointing would be " in row(shown(result), "gradient checkpointing")
    with_it = replace(run, config=replace(run.config, gradient_checkpointing=True))
    told = row(shown(replace(result, run=with_it)), "gradient checkpointing")
    assert "on" in told
    assert "would be" not in told
    too_little = shown(known(run, available_bytes=1))
    assert "--size, or use --gradient-checkpointing" in too_little


def test_what_does_not_fit_is_said_with_what_to_do(run: Prepared) -> None:
    result = known(run, available_bytes=700_000_000)
    assert not result.fits
    assert "does not fit into memory: lower --batch-size" in shown(result)
    assert "of 900 MB free" in row(shown(result), "memory")
    assert "does not fit" not in shown(known(run))
    assert known(run, available_bytes=None).fits


def test_it_says_what_limits_and_what_could_not_be_read(run: Prepared) -> None:
    assert "the model is the bottleneck" in row(shown(known(run)), "per step")
    assert "0.9 s to 1.1 s for 4 clips; decoding takes 0.2 s in 1 process" in row(shown(known(run)), "per step")
    two = row(shown(known(run, num_workers=2, reading_seconds=0.3)), "per step")
    assert "the model is the bottleneck" in two
    assert "decoding takes 0.6 s in 2 processes" in two
    slow = row(shown(known(run, reading_seconds=0.5)), "per step")
    assert "decoding is the bottleneck: 2 s for 4 clips in 1 process; the model takes 0.9 s to 1.1 s" in slow
    broken = known(run, reading_seconds=None, failures=(("b.mp4", "no video"), ("a.mp4", "gone"), ("b.mp4", "gone")))
    assert "Unreadable among the few clips tried: a.mp4, b.mp4; the time excludes decoding" in shown(broken)


def test_a_busy_machine_is_told(run: Prepared) -> None:
    starved = (Trial(0, 0, (0.0,), 0), Trial(4, 2, (1.0, 1.0), 10**9, processor_share=0.25))
    assert "The machine is busy: the steps had a processor core for 25 % of their time" in shown(
        known(run, trials=starved)
    )
    assert "busy" not in shown(known(run))
