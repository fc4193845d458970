import csv
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from stadapter.__main__ import main
from stadapter.artefact import SPEC_NAME
from stadapter.augmentation import Augmentation
from stadapter.comparison import child, jobs, plots, process, runner
from stadapter.comparison.config import CompareConfig, choose_experiments
from stadapter.comparison.experiments import Experiment, read_experiment, read_experiments
from stadapter.comparison.jobs import Job, experiment_job, find_common, rates_of, search_job
from stadapter.comparison.results import FORMAT, FinishedRun, changes, learned_from, read_result
from stadapter.comparison.runner import compare, write_summary
from stadapter.comparison.search import choose_rate
from stadapter.comparison.summary import summarise
from stadapter.comparison.tables import tables
from stadapter.costs import gmacs_per_view
from stadapter.errors import DataError, SettingsError, TrainingError
from stadapter.manifest import read_manifest
from stadapter.model import build_model
from stadapter.records import METRICS_NAME, write_records
from stadapter.synthetic import write_clips
from stadapter.training.checkpoint import CHECKPOINT_NAME
from stadapter.training.run_folder import LOCK_NAME
from stadapter.training.settings import TrainConfig
from stadapter.tuning import STRATEGIES, LinearProbe, STAdapter
from trunks import make_trunk, save_trunk

ROOT = Path(__file__).resolve().parents[1]


def quiet() -> Console:
    return Console(file=io.StringIO())


def said(console: Console) -> str:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def write_experiment(folder: Path, title: str, **values: Any) -> Path:
    file = folder / f"{title}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))
    return file


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips to train and test on, a tiny trunk, and two experiments."""
    folder = tmp_path_factory.mktemp("compare")
    write_clips(folder / "train", classes=("left", "right"), clips_per_class=4, seed=0)
    write_clips(folder / "test", classes=("left", "right"), clips_per_class=2, seed=1)
    save_trunk(folder / "trunk", "dinov2")
    write_experiment(folder / "experiments", "st-adapter/default", tuning={"width": "D/4"})
    write_experiment(folder / "experiments", "linear-probe/default", about="Only the classifier.")
    return folder


def small(stage: Path, out: Path, **changes: Any) -> CompareConfig:
    config = CompareConfig(
        data=str(stage / "train"),
        test=str(stage / "test"),
        out=str(out),
        experiments=(str(stage / "experiments"),),
        backbone=str(stage / "trunk"),
        steps=2,
        batch_size=4,
        num_frames=2,
        num_workers=0,
        num_spatial_views=1,
        device="cpu",
        precision="fp32",
    )
    return replace(config, **changes)


def results(out: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*--seed*.json"))}


def in_this_process(command: Sequence[str]) -> int:
    """A training without the seconds that a new process takes to import torch."""
    return child.main([command[-1]])


def no_child(command: Sequence[str]) -> int:
    raise AssertionError(f"a training was started: {command}")


@pytest.fixture(scope="module")
def finished(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "out"
    compare(small(stage, out, strategies=("st-adapter",)), console=quiet())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "_wait_for", in_this_process)
        compare(small(stage, out, seeds=(0, 1)), console=quiet())
    return out


def test_every_run_leaves_a_result_that_says_all(stage: Path, finished: Path) -> None:
    found = results(finished)
    assert list(found) == [f"{s}--default--seed{k}" for s in ("linear-probe", "st-adapter") for k in (0, 1)]
    run = found["st-adapter--default--seed1"]
    assert run["config"]["tuning"]["width"] == 8  # a quarter of 32
    assert (run["strategy"], run["name"], run["seed"], run["config"]["seed"]) == ("st-adapter", "default", 1, 1)
    assert run["budget"]["train_sha256"] == read_manifest(stage / "train").hash()
    assert run["budget"]["test_sha256"] == read_manifest(stage / "test").hash()
    assert run["trained_parameters"] < run["total_parameters"]
    weights = finished / "runs" / "st-adapter--default--seed1" / "stadapter.safetensors"
    assert run["artefact_bytes"] == weights.stat().st_size
    assert 4 * run["trained_parameters"] < run["artefact_bytes"]
    assert run["peak_memory_bytes"] > 50 * 2**20
    assert min(run["gmacs_per_view"], run["clips_per_second"]) > 0
    assert run["wall_seconds"] >= run["training_seconds"] >= 0  # two steps may take less than it counts in
    assert run["interruptions"] == 0
    assert [row["name"] for row in run["predictions"]] == [e.name for e in read_manifest(stage / "test").entries]
    assert run["top1"] == sum(row["is_correct"] for row in run["predictions"]) / 4
    assert run["top1_interval"]["low"] <= run["top1"] <= run["top1_interval"]["high"]
    assert all(0 <= run[order] <= 1 for order in ("shuffled", "reversed", "single_frame"))
    assert run["versions"]["torch"]
    assert run["hardware"]["device"]


def test_what_could_not_be_read_is_in_the_result(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    for side in ("train", "test"):
        shutil.copytree(stage / side, tmp_path / side)
        (tmp_path / side / "left" / f"broken_{side}.mp4").write_text(f"no video of {side}")
    config = small(stage, tmp_path / "out", strategies=("linear-probe",))
    (row,) = compare(replace(config, data=f"{tmp_path}/train", test=f"{tmp_path}/test"), console=quiet()).rows
    (run,) = row.runs
    assert list(run.unreadable_train_clips) == ["left/broken_train.mp4"]
    assert [clip["name"] for clip in run.unreadable_test_clips] == ["left/broken_test.mp4"]
    assert (run.num_clips, run.num_classes, run.peak_memory_of) == (4, 2, "process")


def test_interruptions_are_no_part_of_the_time_and_testing_none_of_the_training(tmp_path: Path) -> None:
    trained = {"kind": "train", "loss": 1.0}
    write_records(
        tmp_path,
        [
            {"kind": "start", "time": 0},
            {**trained, "time": 10, "step": 1, "clips_per_second": 4.0},
            {"kind": "start", "time": 100},
            {**trained, "time": 105, "step": 2, "clips_per_second": 9.0},
            {**trained, "time": 106, "step": 3, "clips_per_second": 5.0},
            {"kind": "validation", "time": 130},
        ],
    )
    found = child.read_training(tmp_path)
    assert (found["training_seconds"], found["wall_seconds"], found["interruptions"]) == (16, 40, 1)
    assert found["clips_per_second"] == 5


def test_all_runs_have_the_same_budget(finished: Path) -> None:
    found = list(results(finished).values())
    assert {run["steps"] for run in found} == {2}
    assert len({json.dumps(run["budget"]) for run in found}) == 1


def test_what_is_there_is_passed_over(stage: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    comparison = compare(small(stage, finished, seeds=(0, 1)), console=quiet())
    assert [row.title for row in comparison.rows] == ["st-adapter/default", "linear-probe/default"]


def test_the_reference_is_the_one_that_was_asked_for(
    stage: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    adapter, probe = compare(
        small(stage, finished, seeds=(0, 1), reference="linear-probe/default"), console=quiet()
    ).rows
    assert probe.verdict == "the reference"
    assert adapter.difference is not None


def test_sigterm_ends_a_comparison_like_ctrl_c(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_wait_for", lambda command: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            compare(small(stage, tmp_path / "out"), console=quiet())
    finally:
        signal.signal(signal.SIGTERM, before)


def test_results_with_other_settings_are_refused(
    stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    write_experiment(tmp_path / "e", "linear-probe/default", lr=0.125)
    shutil.copytree(finished, tmp_path / "out")
    changed = small(stage, tmp_path / "out", seeds=(0, 1), experiments=(str(tmp_path / "e"),))
    with pytest.raises(
        SettingsError, match=r"lr was 0\.002, is 0\.125; choose another --out, or run it again with --redo"
    ):
        compare(changed, console=quiet())
    with pytest.raises(AssertionError, match="a training was started"):
        compare(replace(changed, redo=True), console=quiet())
    monkeypatch.setattr(process, "_wait_for", lambda command: 1)
    failures = compare(replace(changed, redo=True), console=quiet()).failures  # not the results there were
    assert [(failure.title, failure.seed) for failure in failures] == [
        ("linear-probe/default", seed) for seed in (0, 1)
    ]


def test_a_result_from_before_a_setting_existed_has_its_default(
    stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    shutil.copytree(finished, tmp_path / "out")
    for path in (tmp_path / "out").glob("st-adapter*.json"):
        result = json.loads(path.read_text())
        del result["identity"]["lr_clips"], result["identity"]["tuning"]["first_blocks"]
        del result["identity"]["augmentation"]["colour_jitter"]
        path.write_text(json.dumps(result))
    config = small(stage, tmp_path / "out", strategies=("st-adapter",), seeds=(0, 1))
    compare(config, console=quiet())
    write_experiment(tmp_path / "e", "st-adapter/default", tuning={"width": "D/4", "first_blocks": 1})
    with pytest.raises(SettingsError, match=r"settings: tuning\.first_blocks was None, is 1; choose"):
        compare(replace(config, experiments=(str(tmp_path / "e"),)), console=quiet())


def test_every_run_after_the_first_says_how_long_is_left(
    stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = count(step=60)
    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: next(minutes)))
    monkeypatch.setattr(process, "_wait_for", lambda command: 1)
    compare(small(stage, tmp_path / "out", seeds=(0, 1)), console=(console := quiet()))
    assert re.findall(r"\(\d of 4.*\)", said(console)) == [
        *("(1 of 4)", "(2 of 4, about 3 min left)", "(3 of 4, about 2 min left)", "(4 of 4, about 60 s left)")
    ]
    shutil.copytree(finished, there := tmp_path / "there")
    for path in there.glob("*--seed0.json"):
        path.unlink()
    compare(small(stage, there, seeds=(0, 1)), console=(console := quiet()))
    assert re.findall(r"\(\d of 4.*\)", said(console)) == ["(1 of 4)", "(2 of 4, about 60 s left)"]


def test_a_reference_that_will_be_missing_is_told_before_the_first_run(
    stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    shutil.copytree(finished, out := tmp_path / "out")
    for reference, told in (("lora/default", ["no lora/default among the experiments"]), ("st-adapter/default", [])):
        config = small(stage, out, strategies=("linear-probe",), seeds=(2,), reference=reference)
        with pytest.raises(AssertionError, match="a training was started"):
            compare(config, console=(console := quiet()))
        assert re.findall("no .* among the experiments", said(console).partition("(1 of 1)")[0]) == told


@pytest.mark.parametrize("name", [SPEC_NAME, METRICS_NAME])
def test_a_comparison_into_a_run_folder_is_refused(
    name: str, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    for out in ("run", ""):
        with pytest.raises(SettingsError, match="expected a results folder, not a run folder"):
            compare(replace(small(stage, tmp_path), out=out), console=quiet())


def test_settings_damaged_by_hand_are_told_as_changed() -> None:
    wanted = learned_from(TrainConfig(data="-", out="-"))
    assert changes(wanted, wanted) == []
    assert changes(wanted | {"of_tomorrow": 4}, wanted) == ["of_tomorrow was 4, is None"]
    (told,) = changes(wanted | {"tuning": 5}, wanted)
    assert told.startswith("tuning was 5, is {")


@pytest.mark.parametrize(("name", "value"), [("size", 224), ("precision", "float64")])
def test_results_of_a_machine_that_chose_otherwise_are_not_mixed(
    name: str, value: Any, stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "results"))
    result = next(path for path in sorted(folder.glob("*.json")) if "error" not in json.loads(path.read_text()))
    values = json.loads(result.read_text())
    result.write_text(json.dumps({**values, name: value}))  # as where a GPU chose it
    config = small(stage, folder)
    with pytest.raises(SettingsError, match=f"made with other settings: {name} was {value!r}, is {values[name]!r}"):
        compare(config, console=quiet())
    write_experiment(tmp_path / "e", "linear-probe/other", about="New, so nothing of its own is there.")
    with pytest.raises(SettingsError, match=f"made with another budget: {name} was {value!r}, is {values[name]!r}"):
        compare(replace(config, experiments=(str(tmp_path / "e"),)), console=quiet())
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    compare(replace(config, redo=True), console=quiet())
    assert {run[name] for run in results(folder).values()} == {values[name]}
    monkeypatch.setattr(process, "_wait_for", no_child)
    compare(config, console=quiet())


def test_results_of_another_budget_are_not_mixed(stage: Path, finished: Path, tmp_path: Path) -> None:
    write_experiment(tmp_path, "linear-probe/other", about="New, so nothing of its own is there.")
    with pytest.raises(SettingsError, match="was made with another budget: steps was 2, is 4"):
        compare(small(stage, finished, steps=4, experiments=(str(tmp_path),)), console=quiet())


def test_steps_that_round_up_to_as_many_are_the_same_budget(
    stage: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    compare(small(stage, finished, seeds=(0, 1), steps=1), console=quiet())  # two batches are one pass


def test_a_run_that_failed_on_another_budget_is_run_again(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", lambda command: -signal.SIGKILL)
    config = small(stage, tmp_path / "out", strategies=("linear-probe",))
    (failure,) = compare(config, console=quiet()).failures
    assert failure.error.endswith("lower --batch-size or --size")
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    assert not compare(replace(config, batch_size=2), console=quiet()).failures


def test_an_unfinished_run_of_a_machine_that_chose_otherwise_is_not_resumed(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    config = small(stage, tmp_path / "out", strategies=("linear-probe",))
    run = tmp_path / "out" / "runs" / "linear-probe--default--seed0"
    for size, redo in ((16, True), (8, True), (16, False)):
        monkeypatch.setattr(jobs, "clip_size", lambda *_, size=size: size)
        with pytest.raises((AssertionError, SettingsError)) as told:
            compare(replace(config, redo=redo), console=quiet())
        if redo:
            assert "a training was started" in str(told.value)
            assert not run.exists()
            run.mkdir()
            (run / CHECKPOINT_NAME).touch()
        else:
            assert "was made with other settings: size was 8, is 16; choose another --out, or run it" in str(told.value)
            assert (run / CHECKPOINT_NAME).exists()


@pytest.mark.parametrize(
    ("damage", "is_told"),
    [
        ({"text": "{"}, True),
        ({"text": "[]"}, True),
        ({"predictions": None}, True),
        ({"identity": 5}, True),
        ({"top1": "high"}, True),
        ({"top1_interval": "wide"}, True),
        ({"top1_interval": {"low": 0.5}}, True),
        ({"predictions": [{"name": "a.mp4"}]}, True),
        ({"lr_search": {"values": [1e-3]}}, True),
        ({"heads": {}}, False),
    ],
)
def test_a_result_damaged_by_hand_is_told_before_any_run_or_made_again(
    stage: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: dict[str, Any],
    is_told: bool,
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    shutil.copytree(finished, out := tmp_path / "out")
    path = out / "linear-probe--default--seed1.json"
    path.write_text(damage.get("text", json.dumps(json.loads(path.read_text()) | damage)))
    other = small(stage, out, strategies=("st-adapter",), seeds=(0, 1, 2))  # a third seed has to be run
    if is_told:
        with pytest.raises(DataError, match=r"linear-probe--default--seed1\.json is not a complete result"):
            compare(other, console=quiet())
        with pytest.raises(AssertionError, match=r"a training was started.*linear-probe--default--seed1\.job"):
            compare(replace(other, strategies=()), console=quiet())
    else:
        assert len(compare(replace(other, strategies=(), seeds=(0, 1)), console=quiet()).rows) == 2


def test_what_a_later_version_adds_to_a_result_is_passed_over(finished: Path, tmp_path: Path) -> None:
    values = json.loads((finished / "st-adapter--default--seed0.json").read_text())
    values["top1_interval"]["method"] = values["predictions"][0]["frames"] = values["weather"] = "new"
    (path := tmp_path / "st-adapter--default--seed0.json").write_text(json.dumps(values))
    assert read_result(path) == read_result(finished / path.name)


def test_a_result_of_a_newer_format_is_refused(stage: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, out := tmp_path / "out")
    path = out / "linear-probe--default--seed1.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"format": FORMAT + 1, "strategy": "of-tomorrow"}))
    with pytest.raises(DataError, match=rf"seed1\.json is of format {FORMAT + 1}; this program knows up to {FORMAT}"):
        compare(small(stage, out, seeds=(0, 1)), console=quiet())


def test_a_comparison_is_a_line_and_for_rich_a_table(finished: Path) -> None:
    comparison = summarise(finished)
    assert repr(comparison).startswith(f"Comparison({finished}: ")
    assert len(repr(comparison)) < len(str(finished)) + 80
    shown = io.StringIO()
    Console(file=shown, width=120).print(comparison)
    assert "top-1" in shown.getvalue()


def test_a_result_under_the_name_of_another_is_told(stage: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, out := tmp_path / "out")
    shutil.copy(out / "linear-probe--default--seed1.json", out / "linear-probe--default--seed7.json")
    shutil.copytree(finished, unknown := tmp_path / "unknown")
    text = (unknown / "linear-probe--default--seed1.json").read_text()
    (unknown / "of-old--default--seed1.json").write_text(text.replace('"linear-probe"', '"of-old"', 1))
    with pytest.raises(DataError, match=r"of-old--default--seed1\.json is not a complete result"):
        summarise(unknown)
    with pytest.raises(
        DataError, match=r"seed7\.json is not a complete result of stadapter compare under its original name"
    ):
        compare(small(stage, out, seeds=(0, 1)), console=quiet())


def test_a_damaged_job_file_is_written_again(
    stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    shutil.copytree(finished, out := tmp_path / "out")
    (out / "linear-probe--default--seed1.json").unlink()
    run = out / "runs" / "linear-probe--default--seed1"
    (run / CHECKPOINT_NAME).touch()
    for text in ("{", "{}", '{"known": 5, "settings": {}}'):
        run.with_name(f"{run.name}.job.json").write_text(text)
        with pytest.raises(AssertionError, match="a training was started"):
            compare(small(stage, out, seeds=(0, 1)), console=quiet())


def probe_job(stage: Path, out: Path) -> Job:
    config = small(stage, out)
    return experiment_job(config, find_common(config), Experiment("linear-probe"), 0, out)


def test_a_run_is_gone_on_with_only_at_its_own_learning_rate(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    job = probe_job(stage, tmp_path)
    left = Path(job.config.out) / CHECKPOINT_NAME
    for rate, is_kept in ((1e-3, False), (1e-3, True), (1e-2, False)):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.touch()
        with pytest.raises(AssertionError, match="a training was started"):
            process.run(replace(job, config=replace(job.config, lr=rate)), quiet())
        assert left.exists() == is_kept


def test_a_run_has_every_setting_of_the_comparison_and_says_what_it_depends_on(stage: Path, tmp_path: Path) -> None:
    config = small(stage, tmp_path, lr_search=(1e-3, 1e-2), search_fraction=0.5, steps=7)
    common = find_common(config)
    changes = {"label_kind": "verb", "split_number": 2, "fit": "stretch", "video_root": str(tmp_path), "seeds": (3,)}
    changes |= {"augmentation": Augmentation(flip=True), "precision": "bf16", "checkpoint_minutes": 7.0, "lr": 0.5}
    config = replace(config, **changes)  # type: ignore[arg-type]
    job = experiment_job(config, common, Experiment("linear-probe"), 4, tmp_path)
    shared = {each.name for each in fields(CompareConfig)} & {each.name for each in fields(TrainConfig)} - {"out"}
    assert {name: getattr(job.config, name) for name in shared} == {name: getattr(config, name) for name in shared}
    assert (job.config.seed, job.config.val_data, job.config.epochs) == (4, config.test, 4)
    assert common.search_sets is not None
    searched_on = {"search_sha256": [clips.hash() for clips in common.search_sets]}
    hashes = {"train_sha256": common.train_set.hash(), "test_sha256": read_manifest(config.test).hash()}
    assert job.known.identity.items() >= hashes.items()
    assert job.known.identity["lr"] == {"search": [1e-3, 1e-2], "seed": 3, **searched_on}
    trial = search_job(config, common, Experiment("linear-probe"), 1e-2, tmp_path)
    assert [len(clips.entries) for clips in common.search_sets] == [4, 4]
    assert (trial.config.lr, trial.config.val_fraction, trial.config.epochs) == (
        1e-2,
        0.5,
        3,
    )  # a third of 7, rounded up
    assert trial.known.identity.items() >= searched_on.items()


def test_costs_are_those_of_the_whole_model_on_the_clips_it_sees(stage: Path, tmp_path: Path) -> None:
    costs, _ = child.count_costs(probe_job(stage, tmp_path).config)
    model = build_model(backbone=str(stage / "trunk"), labels=["left", "right"], tuning=LinearProbe()).eval()
    assert costs == {
        "trained_parameters": model.count_parameters().trained,
        "total_parameters": model.count_parameters().total,
        "gmacs_per_view": gmacs_per_view(model, num_frames=2, size=16),
    }


def test_the_same_clips_elsewhere_are_the_same_comparison(
    stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    for side in ("train", "test"):
        shutil.copytree(stage / side, tmp_path / side)
    config = small(stage, finished, seeds=(0, 1))
    compare(replace(config, data=f"{tmp_path}/train", test=f"{tmp_path}/test"), console=quiet())


def test_parts_of_one_recording_under_two_names_are_copies_only_where_they_are_the_same_part(
    stage: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        shutil.copy(stage / "train" / "left" / "left_00.mp4", tmp_path / f"{name}.mp4")
    for end, name in ((0.2, "train"), (0.4, "test"), (0.2, "same")):
        video = "a" if name == "train" else "b"
        (tmp_path / f"{name}.csv").write_text(f"path,label,start,end\n{video}.mp4,left,{end - 0.2},{end}\n")
    train, other, same = (read_manifest(tmp_path / f"{name}.csv") for name in ("train", "test", "same"))
    assert jobs._copies(train, other) == []
    assert jobs._copies(train, same) == ["a.mp4 = b.mp4"]


def test_a_run_folder_that_another_process_trains_in_is_left_alone(tmp_path: Path) -> None:
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / LOCK_NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(TrainingError, match="another process is training in"):
            child.take_up(TrainConfig(data="-", out=tmp_path))
        other.communicate(b"\n")
    assert tmp_path.is_dir()


def test_two_comparisons_in_one_folder_are_refused(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    (out := tmp_path / "out").mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(out / LOCK_NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(TrainingError, match=r"another process is training in .*out; wait for it"):
            compare(small(stage, out), console=quiet())
        other.communicate(b"\n")


def test_the_table_says_where_it_cannot_tell(finished: Path) -> None:
    comparison = write_summary(finished)
    console = Console(file=io.StringIO(), width=400)
    console.print(tables(comparison))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "linear-probe/default" in shown
    assert "the reference" in shown
    assert "cannot tell" in shown
    markdown = (finished / "comparison.md").read_text()
    assert "| linear-probe/default | 2 |" in markdown
    assert "top-5" not in markdown  # there are two classes
    assert "Cannot tell from 4 clips and these seeds whether better or worse than st-adapter/default: " in markdown
    rows = list(csv.DictReader(io.StringIO((finished / "runs.csv").read_text())))
    assert [(row["strategy"], row["seed"]) for row in rows] == [
        *(("st-adapter", "0"), ("st-adapter", "1")),
        *(("linear-probe", "0"), ("linear-probe", "1")),
    ]
    assert float(rows[0]["top1"]) == results(finished)["st-adapter--default--seed0"]["top1"]


def test_the_page_says_which_learning_rates_were_searched(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, out := tmp_path / "out")
    search = {"values": [1e-3, 2e-3], "chosen": 2e-3, "num_held_out_clips": 2, "held_out_sha256": "", "steps": 5}
    search |= {name: {} for name in ("errors", "top1", "loss", "train_loss")}
    for strategy, which, num_marked in (("st-adapter", "those marked as searched", 1), ("linear-probe", "each", 2)):
        for path in out.glob(f"{strategy}--*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"lr_search": search}))
        write_summary(out)
        page = (out / "comparison.md").read_text()
        assert f"The learning rate of {which} is the best of 2, tried with one seed and 5 steps on 2 clips" in page
        assert page.count("| 0.002, searched |") == num_marked


@pytest.mark.parametrize("width", [80, 140, 400])
def test_a_narrow_terminal_leaves_out_columns_and_cuts_off_nothing(finished: Path, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(tables(write_summary(finished)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert "│ linear-probe/default │" in shown
    assert ("│ cannot tell " in shown) == (width > 80)
    assert ("95 % interval, verdict, one frame, seeds" in shown) == (width == 80)
    assert ("comparison.md has them" in shown) == (width < 400)


@pytest.mark.parametrize(("name", "unit"), [("top1-by-parameters", " k"), ("top1-by-time", " s")])
def test_the_figures_show_every_experiment_with_its_interval(finished: Path, name: str, unit: str) -> None:
    comparison = write_summary(finished)
    bars = re.findall(r'd="M\S+ (\S+)V(\S+?)M', (finished / f"{name}.svg").read_text())
    assert [(float(low), float(high)) for low, high in bars] == [
        tuple(round(44 + 340 * (1 - end), 1) for end in (row.interval.low, row.interval.high))
        for row in comparison.rows
    ]
    picture = ElementTree.parse(finished / f"{name}.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    words = [text.text or "" for text in picture.iter(f"{svg}text")]
    assert len(list(picture.iter(f"{svg}circle"))) == 2
    assert {title.text.split(":")[0] for title in picture.iter(f"{svg}title") if title.text} == {
        "st-adapter/default",
        "linear-probe/default",
    }
    assert any("4 test clips" in word for word in words)
    assert any(word.endswith(unit) for word in words)
    assert f"({name}.svg)" in (finished / "comparison.md").read_text()


def fake_result(out: Path, source: Path, strategy: str, seed: int, correct: Sequence[bool]) -> None:
    """A result as `source`, on as many clips as `correct` has."""
    run = json.loads(source.read_text())
    rows = [{**run["predictions"][0], "name": f"{i}.mp4", "is_correct": right} for i, right in enumerate(correct)]
    run |= {"strategy": strategy, "seed": seed, "predictions": rows, "num_clips": len(rows)}
    run["top1"] = sum(correct) / len(correct)
    out.mkdir(exist_ok=True)
    (out / f"{strategy}--default--seed{seed}.json").write_text(json.dumps(run))


def test_what_one_seed_does_not_tell_is_left_out_and_no_time_at_all_has_its_place_in_the_figure(
    finished: Path, tmp_path: Path
) -> None:
    for seed, told in enumerate(({"peak_memory_bytes": 2**20}, {"peak_memory_bytes": None}, {})):
        source = tmp_path / "source.json"
        values = json.loads((finished / "st-adapter--default--seed0.json").read_text())
        source.write_text(json.dumps(values | {"training_seconds": 0.0, "shuffled": None} | told))
        fake_result(tmp_path / "out", source, "st-adapter", seed, [True] * 4)
    (row,) = write_summary(tmp_path / "out").rows
    assert row.median("peak_memory_bytes") is None
    assert row.mean("shuffled") is None
    assert row.median("training_seconds") == 0
    costs = (tmp_path / "out" / "comparison.md").read_text().partition("What each costs:")[2]
    assert re.search(r"\| +\| 0 min \|$", costs, re.MULTILINE)  # no peak memory
    assert "st-adapter/default, 100.0 %, 0.1 s</text>" in (tmp_path / "out" / "top1-by-time.svg").read_text()


def test_seeds_that_differ_much_are_no_evidence(finished: Path, tmp_path: Path) -> None:
    source = finished / "st-adapter--default--seed0.json"
    for seed, num_right in enumerate((10, 25, 38)):
        fake_result(tmp_path / "out", source, "st-adapter", seed, [True] * num_right + [False] * (40 - num_right))
        fake_result(tmp_path / "out", source, "lora", seed, [True] * (36 - seed) + [False] * (4 + seed))
    reference, lora = write_summary(tmp_path / "out").rows
    assert reference.interval.low < 0.4 < 0.9 < reference.interval.high
    assert lora.difference is not None
    assert lora.difference.mean > 0.26
    assert lora.verdict == "cannot tell"


def test_one_seed_is_said_to_be_one(finished: Path, tmp_path: Path) -> None:
    source = finished / "st-adapter--default--seed0.json"
    for seed in (0, 1):
        fake_result(tmp_path / "out", source, "st-adapter", seed, [True] * 20 + [False] * 20)
    fake_result(tmp_path / "out", source, "lora", 0, [True] * 40)
    missing = "the intervals do not include what another would give."
    assert f"One seed for lora/default: {missing}" in write_summary(tmp_path / "out").sentences
    (tmp_path / "out" / "st-adapter--default--seed1.json").unlink()
    assert f"One seed each: {missing}" in write_summary(tmp_path / "out").sentences


def test_a_clip_that_one_could_not_read_is_compared_by_no_one_and_counted_as_a_test_clip(
    finished: Path, tmp_path: Path
) -> None:
    source = finished / "st-adapter--default--seed0.json"
    fake_result(tmp_path / "out", source, "st-adapter", 0, [True] * 30 + [False] * 10)
    fake_result(tmp_path / "out", source, "lora", 0, [True] * 30)
    comparison = write_summary(tmp_path / "out")
    assert comparison.num_clips == 40
    assert comparison.rows[1].difference is not None
    assert comparison.rows[1].difference.mean == 0


def test_differences_are_taken_clip_by_clip(finished: Path, tmp_path: Path) -> None:
    source = finished / "st-adapter--default--seed0.json"
    for seed in (0, 1):
        fake_result(tmp_path / "out", source, "st-adapter", seed, [True] * 30 + [False] * 10)
        fake_result(tmp_path / "out", source, "lora", seed, [True] * (10 + 10 * seed) + [False] * (30 - 10 * seed))
        fake_result(tmp_path / "out", source, "full", seed, [True] * 30 + [False] * 9 + [True])
    reference, lora, full = write_summary(tmp_path / "out").rows
    assert reference.verdict == "the reference"
    assert lora.top1 == 15 / 40
    assert lora.difference is not None
    assert lora.difference.mean == pytest.approx(-15 / 40)  # clips 10 to 19 half right, 20 to 29 wrong
    assert lora.difference.interval.high < 0
    assert lora.verdict == "worse than st-adapter/default"
    assert full.verdict == "cannot tell"
    assert (lora.lowest, lora.highest) == (0.25, 0.5)


def test_the_table_has_means_of_accuracies_and_medians_of_costs(finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.json"
    values = json.loads((finished / "st-adapter--default--seed0.json").read_text())
    for seed, minutes, right in ((2, 2, 1), (3, 4, 2), (10, 12, 4)):
        costs = {"training_seconds": 60.0 * minutes, "peak_memory_bytes": minutes * 2**20, "artefact_bytes": 10**6}
        figures = {"num_classes": 6, "top5": right / 4, "shuffled": 0.1, "reversed": 0.2, "single_frame": right / 4}
        ends = {"top1_interval": {"low": 0.1, "high": 0.2}, "top5_interval": {"low": 0.3, "high": 0.4}}
        source.write_text(json.dumps(values | costs | figures | ends))
        fake_result(tmp_path / "out", source, "st-adapter", seed, [True] * right + [False] * (4 - right))
        fake_result(tmp_path / "out", source, "lora", seed, [True] * 4)
    adapter, lora = write_summary(tmp_path / "out").rows
    assert [run.seed for run in adapter.runs] == [2, 3, 10]
    assert (adapter.top1, adapter.lowest, adapter.highest) == (pytest.approx(7 / 12), 0.25, 1)
    page = (tmp_path / "out" / "comparison.md").read_text()
    low, high = (round(100 * end, 1) for end in (adapter.interval.low, adapter.interval.high))
    shown = f"| 58.3 % | {low} to {high} % | 25.0 to 100.0 % | 58.3 % | 10.0 % | 20.0 % | 58.3 % |  | the reference |"
    assert shown in page
    assert "+41.7 (" in page
    assert "| 1 MB |" in page
    assert page.count("| 4 MiB | 4 min |") == 2
    row = next(csv.DictReader(io.StringIO((tmp_path / "out" / "runs.csv").read_text())))
    ends = [float(row[name]) for name in ("top1_low", "top1_high", "top5_low", "top5_high", "lr")]
    assert ends == [0.1, 0.2, 0.3, 0.4, values["config"]["lr"]]
    assert "comparisons at 95 %" not in page
    heights = re.findall(r'<circle cx="\S+" cy="(\S+)"', (tmp_path / "out" / "top1-by-time.svg").read_text())
    assert heights == [f"{44 + 340 * (1 - row.top1):.1f}" for row in (adapter, lora)]


def test_the_default_comes_first_and_a_reference_without_a_result_is_told(finished: Path, tmp_path: Path) -> None:
    source = finished / "st-adapter--default--seed0.json"
    for name in ("a", "default-2", "default"):
        values = json.loads(source.read_text()) | {"name": name, "num_classes": 5}
        (tmp_path / f"st-adapter--{name}--seed0.json").write_text(json.dumps(values))
    comparison = write_summary(tmp_path, reference="full/default")
    assert "top-5" not in (tmp_path / "comparison.md").read_text()  # which is always right with five classes
    assert [row.title for row in comparison.rows] == ["st-adapter/default", "st-adapter/a", "st-adapter/default-2"]
    assert comparison.sentences == ("No result of full/default to compare with.",)


def test_parts_of_one_video_are_clips_of_their_own_and_other_clips_are_not_compared(
    finished: Path, tmp_path: Path
) -> None:
    source = finished / "st-adapter--default--seed0.json"
    values = json.loads(source.read_text())
    rows = [{**values["predictions"][0], "start_seconds": float(n), "is_correct": n == 0} for n in range(4)]
    (tmp_path / source.name).write_text(json.dumps(values | {"predictions": rows}))
    fake_result(tmp_path, source, "lora", 0, [True] * 4)
    adapter, lora = summarise(tmp_path).rows
    assert list(adapter.correct.values()) == [(True,), (False,), (False,), (False,)]
    assert (lora.difference, lora.verdict) == (None, "no test clip in common")


def test_an_axis_is_logarithmic_and_has_few_round_numbers() -> None:
    axis = plots.Axis(1.0, 3.0)
    assert axis.at(100) == (axis.at(10) + axis.at(1000)) / 2
    assert axis.ticks(plots._ROUND_COUNTS) == [10, 20, 50, 100, 200, 500, 1000]
    assert plots.Axis(1.0, 4.0).ticks(plots._ROUND_COUNTS) == [10, 100, 1000, 10_000]


def test_one_clip_less_is_no_evidence(finished: Path, tmp_path: Path) -> None:
    source = finished / "st-adapter--default--seed0.json"
    fake_result(tmp_path / "out", source, "st-adapter", 0, [True] * 30 + [False] * 10)
    fake_result(tmp_path / "out", source, "lora", 0, [True] * 29 + [False] * 11)
    _, lora = summarise(tmp_path / "out").rows
    assert lora.difference is not None
    assert lora.difference.interval.high == 0
    assert lora.verdict == "cannot tell"


def test_a_clip_that_one_seed_could_not_read_counts_for_none_in_the_interval(finished: Path, tmp_path: Path) -> None:
    source = finished / "st-adapter--default--seed0.json"
    for seed, num_read in enumerate((4, 3, 4)):
        fake_result(tmp_path / "out", source, "st-adapter", seed, [True] * num_read)
    (row,) = summarise(tmp_path / "out").rows
    assert [name for name, _, _ in row.correct] == ["0.mp4", "1.mp4", "2.mp4"]


def test_a_failing_run_is_recorded_and_the_rest_goes_on(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    write_experiment(tmp_path / "e", "lora/default", tuning={"last_blocks": 99})
    write_experiment(tmp_path / "e", "full/default", tuning={})
    config = small(stage, tmp_path / "out", experiments=(str(tmp_path / "e"),))
    comparison = compare(config, console=quiet())
    assert [(failure.title, failure.seed) for failure in comparison.failures] == [("lora/default", 0)]
    assert "last_blocks=99: the trunk has 3 blocks" in comparison.failures[0].error
    assert [row.title for row in comparison.rows] == ["full/default"]
    assert "lora/default, seed 0: last_blocks=99" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(("last_blocks", "code"), [(99, 1), (1, 0)])
def test_the_command_tells_by_its_exit_code_whether_a_run_failed(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_blocks: int, code: int
) -> None:
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    write_experiment(tmp_path / "e", "lora/default", tuning={"rank": 1, "last_blocks": last_blocks})
    paths = {"data": stage / "train", "test": stage / "test", "backbone": stage / "trunk"}
    paths |= {"experiments": tmp_path / "e", "out": tmp_path / "out"}
    flags = [text for name, path in paths.items() for text in (f"--{name}", str(path))]
    small = "--steps 1 --batch-size 8 --num-frames 2 --num-workers 0 --num-spatial-views 1 --device cpu"
    assert main(["compare", *flags, *small.split()]) == code


def test_an_error_of_several_lines_is_one_line_of_the_page(stage: Path, tmp_path: Path) -> None:
    process.fail(probe_job(stage, tmp_path), "a\n# b|c")
    write_summary(tmp_path)
    assert "linear-probe/default, seed 0: a # b\\|c\n" in (tmp_path / "comparison.md").read_text()


def test_a_killed_run_is_recorded_and_gone_on_with(
    stage: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = process.subprocess.Popen  # type: ignore[attr-defined]
    config = small(stage, tmp_path / "out", strategies=("st-adapter",), steps=60, checkpoint_minutes=0.0)
    checkpoint = tmp_path / "out" / "runs" / "st-adapter--default--seed0" / CHECKPOINT_NAME

    class Killed:
        def __init__(self, command: Sequence[str], **settings: Any) -> None:
            self.child = started(command, **settings)

        def wait(self) -> int:
            while not checkpoint.is_file() and self.child.poll() is None:
                pass
            self.child.kill()
            code: int = self.child.wait()
            return code

    with monkeypatch.context() as patch:
        patch.setattr(process.subprocess, "Popen", Killed)  # type: ignore[attr-defined]
        comparison = compare(config, console=quiet())
    assert "killed by a signal (Killed); most likely it ran out of memory" in comparison.failures[0].error
    assert checkpoint.is_file()
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    comparison = compare(config, console=quiet())
    assert not comparison.failures
    (run,) = comparison.rows[0].runs
    assert run.steps == 60
    assert run.interruptions == 1


def test_the_learning_rate_is_searched_without_the_test_clips(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    config = small(stage, tmp_path / "out", strategies=("linear-probe",), steps=6, lr_search=(1e-4, 1e-1), seeds=(3,))
    compare(config, console=quiet())
    (result,) = results(tmp_path / "out").values()
    search = result["lr_search"]
    assert search["values"] == [1e-4, 1e-1]
    assert search["steps"] == 2
    assert set(search["top1"]) == {"0.0001", "0.1"}
    least = min(search["values"], key=lambda rate: search["train_loss"][f"{rate:g}"])
    assert result["config"]["lr"] == search["chosen"] == least  # two clips cannot tell them apart
    training = {entry.path.name for entry in read_manifest(stage / "train").entries}
    for rate in ("0.0001", "0.1"):
        trial = json.loads((tmp_path / "out" / "search" / f"linear-probe--default--lr{rate}.json").read_text())
        assert trial["seed"] == trial["config"]["seed"] == 3
        assert trial["config"]["lr"] == float(rate)
        assert trial["config"]["val_data"] is None
        assert Path(trial["config"]["data"]) == stage / "train"
        assert {Path(row["name"]).name for row in trial["predictions"]} < training
        assert len(trial["predictions"]) == search["num_held_out_clips"] == 2
        assert all(search[name][rate] == trial[name] for name in ("top1", "loss", "train_loss"))
    assert search["held_out_sha256"] == result["identity"]["lr"]["search_sha256"][1]


def test_where_no_learning_rate_worked_that_is_the_result(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", lambda command: 1)
    config = small(stage, tmp_path / "out", lr_search=(1e-3, 1e-2))
    comparison = compare(config, console=quiet())
    assert [failure.title for failure in comparison.failures] == ["linear-probe/default", "st-adapter/default"]
    for failure in comparison.failures:
        assert failure.error.startswith("no learning rate worked: the training process ended with exit code 1")
        assert failure.lr_search is not None
        assert (failure.lr_search.chosen, set(failure.lr_search.errors)) == (None, {"0.001", "0.01"})


def test_all_seeds_have_the_learning_rate_of_one_search(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    def sometimes_killed(command: Sequence[str]) -> int:
        started.append(Path(command[-1]).name.removesuffix(".job.json").removeprefix("linear-probe--default--"))
        return -signal.SIGKILL if started in (["lr0.001", "lr0.1"], ["lr0.001", "lr0.1", "seed0"]) else train(command)

    train = in_this_process
    monkeypatch.setattr(process, "_wait_for", sometimes_killed)
    config = small(stage, tmp_path / "out", strategies=("linear-probe",), lr_search=(1e-3, 1e-1), seeds=(0, 1))
    comparison = compare(config, console=quiet())
    assert started == ["lr0.001", "lr0.1", "seed0", "seed1"]
    (row,), (killed,) = comparison.rows, comparison.failures
    (run,) = row.runs
    assert run.config["lr"] == 1e-3
    assert run.lr_search == killed.lr_search
    assert run.lr_search is not None
    assert run.lr_search.errors["0.1"].startswith("the training process was killed by a signal")


@pytest.mark.parametrize("own", [(1e-3,), (1e-3, 1e-2, 1e-1)])
def test_every_experiment_searches_as_many_learning_rates(stage: Path, tmp_path: Path, own: tuple[float, ...]) -> None:
    config = small(stage, tmp_path / "out", lr_search=(1e-3, 1e-2))
    assert rates_of(config, Experiment("lora", lr_search=(1.0, 2.0))) == (1.0, 2.0)
    with pytest.raises(SettingsError, match=f"lora/default searches {len(own)} learning rates .* --lr-search has 2"):
        rates_of(config, Experiment("lora", lr_search=own))


def test_the_search_takes_the_best_and_among_equals_the_one_that_learned_most(finished: Path) -> None:
    found = read_result(finished / "linear-probe--default--seed0.json")
    assert isinstance(found, FinishedRun)

    def tried(correct: str, train_loss: float) -> FinishedRun:
        """What a training of the search gives: for each clip 1 where it is right."""
        clips = [replace(found.predictions[0], name=str(n), is_correct=m == "1") for n, m in enumerate(correct)]
        top1 = correct.count("1") / len(correct)
        return replace(found, predictions=tuple(clips), top1=top1, train_loss=train_loss)

    good, chance, other_chance = "1" * 15 + "0" * 5, "1" * 2 + "0" * 18, "0" * 17 + "1" * 3
    assert choose_rate({1e-3: tried(good, 2.0), 1e-2: tried(chance, 0.1)}) == 1e-3
    assert choose_rate({1e-4: tried(chance, 1.9), 1e-3: tried(other_chance, 2.3), 1e-2: tried(chance, 1.2)}) == 1e-2
    assert choose_rate({1e-2: tried(chance, 2.3)}) == 1e-2
    first, last, few = "1" * 10 + "0" * 10, "0" * 10 + "1" * 10, "0" * 10 + "1" * 5 + "0" * 5
    rates = {1e-4: tried(first, 2.0), 1e-3: tried(last, 1.5), 1e-2: tried(few, 0.1)}
    assert choose_rate(rates) == 1e-3  # as good as the first, with a lower loss; the last is certainly worse
    elsewhere = replace(tried(good, 2.0), predictions=())
    assert choose_rate({1e-3: elsewhere, 1e-2: tried(chance, 0.1)}) == 1e-2  # no clip in common: cannot tell


def test_the_clips_of_the_search_can_be_named(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    for side, number in (("part", 3), ("held-out", 0)):
        for label in ("left", "right"):
            (tmp_path / side / label).mkdir(parents=True)
            shutil.copy(stage / "train" / label / f"{label}_0{number}.mp4", tmp_path / side / label)
    named = (str(tmp_path / "part"), str(tmp_path / "held-out"))
    config = small(stage, tmp_path / "out", strategies=("linear-probe",), lr_search=(1e-3,), search_data=named)
    compare(config, console=quiet())
    trial = json.loads((tmp_path / "out" / "search" / "linear-probe--default--lr0.001.json").read_text())
    assert {row["name"] for row in trial["predictions"]} == {"left/left_00.mp4", "right/right_00.mp4"}
    (result,) = results(tmp_path / "out").values()
    assert result["lr_search"]["num_held_out_clips"] == 2
    with pytest.raises(SettingsError, match="was made with other settings: lr"):
        compare(replace(config, search_data=None), console=quiet())
    with pytest.raises(DataError, match="part and those held out have 2 in common"):
        compare(replace(config, search_data=(named[0], named[0])), console=quiet())


def test_clips_on_both_sides_are_refused(stage: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data .* and the test clips have 8 in common: left/left_00\.mp4"):
        compare(small(stage, tmp_path / "out", test=str(stage / "train")), console=quiet())
    for split, source in (("train", "train"), ("val", "test")):
        shutil.copytree(stage / source, tmp_path / "data" / split)
    config = small(stage, tmp_path / "out", data=str(tmp_path / "data"), test=str(tmp_path / "data" / "val"))
    with pytest.raises(
        DataError, match="held out in the search for the learning rate and the test clips have 4 in common"
    ):
        compare(replace(config, lr_search=(1e-3, 1e-2)), console=quiet())
    assert not (tmp_path / "out").exists()


def test_a_copy_of_a_test_clip_is_refused_whatever_its_name_and_empty_files_are_no_copies(
    stage: Path, tmp_path: Path
) -> None:
    for side in ("train", "test"):
        shutil.copytree(stage / side, tmp_path / side)
        (tmp_path / side / "left" / f"empty_{side}.mp4").touch()
    shutil.copy(tmp_path / "test" / "left" / "left_01.mp4", tmp_path / "train" / "left" / "copy.mp4")
    with pytest.raises(
        DataError, match=r"the test clips have 1 in common: left/copy\.mp4 = left/left_01\.mp4; expected no clip"
    ):
        find_common(small(tmp_path, tmp_path / "out", backbone=str(stage / "trunk")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: expected at least 1"),
        ({"num_frames": 0}, "num_frames 0: expected at least 1"),
        ({"steps": 0}, "steps 0: expected at least 1"),
        ({"seeds": (1, 1)}, "none twice"),
        ({"strategies": ("lore",)}, "unknown strategy lore; expected some of st-adapter, "),
        ({"lr_search": (1e-3, 0.0)}, "lr or lr_search 0: expected learning rates above 0"),
        ({"reference": "st-adapter"}, "reference 'st-adapter': expected strategy/name"),
        ({"reference": "st-adaptor/default"}, "expected strategy/name, such as st-adapter/default"),
        ({"size": 18}, "size 18: the trunk's patches are 4 pixels wide"),
        ({"size": 0}, "size 0: expected at least 1"),
        ({"num_spatial_views": 2}, "num_spatial_views 2: expected 1"),
        ({"fit": "stretch", "num_spatial_views": 3}, "shows the whole frame"),
        ({"device": "cuda:99"}, "device cuda:99: expected auto, cpu, cuda"),
    ],
)
def test_settings_that_no_run_could_have_are_refused_before_the_first_one(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(process, "_wait_for", no_child)
    with pytest.raises(SettingsError, match=message):
        compare(small(stage, tmp_path / "out", **change), console=quiet())
    assert not (tmp_path / "out").exists()


def test_ctrl_c_reaches_the_training_once_and_then_the_comparison_stops(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[1], 'a').write('asked '), sys.exit(130)))\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(30)\n"
    )
    try:
        with pytest.raises(KeyboardInterrupt):
            process._wait_for([sys.executable, "-c", code, str(tmp_path / "told")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "told").read_text() == "asked "


def test_a_training_is_a_session_of_its_own_and_does_not_outlive_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    leads = "import os, sys; sys.exit(os.getsid(0) == os.getpid())"
    assert process._wait_for([sys.executable, "-c", leads]) == 1
    killed = []
    child = SimpleNamespace(wait=lambda: 1 / 0, kill=lambda: killed.append(True))
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, **__: child)  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError):
        process._wait_for([])
    assert killed


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (3, "the training process ended with exit code 3 and no result"),
        (-signal.SIGSEGV, "the training process was killed by a signal (Segmentation fault)"),
    ],
)
def test_only_a_kill_is_taken_for_too_little_memory(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: str
) -> None:
    monkeypatch.setattr(process, "_wait_for", lambda command: code)
    (failure,) = compare(small(stage, tmp_path / "out", strategies=("linear-probe",)), console=quiet()).failures
    assert failure.error == told


def test_a_training_stops_when_the_comparison_has_been_killed() -> None:
    code = (
        "import time\nfrom stadapter.signals import stop_with_parent\n"
        "stop_with_parent()\nprint(flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        child.stdin.close()  # as the system does for whoever held it
        assert child.wait(30) == -signal.SIGTERM
    waits = "import select, sys; sys.exit(len(select.select([0], [], [], 0.3)[0]))"  # nothing to read, and no end
    assert process._wait_for([sys.executable, "-c", waits]) == 0


@pytest.mark.parametrize(
    ("title", "values", "message"),
    [
        ("st-adaptor/default", {}, "unknown strategy 'st-adaptor'; expected a folder named st-adapter or"),
        ("lora/a--b", {}, "expected a name of letters, digits, dots and single dashes"),
        ("lora/default", {"batch_size": 4}, "an experiment may not choose batch_size"),
        ("lora/default", {"tuning": {"width": 4}}, "lora has no setting width; it has alpha, dropout"),
        ("lora/default", {"tuning": 4}, "tuning is 4; expected an object"),
        ("lora/default", {"lr": "fast"}, "lr is 'fast'; expected a number"),
        ("lora/default", {"lr": True}, "lr is True; expected a number"),
        ("lora/default", {"num_frames": True}, "num_frames is True; expected a whole number"),
        ("lora/default", {"num_frames": 2.5}, r"num_frames is 2\.5; expected a whole number"),
        ("lora/default", {"num_frames": 0}, "num_frames is 0; expected a whole number, at least 1"),
        ("lora/default", {"tuning": {"rank": 0}}, r"default\.json: rank 0: expected at least 1"),
        ("st-adapter/default", {"tuning": {"width": "D/x"}}, "width 'D/x'; expected a number, or a share such as D/4"),
        ("lora/default", {"lr": -1}, r"lora/default\.json: lr -1: expected a learning rate above 0"),
        ("lora/default", {"lr_search": [1e-3, 0]}, r"lora/default\.json: lr 0: expected a learning rate above 0"),
    ],
)
def test_an_experiment_that_cannot_be_understood_is_refused(
    tmp_path: Path, title: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        read_experiment(write_experiment(tmp_path, title, **values))


def test_experiments_come_as_the_strategies_do_and_the_default_first(tmp_path: Path) -> None:
    for title in ("lora/default", "lora/a", "st-adapter/z", "st-adapter/b", "st-adapter/default"):
        write_experiment(tmp_path, title)
    titles = [experiment.title for experiment in read_experiments([tmp_path])]
    assert titles == ["st-adapter/default", "st-adapter/b", "st-adapter/z", "lora/default", "lora/a"]


def test_what_is_compared_are_files_folders_or_strategies(tmp_path: Path) -> None:
    file = write_experiment(tmp_path / "e", "lora/a", lr_search=[1e-3, 1e-2])
    (experiment,) = read_experiments([file])
    assert (experiment.title, experiment.lr_search) == ("lora/a", (1e-3, 1e-2))
    write_experiment(tmp_path / "f", "lora/a")
    with pytest.raises(SettingsError, match="lora/a exists twice; rename one of the files"):
        read_experiments([tmp_path / "e", tmp_path / "f"])
    config = CompareConfig(data="-", test="-", strategies=("lora", "full"))
    assert [each.title for each in choose_experiments(config)] == ["lora/default", "full/default"]
    with pytest.raises(SettingsError, match="no experiment with full in"):
        choose_experiments(replace(config, strategies=("full",), experiments=(str(tmp_path / "e"),)))


def test_shares_follow_the_trunk() -> None:
    assert Experiment("st-adapter", tuning={"width": "D"}).make_tuning(width=8, num_blocks=1) == STAdapter(width=8)
    assert Experiment("st-adapter", tuning={"width": "D/4"}).make_tuning(width=384, num_blocks=12) == STAdapter(
        width=96
    )
    halved = Experiment("st-adapter", tuning={"first_blocks": "L/2"}).make_tuning(width=384, num_blocks=12)
    assert halved == STAdapter(first_blocks=6)
    with pytest.raises(SettingsError, match="width 'L/2'; expected a number, or a share such as D/4"):
        Experiment("st-adapter", tuning={"width": "L/2"}).make_tuning(width=384, num_blocks=12)
    with pytest.raises(SettingsError, match="leaves nothing of 8"):
        Experiment("st-adapter", tuning={"width": "D/16"}).make_tuning(width=8, num_blocks=12)


@pytest.mark.parametrize("folder", ["experiments", "experiments/ablations"])
def test_the_experiments_that_come_with_the_project_fit_a_trunk(folder: str) -> None:
    experiments = read_experiments([ROOT / folder])
    for experiment in experiments:
        tuning = experiment.make_tuning(width=32, num_blocks=12)  # a quarter of three blocks would be none
        if "L-" not in experiment.name:
            build_model(backbone=make_trunk("dinov2"), labels=["a", "b"], tuning=tuning)
        assert experiment.about.endswith(".")
        assert len(experiment.lr_search) in (0, 3)
    if folder == "experiments":
        assert [item.stem for item in experiments] == [f"{strategy}--default" for strategy in STRATEGIES]


def test_flags_that_are_refused_are_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        ("--steps 0", "steps 0: expected at least 1"),
        ("--search-fraction 1", "search_fraction 1: expected a share above 0 and below 1"),
        ("--search-data a b", "search_data without lr_search: expected learning rates to search as well"),
        ("--lr -1", "lr or lr_search -1: expected learning rates above 0"),
    ):
        assert main(["compare", "--data", "x", "--test", "y", "--out", "z", *flags.split()]) == 2
        assert capsys.readouterr().err == f"error: {message}\n"


def test_clips_that_no_run_could_train_on_are_told_with_the_figures(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, out := tmp_path / "out")
    for path in out.glob("*.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"unreadable_train_clips": {"left/a.mp4": "no video"}}))
    sentences = summarise(out).sentences
    assert "1 clip to train on could not be read: left/a.mp4." in sentences


def test_a_rate_that_another_machine_searched_is_not_taken(
    stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_wait_for", in_this_process)
    config = small(stage, tmp_path / "out", strategies=("linear-probe",), lr_search=(1e-3,))
    compare(config, console=quiet())
    (trial,) = (tmp_path / "out" / "search").glob("*.json")
    trial.write_text(json.dumps({**json.loads(trial.read_text()), "size": 224}))  # as where a GPU chose it
    (tmp_path / "out" / "linear-probe--default--seed0.json").unlink()
    with pytest.raises(SettingsError, match="was made with another budget: size was 224, is "):
        compare(config, console=quiet())
    compare(replace(config, redo=True), console=quiet())
    assert json.loads(trial.read_text())["size"] == 16
