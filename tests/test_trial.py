import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stadapter.clips import load_random_views
from stadapter.errors import TrainingError
from stadapter.memory import forget_peak_memory, peak_memory_bytes
from stadapter.synthetic import write_clips
from stadapter.training import trial
from stadapter.training.preparation import Prepared, prepare
from stadapter.training.settings import TrainConfig
from stadapter.training.trial import (
    Stepper,
    Trial,
    extrapolated,
    read_training_clips,
    time_forward,
    try_steps,
)
from stadapter.tuning import STAdapter
from trunks import save_trunk


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("trial")
    write_clips(folder / "clips", classes=("left", "right"), clips_per_class=4, num_frames=12)
    save_trunk(folder / "trunk", "dinov2")
    return TrainConfig(
        data=folder / "clips",
        out=folder / "run",
        backbone=folder / "trunk",
        num_frames=4,
        size=16,
        batch_size=6,
        num_workers=0,
        device="cpu",
        precision="fp32",
    )


def batch_of(run: Prepared) -> Any:
    return read_training_clips(run.training_clips(None), num_epochs=1, seconds=100).batch


def test_it_grows_from_a_frame_to_a_whole_batch(config: TrainConfig) -> None:
    run = prepare(config)
    trials = try_steps(Stepper(run), batch_of(run), num_clips=6, seconds=600)
    assert [(each.num_clips, each.num_frames) for each in trials] == [(0, 0), (1, 1), (1, 4), (4, 4), (6, 4)]
    assert len(trials[-1].seconds) > 1
    assert all(min(each.seconds) > 0 for each in trials[1:])
    assert all(each.peak_bytes > 0 for each in trials)


def test_weights_and_randomness_stay_as_they_were(config: TrainConfig) -> None:
    run = prepare(replace(config, dropout=0.5))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    stepper = Stepper(run)
    batch = batch_of(run)
    stepper.step(batch)
    learned = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(run.model(run.model.normalise(batch["clips"])).sum(), learned)
    assert any(bool(gradient.any()) for gradient in gradients)  # the model is one that learns
    assert time_forward(stepper, batch, Trial(2, 4, (1.0,), 0), seconds=100) > 0
    assert run.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())
    assert all(parameter.grad is None for parameter in run.model.parameters())


def test_what_the_optimizer_keeps_is_held_before_any_step(config: TrainConfig) -> None:
    # In a process of its own: what earlier tests leave behind may be freed between the two measurements.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        num_bytes, trained = pool.submit(bytes_of_a_stepper, replace(config, tuning=STAdapter(width=40_000))).result()
    assert num_bytes > 0.9 * 2 * 4 * trained


def bytes_of_a_stepper(config: TrainConfig) -> tuple[int, int]:
    """What a stepper holds beside what was prepared, and how many scalars learn."""
    run = prepare(config)
    device = run.accelerator.device
    forget_peak_memory(device)
    before = peak_memory_bytes(device)
    held, _ = Stepper(run).memory()
    return held - before, run.model.count_parameters().trained


def test_a_step_too_long_or_too_large_is_not_tried(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare(config)
    stepper, batch = Stepper(run), batch_of(run)
    tried: list[int] = []

    def known(stepper: Stepper, batch: Any, *, is_last: bool, end: float) -> Trial:
        frames = batch["clips"].shape[0] * batch["clips"].shape[1]
        tried.append(frames)
        return Trial(*batch["clips"].shape[:2], (0.1 * frames,), 1000 + 100 * frames)

    monkeypatch.setattr(trial, "_try", known)
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=lambda: 0.0))
    try_steps(stepper, batch, num_clips=6, seconds=600)
    assert tried == [1, 4, 16, 24]
    tried.clear()
    try_steps(stepper, batch, num_clips=6, seconds=2)  # three steps of 8 frames would take 2.4 s
    assert tried == [1, 4]
    tried.clear()
    monkeypatch.setattr(stepper, "memory", lambda: (1000, 800))  # 640 of these may be taken: 4 frames, not 8
    try_steps(stepper, batch, num_clips=6, seconds=600)
    assert tried == [1, 4]


def test_without_time_the_first_step_is_the_one_timed_and_classifying_is_reckoned(config: TrainConfig) -> None:
    run = prepare(config)
    stepper, batch = Stepper(run), batch_of(run)
    steps: list[int] = []
    stepper.step = lambda part: steps.append(len(part["clips"]))  # type: ignore[method-assign]
    _, only = try_steps(stepper, batch, num_clips=6, seconds=0)
    assert steps == [1]
    assert len(only.seconds) == 1
    assert time_forward(stepper, batch, Trial(3, 4, (36.0,), 0), seconds=10) == 1.0


def test_running_out_of_memory_ends_the_trials_and_not_the_program(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(config)
    stepper, batch = Stepper(run), batch_of(run)
    step = stepper.step

    def limited(part: Any) -> None:
        if len(part["clips"]) > most:
            raise torch.OutOfMemoryError("no more")
        step(part)

    monkeypatch.setattr(stepper, "step", limited)
    most = 2
    assert [each.num_clips for each in try_steps(stepper, batch, num_clips=6, seconds=600)] == [0, 1, 1]
    most = 0
    with pytest.raises(TrainingError, match="out of memory"):
        try_steps(stepper, batch, num_clips=6, seconds=600)


def test_time_and_memory_lie_on_the_line_through_the_last_two() -> None:
    trials = [Trial(1, 1, (5.0,), 900), Trial(1, 2, (0.3, 0.2, 9.0), 600), Trial(1, 4, (0.5,), 800)]
    assert extrapolated(trials, 64, attrgetter("step_seconds")) == pytest.approx(0.5 + 60 * 0.1)
    assert extrapolated(trials, 64, attrgetter("peak_bytes")) == 800 + 60 * 100
    assert extrapolated(trials, 4, attrgetter("step_seconds")) == 0.5
    falling = [Trial(1, 1, (0.2,), 700), Trial(1, 2, (0.1,), 600)]
    assert extrapolated(falling, 64, attrgetter("peak_bytes")) == 600


def test_a_clip_read_for_several_epochs_costs_each_its_share(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(config)
    store = run.view_store()
    assert store is not None
    assert store.epochs_ahead == 7
    dataset = run.training_clips(store)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1
        return now

    drawn: list[int] = []

    def noted(*arguments: Any, generators: Any, **settings: Any) -> torch.Tensor:
        drawn.append(len(generators))
        return load_random_views(*arguments, generators=generators, **settings)

    monkeypatch.setattr("stadapter.dataset.load_random_views", noted)
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=clock))
    for num_epochs, share in ((1, 1.0), (3, 1 / 3), (100, 1 / 8)):
        reading = read_training_clips(dataset, num_epochs=num_epochs, seconds=1000)
        assert reading.seconds == pytest.approx([share] * (len(dataset) - 1))  # the first is cold
        assert reading.batch["clips"].shape == (len(dataset), 4, 3, 16, 16)
        assert drawn == [min(8, num_epochs)] * len(dataset)
        drawn.clear()
    assert len(read_training_clips(dataset, num_epochs=1, seconds=4).batch["clips"]) == 2


def test_clips_that_cannot_be_read_are_named_and_steps_still_tried(config: TrainConfig, tmp_path: Path) -> None:
    for label in ("left", "right"):
        for number in range(2):
            file = tmp_path / "clips" / label / f"{number}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"no video")
    run = prepare(replace(config, data=tmp_path / "clips", val_fraction=0))
    reading = read_training_clips(run.training_clips(None), num_epochs=1, seconds=100)
    assert reading.seconds == ()
    assert {name for name, _ in reading.failures} == {f"{label}/{n}.mp4" for label in ("left", "right") for n in (0, 1)}
    trials = try_steps(Stepper(run), reading.batch, num_clips=2, seconds=300)
    assert trials[-1].size == 8
