"""Evaluation counts every readable clip once, names the others, and keeps rows (true) and columns (predicted) apart."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from lookup import CONFIG, ByLookup, knowing, shown
from stadapter import evaluation
from stadapter.clips import ClipConfig, load_clip
from stadapter.errors import DataError, DivergedError, SettingsError, STAdapterError
from stadapter.evaluation import evaluate
from stadapter.evaluation.figures import headline_figures, make_report
from stadapter.evaluation.tables import ConfusionTable, tables
from stadapter.evaluation.timecheck import Order
from stadapter.labels import LabelSpace
from stadapter.manifest import Manifest, read_manifest
from stadapter.model import build_model
from stadapter.scores import check_finite_scores, check_normalisation
from stadapter.synthetic import write_clips
from stadapter.token_cache import TokenCache
from stadapter.tuning import Full, LinearProbe, LoRA, STAdapter, Tuning, tuning_name
from stadapter.uncertainty import bootstrap_interval
from trunks import make_trunk


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """down 0, down 1, left 0, left 1, up 0, up 1"""
    write_clips(tmp_path, classes=("left", "up", "down"), clips_per_class=2, size=32, num_frames=8)
    return read_manifest(tmp_path)


LABELS = ("down", "left", "never", "up")
ANSWERS = [
    [4.0, 0.0, 0.0, 0.0],  # down: right
    [0.0, 0.0, 0.0, 4.0],  # down: taken for up
    [0.0, 4.0, 0.0, 0.0],  # left: right
    [0.0, 4.0, 0.0, 0.0],  # left: right
    [0.0, 0.0, 0.0, 4.0],  # up: right
    [0.0, 4.0, 0.0, 0.0],  # up: taken for left
]


def test_figures_equal_those_worked_out_by_hand(manifest: Manifest) -> None:
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG, batch_size=4)
    assert report.num_clips == 6
    assert report.top1 == pytest.approx(4 / 6)
    assert report.top5 == 1.0
    assert report.mean_class_accuracy == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    right, wrong = math.log(math.exp(4) + 3) - 4, math.log(math.exp(4) + 3)
    assert report.loss == pytest.approx((4 * right + 2 * wrong) / 6, rel=1e-5)
    assert report.confusion == ((1, 0, 0, 1), (0, 2, 0, 0), (0, 0, 0, 0), (0, 1, 0, 1))
    by_class = {result.label: (result.num_clips, result.accuracy, result.precision) for result in report.per_class}
    assert by_class["down"] == (2, 0.5, 1.0)
    assert by_class["left"] == (2, 1.0, pytest.approx(2 / 3))
    assert by_class["never"] == (0, None, None)
    assert by_class["up"] == (2, 0.5, 0.5)


def test_the_random_state_is_left_alone(manifest: Manifest) -> None:
    before = torch.get_rng_state()
    evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_clip_has_its_prediction_in_the_order_of_the_data(manifest: Manifest) -> None:
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG, batch_size=4)
    assert [prediction.name for prediction in report.predictions] == [entry.name for entry in manifest.entries]
    assert [prediction.label for prediction in report.predictions] == [
        "down",
        "down",
        "left",
        "left",
        "up",
        "up",
    ]
    assert [p.predicted for p in report.predictions] == ["down", "up", "left", "left", "up", "left"]
    assert report.predictions[0].score == pytest.approx(math.exp(4) / (math.exp(4) + 3))


def test_every_clip_says_whether_it_was_right_and_the_score_of_its_class(manifest: Manifest) -> None:
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG)
    assert [prediction.is_correct for prediction in report.predictions] == [True, False, True, True, True, False]
    first, second = report.predictions[:2]
    assert first.true_score == first.score
    assert second.true_score == pytest.approx(1 / (math.exp(4) + 3))


def test_scores_are_not_turned_into_python_numbers(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 clips of 400 classes would be 256 MB of them, and more for EPIC-Kitchens' actions."""
    sizes: list[int] = []
    tolist = Tensor.tolist

    def noted(tensor: Tensor) -> object:
        sizes.append(tensor.numel())
        return tolist(tensor)

    monkeypatch.setattr(Tensor, "tolist", noted)
    evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG)
    assert 0 < max(sizes) < len(manifest.entries) * len(LABELS)


def test_intervals_hold_their_figures_and_are_the_same_every_time(manifest: Manifest) -> None:
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG)
    for _, value, interval in headline_figures(report):
        assert 0 <= interval.low <= value <= interval.high <= 1
    assert report.top1_interval == bootstrap_interval([1, 0, 1, 1, 1, 0])
    assert report.mean_class_accuracy_interval == bootstrap_interval([1, 0, 1, 1, 1, 0], groups=[0, 0, 1, 1, 3, 3])
    assert report.top5_interval.high == 1
    assert report.top5_interval.low == pytest.approx(0.025 ** (1 / 6))  # all are right: not certainty
    few = dataclasses.replace(manifest, entries=manifest.entries[:5])  # classes of two, two and one
    report = evaluate(knowing(manifest, LABELS, ANSWERS), few, CONFIG)
    assert report.mean_class_accuracy_interval == bootstrap_interval([1, 0, 1, 1, 1], groups=[0, 0, 1, 1, 3])
    assert report.mean_class_accuracy_interval != report.top1_interval


def test_calibration_error_is_the_gap_between_score_and_accuracy(manifest: Manifest) -> None:
    """All six have the same score, so they are in one bin: the gap is |score - 4/6|."""
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG)
    score = math.exp(4) / (math.exp(4) + 3)
    assert report.calibration_error == pytest.approx(score - 4 / 6, abs=1e-6)
    assert report.mean_score == pytest.approx(score)


def test_calibration_is_measured_in_fifteen_bins(manifest: Manifest) -> None:
    """With ten bins, scores of 0.61 and 0.68 would be in one, and their errors would cancel each other in part."""
    answers = [[math.log(score), math.log(1 - score), -99.0] for score in (0.61, 0.68)]  # the first is right
    two = dataclasses.replace(manifest, entries=(manifest.entries[0], manifest.entries[2]))
    report = evaluate(knowing(two, ("down", "left", "up"), answers), two, CONFIG)
    assert report.calibration_error == pytest.approx((1 - 0.61 + 0.68) / 2, abs=1e-6)


def test_a_score_a_hair_above_1_is_no_reason_to_read_all_as_logits(manifest: Manifest) -> None:
    """So an average of softmaxes may come out."""
    space = LabelSpace.of(("down", "left", "up"))
    targets = torch.tensor([[0], [0], [1], [1], [2], [2]])
    scores = torch.tensor([[1.0, 0.0, 0.0]] * 6)
    for score in (1.0, 1.0000001):
        scores[0, 0] = score
        named: dict[Order, Tensor] = {"as_is": space.named(scores)}
        report = make_report(space, manifest.entries, scores=scores, targets=targets, named=named, failures=())
        assert report.calibration_error == pytest.approx(4 / 6)


def test_a_class_that_is_given_no_chance_at_all_leaves_a_finite_loss(manifest: Manifest) -> None:
    space = LabelSpace.of(("down", "left", "up"))
    scores = torch.tensor([[0.0, 0.0, 1.0]] * 6)
    named: dict[Order, Tensor] = {"as_is": space.named(scores)}
    targets = torch.tensor([[0], [0], [1], [1], [2], [2]])
    report = make_report(space, manifest.entries, scores=scores, targets=targets, named=named, failures=())
    assert report.loss == pytest.approx(-4 / 6 * math.log(torch.finfo(torch.float32).tiny))


class SeesOrder(nn.Module):
    """Names up a clip whose brightest half comes late, down otherwise, and is sure of it."""

    labels = ("down", "up")

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(100.0))
        self.seen: list[Tensor] = []

    def normalise(self, clips: Tensor) -> Tensor:
        return clips.float() / 255

    def forward(self, clips: Tensor) -> Tensor:
        self.seen.append(clips)
        top = clips[..., :8, :].mean((2, 3, 4))  # (B, T): the square is there at the start of down and the end of up
        rise = (top[:, -1] - top[:, 0]) * self.scale
        return torch.stack([-rise, rise], 1)


@pytest.fixture
def up_and_down(tmp_path: Path) -> Manifest:
    write_clips(tmp_path / "vertical", classes=("up", "down"), clips_per_class=6, size=32, num_frames=8)
    return read_manifest(tmp_path / "vertical")


def test_the_time_check_reads_the_same_clips_in_four_orders(up_and_down: Manifest) -> None:
    model = SeesOrder()
    config = ClipConfig(num_frames=4, size=16, num_temporal_views=2)
    report = evaluate(model, up_and_down, config, batch_size=12, time_check=True)
    check = report.time_check
    assert check is not None
    assert (check.num_clips, report.top1) == (12, 1.0)
    assert (check.as_is, check.reversed) == (1.0, 0.0)
    assert check.predicted["as_is"] == tuple(prediction.predicted for prediction in report.predictions)
    assert check.single_frame == 0.5  # no rise at all: always down
    assert check.verdict().startswith("Time matters: ")
    assert len(model.seen) == 8  # two halves of the views, each in all orders
    as_is, shuffled, backwards, single = model.seen[:4]
    assert torch.equal(backwards, as_is.flip(1))
    assert torch.equal(single, as_is[:, [2, 2, 2, 2]])
    assert torch.equal(shuffled.sort(1).values, as_is.sort(1).values)
    assert not any(torch.equal(one, other) for one, other in zip(shuffled, as_is, strict=True))


def test_clips_are_shuffled_alike_in_batches_of_any_size(up_and_down: Manifest) -> None:
    checks = [
        evaluate(SeesOrder(), up_and_down, CONFIG, batch_size=batch_size, time_check=True).time_check
        for batch_size in (1, 3, 8)
    ]
    assert checks[0] == checks[1] == checks[2]


def test_clips_of_one_frame_have_no_time_check(manifest: Manifest) -> None:
    config = ClipConfig(num_frames=1, size=16)
    keys = [load_clip(entry.path, config).float().div(255).mean().item() for entry in manifest.entries]
    model = ByLookup(LABELS, dict(zip(keys, ANSWERS, strict=True)))
    assert evaluate(model, manifest, config, time_check=True).time_check is None


def test_the_time_check_changes_no_other_figure(up_and_down: Manifest) -> None:
    with_check = evaluate(SeesOrder(), up_and_down, CONFIG, time_check=True)
    assert dataclasses.replace(with_check, time_check=None) == evaluate(SeesOrder(), up_and_down, CONFIG)


def test_top_5_looks_at_five_classes_only(manifest: Manifest) -> None:
    labels = ("down", "left", "up", "a", "b", "c", "d")
    ranking = [4.0, 9.0, 5.0, 8.0, 7.0, 6.0, 3.0]  # up is the fifth, down the sixth
    report = evaluate(knowing(manifest, labels, [ranking] * 6), manifest, CONFIG)
    assert report.top1 == pytest.approx(2 / 6)
    assert report.top5 == pytest.approx(4 / 6)
    for count, is_told in ((6, True), (5, False)):  # of five it is always right
        figures = headline_figures(dataclasses.replace(report, labels=labels[:count]))
        assert ("top-5" in [name for name, _, _ in figures]) == is_told


def test_views_are_flattened_into_batches_and_averaged_after_softmax(manifest: Manifest) -> None:
    class ByPlace(ByLookup):
        def forward(self, clips: Tensor) -> Tensor:
            self.shapes.append(clips.shape)
            return torch.stack([clips.mean((1, 2, 3, 4)) * 40, clips[:, :, 0].mean((1, 2, 3)) * 40], 1) * self.scale

    config = ClipConfig(num_frames=4, size=16, num_temporal_views=2, num_spatial_views=3)
    kept = Manifest(manifest.entries[:3], ("down", "left"))
    model = ByPlace(("down", "left"), {})
    report = evaluate(model, kept, config, batch_size=4)
    assert sum(shape[0] for shape in model.shapes) == 3 * 6
    assert all(shape[0] <= 4 and shape[1:] == (4, 3, 16, 16) for shape in model.shapes)
    for entry, prediction in zip(kept.entries, report.predictions, strict=True):
        views = model.normalise(load_clip(entry.path, config))
        expected = model(views).softmax(-1).mean(0).max()
        assert prediction.score == pytest.approx(expected.item(), rel=1e-5)


def test_the_batch_size_and_workers_change_nothing(manifest: Manifest) -> None:
    one = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG, batch_size=1)
    assert evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG, batch_size=5, num_workers=2) == one


def test_the_model_runs_in_eval_mode_and_gets_its_modes_back(manifest: Manifest) -> None:
    model = knowing(manifest, LABELS, ANSWERS)
    model.add_module("frozen", nn.Dropout().eval())
    model.train()
    model.get_submodule("frozen").eval()
    evaluate(model, manifest, CONFIG)
    assert not any(model.was_training)
    assert model.training
    assert not model.get_submodule("frozen").training


@pytest.mark.parametrize("tuning", [STAdapter(width=8), LinearProbe(), LoRA(rank=2), Full()], ids=tuning_name)
def test_a_model_of_half_precision_is_evaluated_in_it(manifest: Manifest, tuning: Tuning) -> None:
    model = build_model(backbone=make_trunk("dinov2"), labels=LABELS, tuning=tuning)
    exact = evaluate(model, manifest, CONFIG, time_check=True)
    model.cast_trunk(torch.bfloat16)
    rounded = evaluate(model, manifest, CONFIG, time_check=True)
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=0.05)


def test_clips_normalised_for_another_trunk_are_refused(manifest: Manifest) -> None:
    model = build_model(backbone=make_trunk("vit"), labels=LABELS, tuning=LinearProbe())
    with pytest.raises(SettingsError, match=r"^mean \(0\.48.* expected \(0\.5, 0\.4, 0\.3\), which the trunk"):
        evaluate(model, manifest, dataclasses.replace(CONFIG, resize="released"))
    info = model.trunk.info
    own = dataclasses.replace(CONFIG, resize="released", mean=info.mean, std=info.std)
    assert evaluate(model, manifest, own).num_clips == len(manifest.entries)
    for name in ("mean", "std"):
        first, *others = getattr(own, name)
        check_normalisation(model, dataclasses.replace(own, **{name: (first + 1e-7, *others)}))  # as when written out
        with pytest.raises(SettingsError, match=f"^{name} "):
            check_normalisation(model, dataclasses.replace(own, **{name: (first + 1e-3, *others)}))


def test_unreadable_clips_are_counted_named_and_left_out_of_the_accuracies(manifest: Manifest) -> None:
    model = knowing(manifest, LABELS, ANSWERS)
    manifest.entries[1].path.write_bytes(b"this is no video")
    manifest.entries[5].path.unlink()
    report = evaluate(model, manifest, CONFIG, batch_size=2)
    assert report.num_clips == len(report.predictions) == 4
    assert report.top1 == 1.0
    assert [failure.name for failure in report.failures] == ["down/down_01.mp4", "up/up_01.mp4"]
    lines = shown(tables(report)).splitlines()
    assert sum(line.startswith("could not be read: ") for line in lines) == 2
    assert "down_01.mp4" in shown(tables(report))


def test_segments_of_one_video_are_shuffled_each_in_its_own_order(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = manifest.entries[0]
    halves = [dataclasses.replace(first, end_seconds=0.4), dataclasses.replace(first, start_seconds=0.4)]
    named: list[str] = []
    original = evaluation.frame_places

    def frame_places(order: Order, num_frames: int, names: Sequence[str]) -> Tensor:
        named.extend(names)
        return original(order, num_frames, names)

    monkeypatch.setattr(evaluation, "frame_places", frame_places)
    segments = dataclasses.replace(manifest, entries=(*halves, *manifest.entries[1:]))
    evaluate(knowing(manifest, LABELS, ANSWERS), segments, CONFIG, time_check=True)
    assert {"down/down_00.mp4 [0 to 0.4 s]", "down/down_00.mp4 [0.4 to end]"} <= set(named)


def test_an_unreadable_segment_is_told_as_a_prediction_is(manifest: Manifest) -> None:
    first, *others = manifest.entries
    beyond = dataclasses.replace(first, start_seconds=90.0, end_seconds=92.5)
    report = evaluate(
        knowing(manifest, LABELS, ANSWERS), dataclasses.replace(manifest, entries=(beyond, *others)), CONFIG
    )
    assert [failure.title for failure in report.failures] == ["down/down_00.mp4 [90 to 92.5 s]"]
    failure = report.to_json()["failures"][0]
    assert (failure["name"], failure["start_seconds"], failure["end_seconds"]) == ("down/down_00.mp4", 90.0, 92.5)


def test_of_many_unreadable_clips_the_first_are_told_and_how_many_more_there_are(manifest: Manifest) -> None:
    first, *others = manifest.entries
    beyond = [dataclasses.replace(first, start_seconds=90.0 + n, end_seconds=99.0) for n in range(7)]
    some = dataclasses.replace(manifest, entries=(*beyond, *others))
    lines = shown(tables(evaluate(knowing(manifest, LABELS, ANSWERS), some, CONFIG))).splitlines()
    assert sum(line.startswith("could not be read: ") for line in lines) == 5
    assert "and 2 more" in [line.strip() for line in lines]


def test_a_batch_of_unreadable_clips_is_passed_over(manifest: Manifest) -> None:
    model = knowing(manifest, LABELS, ANSWERS)
    manifest.entries[0].path.write_bytes(b"this is no video")
    report = evaluate(model, manifest, CONFIG, batch_size=1)
    assert (report.num_clips, len(report.failures)) == (5, 1)


def test_data_of_which_nothing_can_be_read_is_an_error(manifest: Manifest) -> None:
    model = knowing(manifest, LABELS, ANSWERS)
    for entry in manifest.entries:
        entry.path.write_bytes(b"this is no video")
    with pytest.raises(DataError, match=r"none of 6 clips could be read, first down/down_00.mp4: "):
        evaluate(model, manifest, CONFIG)


def test_labels_that_the_model_does_not_know_are_named(manifest: Manifest) -> None:
    with pytest.raises(DataError, match="1 class of the data missing from the labels: up; expected some of down"):
        evaluate(knowing(manifest, ("down", "left"), ANSWERS), manifest, CONFIG)


def test_scores_that_are_no_numbers_are_an_error(manifest: Manifest) -> None:
    answers = [*ANSWERS[:5], [math.nan, 0.0, 0.0, 0.0]]
    with pytest.raises(STAdapterError, match=r"^up/up_01\.mp4: the scores are not finite numbers"):
        evaluate(knowing(manifest, LABELS, answers), manifest, CONFIG)


def test_one_score_that_is_no_number_is_an_error_beside_others_that_are() -> None:
    scores = torch.tensor([[0.3, 0.7, 1.0], [0.5, 0.5, math.nan]])  # of two heads, and the second has diverged
    with pytest.raises(DivergedError, match=r"^b\.mp4: the scores are not finite numbers"):
        check_finite_scores(scores, ["a.mp4", "b.mp4"])


@pytest.mark.parametrize(
    ("settings", "message"), [({"batch_size": 0}, "batch_size 0: .* 1"), ({"num_workers": -1}, "num_workers -1: .* 0")]
)
def test_a_setting_without_meaning_is_refused(manifest: Manifest, settings: dict[str, int], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG, **settings)  # type: ignore[arg-type]


def test_progress_counts_every_clip(manifest: Manifest) -> None:
    model = knowing(manifest, LABELS, ANSWERS)
    manifest.entries[0].path.write_bytes(b"this is no video")
    seen: list[tuple[int, int]] = []
    evaluate(model, manifest, CONFIG, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (6, 6)]


def test_tokens_of_a_model_without_frozen_blocks_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    model = build_model(backbone=make_trunk("dinov2"), labels=manifest.labels, tuning=STAdapter(width=8))
    cache = TokenCache(tmp_path, scope={}, max_bytes=1000)
    with pytest.raises(SettingsError, match="whose first blocks are frozen"):
        evaluate(model, manifest, ClipConfig(num_frames=2, size=16), tokens=cache)


def test_what_is_no_network_or_no_manifest_is_refused(manifest: Manifest) -> None:
    model = knowing(manifest, LABELS, ANSWERS)
    with pytest.raises(SettingsError, match=r"'runs/a': expected a network such as classifier\.model"):
        evaluate("runs/a", manifest, CONFIG)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="'clips': expected what read_manifest returns"):
        evaluate(model, "clips", CONFIG)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="None: expected a ClipConfig, such as classifier"):
        evaluate(model, manifest, None)  # type: ignore[arg-type]


def test_a_confusion_matrix_of_thousands_of_classes_is_left_out_of_json(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG)
    monkeypatch.setattr("stadapter.evaluation.figures._MOST_CONFUSED", len(LABELS) - 1)
    assert report.confusion
    assert report.to_json()["confusion"] == []


def test_the_report_survives_json(manifest: Manifest) -> None:
    model = knowing(manifest, LABELS, ANSWERS)
    manifest.entries[0].path.write_bytes(b"this is no video")
    report = evaluate(model, manifest, CONFIG, time_check=True).to_json()
    assert json.loads(json.dumps(report)) == report
    assert report["confusion"][0] == [0, 0, 0, 1]
    assert report["per_class"][2]["accuracy"] is None
    assert report["failures"][0].keys() == {"name", "start_seconds", "end_seconds", "error"}
    assert (report["failures"][0]["name"], report["failures"][0]["start_seconds"]) == ("down/down_00.mp4", None)
    assert report["top1_interval"].keys() == {"low", "high"}
    assert (report["confidence"], report["num_resamples"], report["num_calibration_bins"]) == (0.95, 2000, 15)
    assert set(report["time_check"]) >= {"as_is", "shuffled", "reversed", "single_frame", "num_clips", "sentence"}
    assert len(report["time_check"]["predicted"]["shuffled"]) == report["num_clips"]


def test_tables_show_the_time_check_and_its_verdict(up_and_down: Manifest) -> None:
    text = shown(tables(evaluate(SeesOrder(), up_and_down, CONFIG, time_check=True)))
    assert "Does time matter?" in text
    assert "Time matters: " in text
    rows = [line.split("│") for line in text.splitlines() if "played backwards " in line]
    assert [row[2].strip() for row in rows if len(row) > 3] == ["0.0 %"]
    assert "Does time matter?" not in shown(tables(evaluate(SeesOrder(), up_and_down, CONFIG)))


def test_tables_show_the_figures_with_rows_true(manifest: Manifest) -> None:
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG)
    text = shown(tables(report))
    assert "66.7 %" in text
    matrix = shown(ConfusionTable(report)).splitlines()
    down = next(line for line in matrix if line.startswith("│ down"))
    assert [cell.strip() for cell in down.split("│")[1:-1]] == ["down", "1", "·", "·", "1"]
    by_class = [line for line in text.splitlines() if "up (1)" in line]
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in by_class] == [
        ["down", "2", "50.0 %", "100.0 %", "up (1)"]
    ]


def test_class_names_in_brackets_are_shown_as_they_are(manifest: Manifest) -> None:
    entries = manifest.entries
    renamed = Manifest(entries[:1], ("down",))
    report = evaluate(knowing(renamed, ("down", "[bold]x"), [[0.0, 3.0]]), renamed, CONFIG)
    assert shown(tables(report)).count("[bold]x") >= 3


def test_many_classes_show_the_largest_errors_instead_of_a_matrix(manifest: Manifest) -> None:
    labels = ("down", "left", "up", *(f"class {i}" for i in range(30)))
    answers = [[float(position == 2) for position in range(33)]] * 6  # always up
    report = evaluate(knowing(manifest, labels, answers), manifest, CONFIG)
    assert len(report.confusion) == 33
    text = shown(ConfusionTable(report))
    assert "Largest errors, 2 of 2" in text
    assert "class 1" not in text


def test_of_many_classes_those_with_the_lowest_accuracy_are_listed(manifest: Manifest) -> None:
    labels = ("down", "left", "up", *(f"class {i}" for i in range(60)))
    answers = [[float(position == 0) for position in range(63)]] * 6  # always down
    text = shown(tables(evaluate(knowing(manifest, labels, answers), manifest, CONFIG)))
    assert "By class: the 60 of 63 with the lowest accuracy; all are in report.html and --json" in text
    rows = [line.split("│")[1].strip() for line in text.splitlines() if line.count("│") == 6]
    assert rows == ["left", "up", "down", *(f"class {i}" for i in range(57))]  # those without clips come last


def test_a_matrix_that_is_too_wide_gives_way_to_the_largest_errors(manifest: Manifest) -> None:
    report = evaluate(knowing(manifest, LABELS, ANSWERS), manifest, CONFIG)
    for width, title in ((120, "Confusion: rows true, columns predicted"), (18, "Largest errors, ")):
        out = StringIO()
        Console(file=out, width=width).print(ConfusionTable(report))
        assert out.getvalue().startswith(title)


TWO_PROCESSES = """
import json, sys
import torch
from accelerate import Accelerator
from stadapter.clips import ClipConfig
from stadapter.evaluation import evaluate
from stadapter.manifest import read_manifest

class Mean(torch.nn.Module):
    labels = ("down", "left", "up")
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([50.0, 0.0, -50.0]))
    def normalise(self, clips):
        return clips.float() / 255
    def forward(self, clips):
        return (clips.mean((1, 2, 3, 4)) - 0.4)[:, None] * self.weight

shared = Accelerator(cpu=True) if sys.argv[2] == "shared" else None
config = ClipConfig(num_frames=4, size=16)
report = evaluate(Mean(), read_manifest(sys.argv[1]), config, batch_size=2, accelerator=shared, time_check=True)
if shared is None or shared.process_index == 1:
    assert shared is None or shared.num_processes == 2
    print("REPORT" + json.dumps(report.to_json()))
"""


def test_two_processes_share_the_clips_and_count_each_once(manifest: Manifest, tmp_path: Path) -> None:
    manifest.entries[3].path.write_bytes(b"this is no video")
    script = tmp_path / "two_processes.py"
    script.write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    reports = []
    for command in ([sys.executable, script, tmp_path, "alone"], [*launch, script, tmp_path, "shared"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("REPORT")]
        assert len(lines) == 1
        reports.append(json.loads(lines[0].removeprefix("REPORT")))
    assert reports[0]["num_clips"] == 5
    assert reports[1] == reports[0]
