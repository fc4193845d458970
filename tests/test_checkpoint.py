"""A checkpoint that is not ours, damaged, or of another run is refused by name; nothing in it is ever run."""

import dataclasses
import io
import json
import os
import pickle
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from stadapter.artefact import WEIGHTS_NAME, load_artefact
from stadapter.errors import ArtefactError, STAdapterError, TrainingError
from stadapter.manifest import find_held_out_up_to, read_splits
from stadapter.records import METRICS_NAME, read_records, write_records
from stadapter.synthetic import write_clips
from stadapter.tensor_file import DIGEST_KEY, digest, read_tensors, write_tensors
from stadapter.training.checkpoint import CHECKPOINT_NAME, Checkpoints, Progress, read_checkpoint
from stadapter.training.loop import TrainConfig, train
from stadapter.training.preparation import prepare
from stadapter.training.progress import Meter, rewind
from stadapter.tuning import LinearProbe, STAdapter
from trainings import stop_after
from trunks import save_trunk

SETTINGS, IDENTITY = {"lr": 0.1}, {"labels": ["left", "right"]}


class Model(torch.nn.Module):
    """Something that learns."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, width)


def make(folder: Path, *, width: int = 3) -> tuple[Model, Checkpoints]:
    model = Model(width)
    trained = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1)
    model.linear(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, Checkpoints(folder, trained, optimizer, steps_per_epoch=5, seconds_between=60)


def restore(folder: Path, *, width: int = 3) -> Progress:
    _, checkpoints = make(folder, width=width)
    return checkpoints.restore(SETTINGS, IDENTITY, total_steps=10, accept_changes=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a checkpoint in it."""
    torch.manual_seed(0)
    _, checkpoints = make(tmp_path)
    checkpoints.save(Progress(7, SETTINGS, IDENTITY, {"a.mp4": "broken"}))
    return tmp_path


def rewrite(folder: Path, *, sign: bool = True, tensors: dict[str, Any] | None = None, **metadata: str) -> None:
    """Change what is in a checkpoint, as somebody would who knows its format."""
    old_tensors, old_metadata = read_tensors(folder / CHECKPOINT_NAME)
    new = {name: tensor for name, tensor in (old_tensors | (tensors or {})).items() if tensor is not None}
    told = {name: text for name, text in (old_metadata | metadata).items() if name != DIGEST_KEY}
    save_file(new, folder / CHECKPOINT_NAME, {**told, DIGEST_KEY: digest(new, told)} if sign else told)


def test_what_was_saved_comes_back(saved: Path) -> None:
    model, checkpoints = make(saved)
    progress = checkpoints.restore(SETTINGS, IDENTITY, total_steps=10, accept_changes=False)
    assert (progress.step, progress.failures, progress.changes) == (7, {"a.mp4": "broken"}, ())
    stored, _ = read_tensors(saved / CHECKPOINT_NAME)
    assert torch.equal(model.linear.weight, stored["parameter/linear.weight"])
    assert {name.partition("/")[0] for name in stored} == {"parameter", "step", "exp_avg", "exp_avg_sq"}


def test_what_is_changed_comes_after_what_was_changed_before(tmp_path: Path) -> None:
    _, checkpoints = make(tmp_path)
    checkpoints.save(Progress(7, SETTINGS, IDENTITY, {}, ("after step 3: lr was 0.2, is 0.1",)))
    progress = checkpoints.restore({"lr": 0.3}, IDENTITY, total_steps=10, accept_changes=True)
    assert progress.changes == ("after step 3: lr was 0.2, is 0.1", "after step 7: lr was 0.1, is 0.3")


@pytest.mark.parametrize("kind", [CHECKPOINT_NAME, WEIGHTS_NAME])
def test_a_truncated_file_is_refused_at_every_length(saved: Path, kind: str) -> None:
    path = (saved / CHECKPOINT_NAME).rename(saved / kind)
    whole = path.read_bytes()
    for length in [*range(64), *range(64, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ArtefactError, match=re.escape(f"{path} is truncated or not a safetensors file")) as caught:
            read_tensors(path)
        assert str(caught.value).endswith("; copy the file again")
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtefactError, match=kind):
        read_tensors(path)


def test_a_flipped_bit_anywhere_is_found(saved: Path) -> None:
    path = saved / CHECKPOINT_NAME
    whole = path.read_bytes()
    generator = random.Random(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ArtefactError, match=re.escape(str(path))):
            read_checkpoint(saved)


def test_a_file_of_before_there_was_a_sha256_is_read(saved: Path) -> None:
    rewrite(saved, sign=False, format="stadapter-checkpoint-1")
    assert restore(saved).step == 7
    rewrite(saved, sign=False, format="stadapter-checkpoint-2")
    with pytest.raises(ArtefactError, match="it has no sha256"):
        restore(saved)


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04",
        b"PK\x03\x04" + bytes(100),
        (2**63).to_bytes(8, "little") + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a":null',
        b"{}",
    ],
    ids=["empty", "pickle", "zip", "huge", "large", "list", "null", "json"],
)
def test_what_is_no_safetensors_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT_NAME).write_bytes(content)
    with pytest.raises(ArtefactError, match=re.escape(str(tmp_path / CHECKPOINT_NAME))):
        restore(tmp_path)


def test_a_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (tmp_path / CHECKPOINT_NAME).write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        restore(tmp_path)
    torch.save({"parameter/linear.weight": torch.zeros(3, 4), "trap": Trap(trap)}, tmp_path / CHECKPOINT_NAME)
    with pytest.raises(ArtefactError, match="not a safetensors file"):
        restore(tmp_path)
    assert not trap.exists()


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_file({"linear.weight": torch.zeros(3, 4)}, tmp_path / CHECKPOINT_NAME)
    with pytest.raises(ArtefactError, match="is not a checkpoint of this program"):
        restore(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "-1"}, "-1 steps done"),
        ({"step": "seven"}, "damaged"),
        ({"settings": "{"}, "damaged"),
        ({"settings": "{}"}, "damaged"),
        ({"settings": "3"}, "damaged"),
        ({"failures": "[1]"}, "damaged"),
        ({"changes": "3"}, "damaged"),
        (
            {"tensors": {"exp_avg/linear.weight": None}},
            r"holds nothing for exp_avg/linear\.weight; the model expects \(3",
        ),
        ({"tensors": {"parameter/linear.bias": None}}, r"holds nothing for parameter/linear\.bias"),
        (
            {"tensors": {"parameter/linear.bias": torch.zeros(4)}},
            r"holds \(4,\) torch.float32 for parameter/linear.bias",
        ),
        ({"tensors": {"exp_avg_sq/linear.bias": torch.zeros(2)}}, r"holds \(2,\) .* for exp_avg_sq/linear\.bias"),
        ({"tensors": {"step/linear.bias": torch.zeros(3)}}, r"holds \(3,\) .* for step/linear\.bias"),
        ({"tensors": {"parameter/linear.bias": torch.zeros(3).int()}}, r"holds \(3,\) torch.int32 for"),
        ({"tensors": {"parameter/other": torch.zeros(3)}}, "tensors that the model lacks: parameter/other"),
        ({"tensors": {"parameter/linear.bias": torch.full((3,), torch.nan)}}, r"not finite in parameter/linear\.bias"),
        ({"tensors": {"exp_avg/linear.bias": torch.full((3,), torch.inf)}}, r"not finite in exp_avg/linear\.bias"),
    ],
    ids=str,
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(saved: Path, changes: Any, message: str) -> None:
    rewrite(saved, **changes)
    model, checkpoints = make(saved)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ArtefactError, match=message) as refusal:
        checkpoints.restore(SETTINGS, IDENTITY, total_steps=10, accept_changes=False)
    assert str(saved / CHECKPOINT_NAME) in str(refusal.value)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_a_checkpoint_of_a_wider_model_is_refused(saved: Path) -> None:
    with pytest.raises(ArtefactError, match=r"holds \(3, 4\) torch.float32 for parameter/linear.weight; .* \(5, 4\)"):
        restore(saved, width=5)


def test_what_was_recorded_after_a_checkpoint_is_dropped_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    kept = [
        {"kind": "start", "step": 0},
        {"kind": "unreadable", "name": "a.mp4", "reason": "broken"},
        {"kind": "train", "step": 10},
        {"kind": "validation", "step": 10},
    ]
    lost = [{"kind": "unreadable", "name": "b.mp4", "reason": "broken"}, {"kind": "train", "step": 20}]
    text = "".join(json.dumps(record) + "\n" for record in [*kept, *lost]) + '{"kind": "tra'
    (tmp_path / METRICS_NAME).write_text(text)
    rewind(tmp_path, step=15, failures={"a.mp4"}, validates_again=True)
    assert [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()] == kept


@pytest.mark.parametrize(("validates_again", "count"), [(True, 1), (False, 2)])
def test_a_validation_where_a_checkpoint_stands_is_dropped_only_if_it_is_repeated(
    validates_again: bool, count: int, tmp_path: Path
) -> None:
    records = [{"kind": "train", "step": 10}, {"kind": "validation", "step": 10}]
    (tmp_path / METRICS_NAME).write_text("".join(json.dumps(record) + "\n" for record in records))
    rewind(tmp_path, step=10, failures=(), validates_again=validates_again)
    assert [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()] == records[:count]


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    data = tmp_path / "clips"
    write_clips(data, classes=("left", "right"), clips_per_class=4, size=32, num_frames=8)
    return TrainConfig(
        data=data,
        backbone=save_trunk(tmp_path / "trunk", "dinov2"),
        out=tmp_path / "run",
        num_frames=4,
        size=16,
        epochs=3,
        batch_size=2,
        val_fraction=0.0,
        num_workers=0,
        device="cpu",
        precision="fp32",
        view_store_megabytes=0,
        tuning=STAdapter(width=8),
    )


def run(config: TrainConfig, **changes: Any) -> Path:
    return train(dataclasses.replace(config, **changes), console=Console(file=io.StringIO())).folder


@pytest.fixture
def stopped(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    """A run that was stopped after its fifth step, to be resumed."""
    original, calls = Meter.add, []

    def add(self: Meter, *args: Any) -> None:
        original(self, *args)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "add", add)
    with pytest.raises(KeyboardInterrupt):
        run(config, checkpoint_minutes=0)
    monkeypatch.undo()
    return dataclasses.replace(config, resume=True)


def test_changed_settings_are_named_and_must_be_accepted(stopped: TrainConfig) -> None:
    changed = dataclasses.replace(stopped, lr=0.001, epochs=4)
    told = r"epochs was 3, is 4; lr was 0\.002, is 0\.001\. Resume it as it was started, .* with --accept-changes"
    with pytest.raises(TrainingError, match=told):
        run(changed)
    with pytest.raises(TrainingError, match="views_per_clip was None, is 2"):
        run(stopped, views_per_clip=2)
    receipt = load_artefact(run(changed, accept_changes=True)).receipt
    assert receipt["changes"] == ["after step 4: epochs was 3, is 4", "after step 4: lr was 0.002, is 0.001"]
    assert (receipt["steps"], receipt["settings"]["lr"]) == (16, 0.001)


def test_a_setting_that_came_after_a_run_was_stopped_is_the_default_in_it(stopped: TrainConfig) -> None:
    folder = Path(stopped.out)
    progress, tensors = read_checkpoint(folder)
    del progress.settings["lr_clips"], progress.settings["tuning"]["first_blocks"]
    del progress.settings["augmentation"]["rand_augment"]
    metadata = {"step": str(progress.step), "format": "stadapter-checkpoint-2", "failures": "{}", "changes": "[]"}
    metadata["settings"] = json.dumps({"settings": progress.settings, "identity": progress.identity})
    write_tensors(folder / CHECKPOINT_NAME, tensors, metadata)
    with pytest.raises(TrainingError, match=r"tuning\.first_blocks was None, is 1\. A run cannot resume"):
        run(stopped, tuning=dataclasses.replace(stopped.tuning, first_blocks=1))  # type: ignore[type-var]  # strategies are dataclasses
    with pytest.raises(TrainingError, match="lr_clips was None, is 64"):
        run(stopped, lr_clips=64)
    run(stopped)


def test_the_time_of_a_resumed_run_is_that_of_all_its_parts(stopped: TrainConfig) -> None:
    records = read_records(Path(stopped.out))
    for record in records:
        record["time"] -= 3600 if record["kind"] == "start" else 0  # the first step took an hour
    write_records(Path(stopped.out), records)
    assert 3600 <= load_artefact(run(stopped)).receipt["seconds"] < 3660


def test_a_clip_that_was_added_is_noticed_and_can_be_accepted(stopped: TrainConfig) -> None:
    write_clips(Path(stopped.data), classes=("left",), clips_per_class=5, size=32, num_frames=8)
    with pytest.raises(TrainingError, match=r"data \(sha256\) was [0-9a-f]{12}…, is .* --accept-changes"):
        run(stopped)
    receipt = load_artefact(run(stopped, accept_changes=True)).receipt
    assert receipt["num_train_clips"] == 9
    assert receipt["changes"][0].startswith("after step 4: data (sha256) was ")


def test_clips_that_were_trained_on_are_not_held_out_after_others_came_and_went(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(config, val_fraction=0.25)
    before = prepare(config)
    stop_after(monkeypatch, steps=2)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    assert before.val_set is not None
    write_clips(Path(config.data), classes=("right",), clips_per_class=20, size=32, num_frames=8)
    before.val_set.entries[0].path.unlink()
    go_on = dataclasses.replace(config, resume=True, accept_changes=True)
    after = prepare(go_on)
    assert after.val_set is not None
    assert not before.train_set.shared_with(after.val_set)
    assert not set(before.val_set.entries) & set(after.train_set.entries)
    _, anew = read_splits(config.data, val_fraction=0.25)
    assert anew is not None
    assert before.train_set.shared_with(anew)  # of a new run
    receipt = load_artefact(run(go_on)).receipt
    assert receipt["held_out_up_to"] == before.held_out_up_to
    assert receipt["num_held_out_clips"] == len(after.val_set.entries)


def test_groups_stay_on_their_sides_when_a_run_goes_on_with_other_clips(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sorted(f"{path.parent.name}/{path.name},{path.parent.name}" for path in Path(config.data).glob("*/*.mp4"))
    listed = Path(config.data) / "list.csv"
    lines = ["path,label,group", *(f"{row},{i % 4}" for i, row in enumerate(rows))]
    listed.write_text("\n".join(lines))
    config = dataclasses.replace(config, data=listed, val_fraction=0.25)
    before = prepare(config)
    stop_after(monkeypatch, steps=1)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    listed.write_text("\n".join([lines[0], *lines[2:]]))
    after = prepare(dataclasses.replace(config, resume=True, accept_changes=True))
    assert before.val_set is not None
    assert after.val_set is not None
    assert after.held_out_up_to == before.held_out_up_to == find_held_out_up_to(before.val_set)
    assert not before.train_set.shared_with(after.val_set)
    assert not before.val_set.shared_with(after.train_set)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": STAdapter(width=4)}, r"another tuning \(other weights would be trained\): start a new run folder"),
        ({"tuning": LinearProbe()}, "another tuning"),
        ({"val_fraction": 0.3}, r"another val_fraction \(clips that were trained on would count as held out\)"),
        ({"epochs": 1, "batch_size": 4}, "has done 4 steps; these settings give only 2 in all"),
    ],
)
def test_what_would_not_fit_is_never_accepted(stopped: TrainConfig, changes: Any, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        run(stopped, accept_changes=True, **changes)


def test_other_classes_and_another_trunk_are_never_accepted(stopped: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"another backbone \(what was learned"):
        run(stopped, accept_changes=True, backbone=save_trunk(tmp_path / "other", "dinov2", seed=1))
    (Path(stopped.data) / "left").rename(Path(stopped.data) / "zleft")
    with pytest.raises(TrainingError, match="another labels"):
        run(stopped, accept_changes=True)


def test_what_changes_nothing_that_is_learned_may_change(stopped: TrainConfig) -> None:
    run(
        stopped,
        num_workers=1,
        checkpoint_minutes=1.0,
        max_bad_fraction=0.5,
        view_store_megabytes=10,
        gradient_checkpointing=True,
    )


def test_the_checkpoint_of_another_run_is_refused(stopped: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stolen = (Path(stopped.out) / CHECKPOINT_NAME).read_bytes()
    (tmp_path / "other" / CHECKPOINT_NAME).write_bytes(stolen)
    with pytest.raises(TrainingError, match="seed was 0, is 1"):
        run(stopped, out=tmp_path / "other", seed=1)


def test_a_damaged_checkpoint_is_refused_before_the_trunk_is_loaded(stopped: TrainConfig) -> None:
    os.truncate(Path(stopped.out) / CHECKPOINT_NAME, 1000)
    with pytest.raises(STAdapterError, match=f"{CHECKPOINT_NAME} is truncated"):
        run(stopped, backbone="no/such-trunk")
