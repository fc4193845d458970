"""The training loop on little videos and tiny trunks: it learns, resumes exactly, fails in sentences."""

import dataclasses
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

import stadapter
from stadapter.artefact import load_artefact
from stadapter.augmentation import Augmentation
from stadapter.clips import load_clip
from stadapter.errors import ArtefactError, DataError, DivergedError, SettingsError, TrainingError
from stadapter.manifest import read_manifest
from stadapter.model import build_model
from stadapter.predict import Classifier
from stadapter.provenance import command_line
from stadapter.samples import Batch
from stadapter.synthetic import write_clips
from stadapter.training.checkpoint import CHECKPOINT_NAME, read_checkpoint
from stadapter.training.description import describe
from stadapter.training.loop import Loop, TrainConfig, train
from stadapter.training.preparation import make_accelerator, prepare
from stadapter.training.progress import RunDisplay
from stadapter.training.schedule import epoch_order
from stadapter.training.unreadable import UnreadableClips
from stadapter.tuning import AIM, AttentivePooling, Full, LinearProbe, STAdapter
from stadapter.vit import ImageViT
from trainings import run_in_two_processes, stop_after, train_in_two_processes
from trunks import make_trunk, save_trunk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, classes=("left", "right"), clips_per_class=6, size=32, num_frames=8)
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunk"), "dinov2")


@pytest.fixture
def config(data: Path, trunk: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=str(data),
        backbone=str(trunk),
        out=str(tmp_path / "run"),
        tuning=STAdapter(width=8),
        val_fraction=0,
        num_frames=4,
        size=16,
        epochs=2,
        batch_size=4,
        device="cpu",
        precision="fp32",
        num_workers=0,
    )


def quiet() -> Console:
    return Console(file=io.StringIO())


def run(config: TrainConfig, **changes: Any) -> Path:
    return train(dataclasses.replace(config, **changes), console=quiet()).folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "stadapter.safetensors")


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_a_report_of_its_training_and_its_held_out_clips(config: TrainConfig) -> None:
    result = train(dataclasses.replace(config, val_fraction=0.3))
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    assert "Does time matter?" in page
    assert "data:image/jpeg" in page
    assert "Learning rate" in page


def test_the_result_of_a_training_can_be_loaded_as_it_is(config: TrainConfig) -> None:
    result = train(config, console=quiet())
    assert os.fspath(result) == str(result.folder)
    assert Classifier.load(result).labels == ("left", "right")


def test_a_run_without_held_out_clips_leaves_a_report_of_its_training(config: TrainConfig) -> None:
    page = (train(config).folder / "report.html").read_text(encoding="utf-8")
    assert "No clips were held out" in page
    assert "Learning rate" in page
    assert "data:image/jpeg" not in page


def test_a_validation_that_fails_leaves_a_report_of_the_training(config: TrainConfig, tmp_path: Path) -> None:
    write_clips(tmp_path / "val", classes=("left", "right"), clips_per_class=1, size=32, num_frames=8)
    for path in (tmp_path / "val").rglob("*.mp4"):
        path.write_bytes(b"this is no video")
    with pytest.raises(DataError, match="none of 2 clips could be read"):
        train(dataclasses.replace(config, val_data=str(tmp_path / "val")))
    assert "have not been evaluated yet" in (Path(config.out) / "report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_does_not_end_the_run(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise ArtefactError("cannot write report.html: No space left on device")

    monkeypatch.setattr(sys.modules["stadapter.training.loop"], "write_report", refuse)  # the package has the function
    output = io.StringIO()
    result = train(config, console=Console(file=output, width=200))
    assert load_artefact(result.folder).model.labels == ("left", "right")
    assert "no report.html: cannot write report.html: No space left on device" in output.getvalue()


def test_a_run_leaves_an_artefact_that_rebuilds_its_model(config: TrainConfig, data: Path) -> None:
    result = train(dataclasses.replace(config, val_fraction=0.3), console=quiet())
    artefact = load_artefact(result.folder)
    clip = load_clip(next((data / "left").iterdir()), artefact.clip_config)
    logits = artefact.model(artefact.model.normalise(clip))
    assert logits.shape == (3, 2)  # three test crops
    assert artefact.model.labels == ("left", "right")
    assert artefact.receipt["metrics"] == result.metrics
    assert {"top1", "top5", "mean_class_accuracy", "loss"} == result.metrics.keys()
    assert not (result.folder / CHECKPOINT_NAME).exists()
    assert records(result.folder, "train")[-1]["step"] == result.steps


def test_it_learns_to_tell_a_clip_from_its_reverse_where_a_probe_cannot(config: TrainConfig) -> None:
    still = Augmentation(crop="centre")
    budget: dict[str, Any] = {"epochs": 60, "augmentation": still, "lr": 5e-3, "num_frames": 8, "batch_size": 12}
    adapter = run(config, **budget)
    probe = run(config, **budget, out=config.out + "-probe", tuning=LinearProbe())
    assert records(adapter, "train")[-1]["accuracy"] > 0.9
    assert records(probe, "train")[-1]["accuracy"] < 0.75


def test_the_same_seed_gives_the_same_weights_whatever_the_number_of_workers(config: TrainConfig) -> None:
    one = weights(run(config))
    two = weights(run(config, out=config.out + "-workers", num_workers=2))
    other = weights(run(config, out=config.out + "-seed", seed=1))
    assert same(one, two)
    assert not same(one, other)


def test_a_script_that_has_turned_gradients_off_trains_all_the_same(config: TrainConfig) -> None:
    with torch.inference_mode():
        folder = run(config, epochs=1)
    assert same(weights(folder), weights(run(config, epochs=1, out=f"{config.out}-2")))


def test_another_seed_is_another_dropout(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[tuple[int, ...]] = []
    monkeypatch.setattr(sys.modules["stadapter.training.loop"], "seed_dropout", lambda *key: keys.append(key))
    for seed in (0, 1):
        run(config, out=f"{config.out}-{seed}", epochs=1, seed=seed)
    assert [key[0] for key in keys] == [0, 0, 0, 1, 1, 1]


def test_a_run_that_diverged_is_not_called_usable(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Loop.fit

    def diverge(loop: Loop) -> None:
        fit(loop)
        with torch.no_grad():
            loop.run.model.head.classifier.weight.fill_(3e38)  # a finite number, and no score is

    monkeypatch.setattr(Loop, "fit", diverge)
    shown = io.StringIO()
    with pytest.raises(DivergedError, match="the scores are not finite numbers"):
        train(dataclasses.replace(config, val_fraction=0.3), console=Console(file=shown))
    assert "trained, but the scores are not finite: start again with a lower learning rate" in shown.getvalue()
    assert "can be used" not in shown.getvalue()


def test_settings_that_are_none_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"\{'data': 'x'\}: expected a TrainConfig"):
        train({"data": "x"})  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Pathed:
    """A strategy of somebody's own, with a setting that JSON does not know."""

    source: Path

    def apply(self, vit: ImageViT) -> None:
        raise AssertionError("refused before")


def test_a_strategy_whose_settings_cannot_be_saved_is_refused_before_anything_is_written(config: TrainConfig) -> None:
    with pytest.raises(SettingsError, match="setting source of Pathed: expected what JSON can hold"):
        run(config, tuning=Pathed(Path("here")))
    assert not Path(config.out).exists()


def write_other_clips(config: TrainConfig) -> str:
    """Clips of the same classes elsewhere."""
    folder = Path(config.data).parent / "other"
    if not folder.exists():
        shutil.copytree(config.data, folder)
    return str(folder)


def test_what_accelerate_launch_sets_changes_no_schedule(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = make_accelerator(dataclasses.replace(config, accumulation_steps=2))
    assert accelerator.gradient_accumulation_steps == 2


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_a_launcher_that_would_split_the_model_is_refused(
    config: TrainConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "true")
    with pytest.raises(SettingsError, match=f"{name} is set.*expected whole models"):
        make_accelerator(config)


@pytest.mark.parametrize(("large_size", "small_size", "steps"), [(4, 2, 2), (8, 4, 2), (12, 7, 2), (12, 5, 4)])
def test_gradient_accumulation_equals_a_larger_batch(
    config: TrainConfig, large_size: int, small_size: int, steps: int
) -> None:
    config = dataclasses.replace(config, gradient_clip=0.0)
    large = weights(run(config, batch_size=large_size))
    small = weights(run(config, out=config.out + "-small", batch_size=small_size, accumulation_steps=steps))
    for name, tensor in large.items():
        torch.testing.assert_close(small[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("changes", "batches"), [({}, 5), ({"batch_size": 2, "accumulation_steps": 2}, 10)])
def test_a_run_stopped_in_the_middle_resumes_to_the_same_weights(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], batches: int
) -> None:
    config = dataclasses.replace(config, epochs=3, dropout=0.3, **changes)
    whole = weights(run(config))
    halves = dataclasses.replace(config, out=config.out + "-halves")
    stop_after(monkeypatch, steps=batches)  # in the middle of the second epoch: 3 steps each
    with pytest.raises(KeyboardInterrupt):
        run(halves)
    assert not (Path(halves.out) / "stadapter.json").exists()
    monkeypatch.undo()
    assert same(weights(run(halves, resume=True)), whole)


def test_a_checkpoint_holds_no_frozen_weights(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    names = load_file(Path(config.out) / CHECKPOINT_NAME).keys()
    kinds = {name.partition("/")[0] for name in names}
    assert kinds == {"parameter", "step", "exp_avg", "exp_avg_sq"}
    assert all("before_attention" in name or "classifier" in name for name in names)


def test_resuming_with_other_settings_names_them(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    with pytest.raises(TrainingError, match=r"lr was 0\.002, is 0\.1"):
        run(config, resume=True, lr=0.1)


def test_resuming_on_other_data_or_another_size_names_it(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "changing"
    write_clips(folder, classes=("left", "right"), clips_per_class=6, size=32, num_frames=8)
    config = dataclasses.replace(config, data=str(folder))
    stop_after(monkeypatch, steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="size was 16, is 20"):
        run(config, resume=True, size=20)
    (folder / "left").rename(folder / "zleft")
    with pytest.raises(TrainingError, match=r"data \(sha256\) was .*labels no longer 'left', but 'zleft'"):
        run(config, resume=True)


def test_what_a_killed_run_left_without_a_checkpoint_is_in_nobodys_way(config: TrainConfig) -> None:
    Path(config.out).mkdir()
    (Path(config.out) / "metrics.jsonl").touch()
    assert (run(config, epochs=1) / "stadapter.json").is_file()


def test_an_unfinished_run_says_how_to_go_on(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="--resume"):
        run(config)
    with pytest.raises(
        ArtefactError, match=r"if its training has not finished, continue it with stadapter train --resume"
    ):
        Classifier.load(config.out)


def test_paths_may_be_path_objects(config: TrainConfig) -> None:
    paths = {name: Path(getattr(config, name)) for name in ("data", "out", "backbone")}
    assert (run(config, epochs=1, **paths) / "stadapter.json").is_file()


def test_preparing_writes_nothing_and_tells_what_would_be_trained(config: TrainConfig) -> None:
    lines = "\n".join(describe(prepare(config)))
    assert not Path(config.out).exists()
    for part in ("12 clips to train on", "left (6), right (6)", "4 frames of 16 x 16 pixels", "trained 1,", "6 steps"):
        assert part in lines


def test_held_out_clips_that_are_trained_on_are_told(config: TrainConfig) -> None:
    lines = describe(prepare(dataclasses.replace(config, val_data=config.data, val_fraction=0)))
    assert any("12 of 12 held-out clips are also trained on" in line for line in lines)
    assert not any("also trained on" in line for line in describe(prepare(config)))


@pytest.mark.parametrize(
    ("tuning", "told"),
    [
        (AIM(), ["the time embedding has 8 frames, interpolated to the clip's 4; --tuning.num-frames 4"]),
        (AttentivePooling(num_frames=4), []),
        (AttentivePooling(num_frames=None), []),
        (STAdapter(width=8), []),
    ],
)
def test_a_time_embedding_for_another_number_of_frames_is_told(
    config: TrainConfig, tuning: Any, told: list[str]
) -> None:
    lines = [line for line in describe(prepare(dataclasses.replace(config, tuning=tuning))) if "time embedding" in line]
    assert [line.partition(" learns")[0] for line in lines] == told


@pytest.mark.parametrize("part", ["run", "left/run"])
def test_a_run_folder_among_the_classes_is_refused(config: TrainConfig, part: str) -> None:
    for changes in ({}, {"val_data": config.data, "data": write_other_clips(config)}):
        inside = dataclasses.replace(config, out=str(Path(config.data) / part), **changes)
        with pytest.raises(SettingsError, match=r"is inside .*, whose folders are classes: it would be taken for one"):
            prepare(inside)
    assert not (Path(config.data) / part).exists()


@pytest.mark.parametrize(("tuning", "lr", "is_told"), [(Full(), 2e-3, True), (Full(), 5e-5, False)])
def test_a_learning_rate_that_is_high_for_a_trunk_is_told(
    config: TrainConfig, tuning: Full, lr: float, is_told: bool
) -> None:
    lines = describe(prepare(dataclasses.replace(config, tuning=tuning, lr=lr)))
    assert any("high for full, which needs about 1e-05 to 0.0001 (--lr 5e-05)" in line for line in lines) == is_told


@pytest.mark.parametrize(
    "changes",
    [
        {"num_frames": 10**9},
        {"size": 16 * 10**6},
        {"num_temporal_views": 10**9, "val_fraction": 0.5},
    ],
)
def test_clips_that_cannot_be_held_are_refused_before_any_is_read(config: TrainConfig, changes: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"takes at least [\d,]+ GiB of memory, but only [\d,]+ GiB are free"):
        prepare(dataclasses.replace(config, **changes))


def test_a_batch_is_no_larger_than_the_data(config: TrainConfig) -> None:
    assert prepare(dataclasses.replace(config, batch_size=10**12)).plan.steps_per_epoch == 1


def test_a_finished_run_is_neither_overwritten_nor_resumed(config: TrainConfig) -> None:
    run(config, epochs=1)
    with pytest.raises(TrainingError, match="already exists"):
        run(config, epochs=1)
    with pytest.raises(TrainingError, match="finished run"):
        run(config, epochs=1, resume=True)


def test_a_bad_video_is_replaced_named_and_counted(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "some-bad"
    write_clips(folder, classes=("left", "right"), clips_per_class=6, size=32, num_frames=8)
    (folder / "left" / "broken.mp4").write_bytes(b"not a video at all")
    out = run(config, data=str(folder), max_bad_fraction=0.2)
    assert [record["name"] for record in records(out, "unreadable")] == ["left/broken.mp4"]
    assert list(load_artefact(out).receipt["unreadable"]) == ["left/broken.mp4"]


def test_one_bad_video_of_few_never_stops_a_run(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "one-bad"
    write_clips(folder, classes=("left", "right"), clips_per_class=2, size=32, num_frames=8)
    next((folder / "left").iterdir()).write_bytes(b"")
    assert len(load_artefact(run(config, data=str(folder))).receipt["unreadable"]) == 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_videos_stop_the_run_with_their_names(
    config: TrainConfig, tmp_path: Path, num_workers: int
) -> None:
    folder = tmp_path / "many-bad"
    write_clips(folder, classes=("left", "right"), clips_per_class=12, size=32, num_frames=8)
    for path in folder.glob("*/*.mp4"):
        path.write_text("no video")
    with pytest.raises(TrainingError, match=r"of 24 clips could not be read.*left/left_0"):
        run(config, data=str(folder), num_workers=num_workers)
    assert not (Path(config.out) / "stadapter.json").exists()


def test_a_loss_that_is_not_a_number_stops_the_run(config: TrainConfig) -> None:
    with pytest.raises(TrainingError, match=r"the run stops.*a lower lr"):
        run(config, lr=1e30, gradient_clip=0, warmup_fraction=0, epochs=30)
    assert not (Path(config.out) / "stadapter.safetensors").exists()


@pytest.mark.parametrize("bad_step", [4, 5, 6])  # the last of an epoch, one in its middle, the last of all
def test_weights_that_are_not_numbers_are_never_saved_over_good_ones(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, bad_step: int
) -> None:
    monkeypatch.setattr("stadapter.training.checkpoint.EPOCH_PAUSE_SECONDS", 0.0)
    original = Loop.learn

    def learn(self: Loop, *args: Any) -> None:
        original(self, *args)
        if self.step + 1 == bad_step:
            with torch.no_grad():
                self.run.model.head.classifier.weight.fill_(math.nan)

    monkeypatch.setattr(Loop, "learn", learn)
    with pytest.raises(TrainingError, match=r"not finite|loss is nan"):
        run(config, batch_size=4)  # 3 steps an epoch
    assert not (Path(config.out) / "stadapter.safetensors").exists()
    tensors = load_file(Path(config.out) / CHECKPOINT_NAME)
    assert int(tensors["step/head.classifier.weight"]) == 3
    assert all(tensor.isfinite().all() for tensor in tensors.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 18}, "nearest size"),
        ({"device": "tpu"}, "expected auto, cpu"),
        ({"device": "cuda"}, "if this machine has it"),
        ({"batch_size": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"lr": math.inf}, "above 0"),
        ({"seed": -1}, "seed -1: expected 0 to"),
        ({"num_workers": -1}, "num_workers -1: expected 0 to"),
        ({"gradient_clip": -1.0}, "at least 0"),
        ({"label_smoothing": 2.0}, "0 to 1"),
        ({"val_fraction": 1.0}, "below 1"),
        ({"num_frames": 0}, "num_frames 0: expected at least 1"),
        ({"size": -5}, "size -5: expected at least 1"),
        ({"stride_frames": 0}, "stride_frames 0: expected at least 1"),
        ({"num_temporal_views": 0}, "num_temporal_views 0: expected at least 1"),
        ({"num_spatial_views": 2}, "num_spatial_views 2: expected 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(config: TrainConfig, changes: dict[str, Any], message: str) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SettingsError, match=message):
        run(config, **changes)


def test_a_folder_that_cannot_be_written_is_named(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        run(config, out=str(tmp_path / "file" / "run"))


def test_a_failed_start_leaves_no_folder_in_the_way(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(config, data=str(tmp_path / "typo"))
    assert not Path(config.out).exists()


def test_a_validation_that_fails_does_not_cost_the_training(config: TrainConfig, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out"
    for label in ("left", "right"):
        (held_out / label).mkdir(parents=True)
        (held_out / label / "a.mp4").write_bytes(b"broken")
    with pytest.raises(DataError, match="none of 2 clips"):
        run(config, val_data=str(held_out))
    assert load_artefact(config.out).model.labels == ("left", "right")


def test_bf16_trains_and_keeps_fp32_weights(config: TrainConfig) -> None:
    tensors = weights(run(config, precision="bf16"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_a_tensorboard_file_is_written_where_tensorboard_is_installed(config: TrainConfig) -> None:
    pytest.importorskip("tensorboard")
    assert list(run(config, epochs=4).rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_batches_are_copied_beside_the_work_of_a_gpu(
    config: TrainConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["stadapter.training.preparation"], "choose_device", lambda _: torch.device(name))
    assert make_accelerator(config).dataloader_config.non_blocking == (name == "cuda")


def test_decoding_processes_stay_from_epoch_to_epoch_and_read_ahead(config: TrainConfig) -> None:
    for num_workers, expected in ((1, (True, 4, False)), (0, (False, None, False))):
        loader, _ = Loop(prepare(dataclasses.replace(config, num_workers=num_workers)), quiet())._loader()
        assert (loader.persistent_workers, loader.prefetch_factor, loader.pin_memory) == expected


def test_bytes_are_copied_to_the_device_and_become_floats_there() -> None:
    model = build_model(backbone=make_trunk("dinov2"), labels=["a", "b"]).to("meta")
    floats_on_cpu: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = op(*args, **kwargs or {})
            if isinstance(result, torch.Tensor) and result.device.type == "cpu" and result.is_floating_point():
                floats_on_cpu.append(str(op))
            return result

    with Watch():
        clips = model.normalise(torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8))
    assert (clips.device.type, clips.dtype) == ("meta", torch.float32)
    assert not floats_on_cpu


def test_processes_tell_each_other_of_an_unreadable_clip_once(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of them every ten steps would be most of what passes between the processes."""
    sent: list[list[tuple[str, str]]] = []

    def gather_with_another(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
        sent.append(found)
        return [*found, (f"other{len(sent)}", "gone")]

    run = prepare(config)
    monkeypatch.setattr("accelerate.utils.operations.gather_object", gather_with_another)
    monkeypatch.setattr(type(run.accelerator), "num_processes", 2)
    display = RunDisplay(run.folder, title="", total=1, console=None)
    unreadable = UnreadableClips(dataclasses.replace(run, config=dataclasses.replace(config, max_bad_fraction=1)))
    labels = torch.zeros(1, 1)
    for name in ("one", "two"):
        batch = Batch(clips=labels, labels=labels, indices=labels, failures=[(name, "cut")])
        unreadable.note(batch, display)
        unreadable.gather(display)
    assert sent == [[("one", "cut")], [("two", "cut")]]
    assert unreadable.reasons == {"one": "cut", "other1": "gone", "two": "cut", "other2": "gone"}


def test_two_processes_train_one_model(config: TrainConfig, tmp_path: Path) -> None:
    # On two cores each process takes turns with the one that decodes for it. Checkpointing gradients changes no result.
    every = {"val_fraction": 0.3, "validate_every_epochs": 1}
    changes = {"batch_size": 2, "num_workers": 1, "gradient_checkpointing": True, **every}
    assert "2 processes" in train_in_two_processes(config, tmp_path, **changes)
    folder = Path(config.out)
    by_itself = run(config, out=config.out + "-alone", batch_size=4, **every)
    for kind, count in (("train", 1), ("validation", 2)):
        losses = [[record["loss"] for record in records(path, kind)] for path in (folder, by_itself)]
        assert len(losses[0]) == count
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    alone, together = weights(by_itself), weights(folder)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_clip_that_another_process_cannot_read_is_named_too(config: TrainConfig, tmp_path: Path) -> None:
    shutil.copytree(config.data, tmp_path / "broken")
    manifest = read_manifest(tmp_path / "broken")
    order = epoch_order(len(manifest.entries), config.seed, 0)
    broken = [manifest.entries[order[place]] for place in (0, 2)]  # batches of 2 go to the processes in turn
    for entry in broken:
        entry.path.write_bytes(b"no video")
    changes = {"data": str(tmp_path / "broken"), "batch_size": 2, "epochs": 1, "max_bad_fraction": 0.2}
    told = train_in_two_processes(config, tmp_path, **changes)
    names = {entry.name for entry in broken}
    assert {record["name"] for record in records(Path(config.out), "unreadable")} == names
    assert load_artefact(Path(config.out)).receipt["unreadable"].keys() == names
    assert all(told.count(f"skipped {name}") == 1 for name in names)


ONE_STOPS_FIRST = """
import json, os, signal, sys
from stadapter.training.loop import Loop, train
from stadapter.training.settings import settings_from_json

learn = Loop.learn

def stop_in_the_second_process(self, *args):
    learn(self, *args)
    if self.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)

Loop.learn = stop_in_the_second_process
train(settings_from_json(json.loads(sys.argv[1])))
"""


def test_a_process_that_stops_before_the_others_loses_no_step(config: TrainConfig, tmp_path: Path) -> None:
    done = run_in_two_processes(ONE_STOPS_FIRST, dataclasses.replace(config, batch_size=2, epochs=8), tmp_path)
    assert done.returncode != 0
    assert read_checkpoint(Path(config.out))[0].step == 3
    assert "the state after step 3 is in" in done.stderr or "KeyboardInterrupt" in done.stderr


def test_ctrl_c_leaves_a_checkpoint_and_no_traceback_of_workers(config: TrainConfig, tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text(
        "from stadapter.training.loop import TrainConfig, train\n"
        "from stadapter.tuning import STAdapter\n"
        "if __name__ == '__main__':\n"
        f"    train(TrainConfig(data={config.data!r}, backbone={config.backbone!r}, out={config.out!r}, size=16,\n"
        "        val_fraction=0, num_frames=4, batch_size=2, epochs=500, device='cpu', num_workers=1,\n"
        "        tuning=STAdapter(width=8)))\n"
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    metrics = Path(config.out) / "metrics.jsonl"
    while time.monotonic() < deadline and not (metrics.exists() and '"train"' in metrics.read_text()):
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (Path(config.out) / CHECKPOINT_NAME).is_file(), stderr
    assert stderr.count("Traceback") == 1, stderr  # the KeyboardInterrupt of the script itself
    assert "KeyboardInterrupt" in stderr


@pytest.mark.parametrize(
    "program", ["/home/me/.venv/bin/stadapter", str(Path(stadapter.__file__).with_name("__main__.py"))]
)
def test_the_receipt_tells_the_command_without_where_the_program_lies(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "--data", "my clips"])
    assert command_line() == "stadapter train --data 'my clips'"


def test_the_receipt_of_a_script_tells_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["experiments/mine.py", "--fast"])
    assert command_line() == "experiments/mine.py --fast"


def test_the_receipt_of_several_processes_tells_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/env/bin/stadapter", "train", "--data", "x"])
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert command_line() == "torchrun --nproc-per-node 8 -m stadapter train --data x"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert command_line() == "torchrun --nnodes 2 --nproc-per-node 4 -m stadapter train --data x"
    monkeypatch.setattr(sys, "argv", ["mine.py"])
    assert command_line() == "torchrun --nnodes 2 --nproc-per-node 4 mine.py"
