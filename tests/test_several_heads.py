"""Verb and noun at once, from the annotations of EPIC-Kitchens-100 to a prediction, on real little videos."""

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import stadapter as st
from kitchens import EPIC, NOUNS, VERBS, write, write_kitchen
from lookup import ByLookup, knowing, shown
from stadapter.__main__ import main
from stadapter.artefact import load_artefact
from stadapter.clips import ClipConfig
from stadapter.comparison.child import figures
from stadapter.comparison.results import FinishedRun, write_result
from stadapter.comparison.summary import summarise
from stadapter.dataset import EvaluationClips
from stadapter.errors import ArtefactError, DataError, TrainingError
from stadapter.evaluation import evaluate
from stadapter.evaluation.figures import headline_figures
from stadapter.evaluation.tables import tables
from stadapter.manifest import Manifest, read_manifest, read_splits
from stadapter.predict import Prediction
from stadapter.training.schedule import balanced_order
from trainings import stop_after
from trunks import save_trunk


@pytest.fixture(scope="module")
def kitchens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the annotations; the pair (put, pan) is in the validation list only."""
    root = tmp_path_factory.mktemp("epic")
    folder = root / "epic-kitchens-100-annotations"
    seen = [("take", "plate"), ("put", "plate"), ("take", "door"), ("put", "door"), ("take", "pan")]
    train = write_kitchen(root / "P01" / "videos" / "P01_01.MP4", seen)
    train += write_kitchen(root / "P02" / "videos" / "P02_101.MP4", seen[::-1])
    val = write_kitchen(root / "P01" / "videos" / "P01_11.MP4", [*seen[:3], ("put", "pan")])
    write(folder / "EPIC_100_train.csv", EPIC + train)
    write(folder / "EPIC_100_validation.csv", EPIC + val)
    for kind, classes in {"verb": {0: "take", 10: "put"}, "noun": {2: "plate", 3: "door", 4: "pan"}}.items():
        rows = "".join(f'{number},{key},"[]",x\n' for number, key in classes.items())
        write(folder / f"EPIC_100_{kind}_classes.csv", "id,key,instances,category\n" + rows)
    return folder


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunk"), "dinov2")


def config(kitchens: Path, trunk: Path, out: Path, **changes: Any) -> st.TrainConfig:
    settings: dict[str, Any] = {
        "label_kind": "verb+noun",
        "tuning": st.STAdapter(width=8),
        "num_frames": 4,
        "size": 16,
        "epochs": 2,
        "batch_size": 4,
        "precision": "fp32",
        "device": "cpu",
        "num_workers": 0,
        **changes,
    }
    return st.TrainConfig(data=kitchens, backbone=trunk, out=out, **settings)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def run(kitchens: Path, trunk: Path, tmp_path_factory: pytest.TempPathFactory) -> st.TrainResult:
    return st.train(config(kitchens, trunk, tmp_path_factory.mktemp("run") / "kitchens"), console=quiet())


def test_every_clip_has_a_class_of_each_head_and_the_heads_all_classes_of_their_files(kitchens: Path) -> None:
    train, val = read_splits(kitchens, label_kind="verb+noun")
    assert val is not None
    assert train.label_space.heads == val.label_space.heads == {"verb": VERBS, "noun": NOUNS}
    assert [entry.by_head for entry in train.entries[:2]] == [
        (("verb", "take"), ("noun", "plate")),
        (("verb", "put"), ("noun", "plate")),
    ]
    assert [entry.label for entry in val.entries] == ["take plate", "put plate", "take door", "put pan"]
    assert train.counts() == {"verb: take": 6, "verb: put": 4, "noun: plate": 4, "noun: door": 4, "noun: pan": 2}
    dataset = EvaluationClips(val, ClipConfig(num_frames=2, size=16), labels=val.label_space)
    assert dataset.targets == [(0, 0), (1, 0), (0, 1), (1, 2)]
    assert train.hash() != read_splits(kitchens, label_kind="action")[0].hash()


def test_held_out_clips_show_no_combination_that_training_lacks(kitchens: Path) -> None:
    train, val = read_splits(kitchens / "EPIC_100_train.csv", label_kind="verb+noun", val_fraction=0.5)
    assert val is not None
    assert len(val.entries) == 5
    assert {entry.label for entry in val.entries} <= {entry.label for entry in train.entries}
    with pytest.raises(DataError, match="with only one video"):
        read_splits(kitchens / "EPIC_100_validation.csv", label_kind="verb+noun")


def test_balanced_epochs_have_every_combination_equally_often() -> None:
    targets = [(0, 0)] * 6 + [(0, 1)] * 1 + [(1, 1)] * 2
    order = balanced_order(targets, seed=0, epoch=0)
    assert sorted(targets[index % 9] for index in order) == [(0, 0)] * 3 + [(0, 1)] * 3 + [(1, 1)] * 3


def test_training_records_both_heads_and_leaves_an_artefact_that_names_both(run: st.TrainResult) -> None:
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    (last,) = [record for record in records if record["kind"] == "train"][-1:]
    assert last["accuracy"] <= min(last["verb_accuracy"], last["noun_accuracy"])
    spec = json.loads((run.folder / "stadapter.json").read_text())
    assert spec["labels"] == [{"name": "verb", "classes": list(VERBS)}, {"name": "noun", "classes": list(NOUNS)}]
    assert run.metrics.keys() == {
        f"{of}{name}" for of in ("", "verb_", "noun_") for name in ("top1", "top5", "mean_class_accuracy", "loss")
    }
    assert spec["receipt"]["metrics"] == run.metrics
    card = (run.folder / "README.md").read_text()
    for row in ("| action top-5 | ", "| verb top-1 | ", "| noun loss | "):
        assert row in card
    assert "verb top-5" not in card  # of two verbs
    model = load_artefact(run.folder).model
    assert model.label_space.heads == {"verb": VERBS, "noun": NOUNS}
    assert model.head.classifier.weight.shape == (5, 32)


def test_what_evaluation_says_of_an_artefact_is_what_training_said(
    run: st.TrainResult, kitchens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    flags = ["--data", str(kitchens), "--num-workers", "0", "--json", str(target)]  # label kind: as trained
    assert main(["evaluate", str(run.folder), *flags, "--report", str(tmp_path / "page.html")]) == 0
    printed, report = capsys.readouterr().out, json.loads(target.read_text())
    assert report["top1"] == run.metrics["top1"]
    assert report["heads"]["verb"]["top1"] == run.metrics["verb_top1"]
    assert report["heads"]["noun"]["confusion"] == [list(row) for row in run.report.heads["noun"].confusion]  # type: ignore[union-attr]
    for title in ("action top-5", "noun mean class accuracy", "By class, verb", "Does time matter for the noun?"):
        assert title in printed
    page = (tmp_path / "page.html").read_text()
    for title in ("2 verb and 3 noun classes", "For the action", "<h3>Noun</h3>", "noun top-1", "Accuracy, verb"):
        assert title in page
    with pytest.raises(
        DataError, match=r"clips have one label each; expected labels for verb and noun: .*--label-kind verb\+noun"
    ):
        evaluate(load_artefact(run.folder).model, read_manifest(kitchens), ClipConfig(num_frames=4, size=16))


def test_a_prediction_has_the_action_and_each_head(run: st.TrainResult, kitchens: Path) -> None:
    classifier = st.Classifier.load(run.folder)
    video = kitchens.parent / "P01" / "videos" / "P01_11.MP4"
    prediction = classifier.predict(video, start_seconds=0, end_seconds=0.9)
    verb, noun = prediction.heads["verb"], prediction.heads["noun"]
    assert prediction.label == f"{verb.label} {noun.label}"
    assert prediction.score == pytest.approx(verb.score * noun.score)
    assert len(prediction.scores) == classifier.num_scores == 6
    assert list(prediction.scores.values()) == sorted(prediction.scores.values(), reverse=True)
    for scores in (prediction.scores, verb.scores, noun.scores):
        assert sum(scores.values()) == pytest.approx(1)
    assert prediction.scores["put door"] == pytest.approx(verb.scores["put"] * noun.scores["door"])
    assert str(prediction).startswith(f"{video} [0 to 0.9 s]: {prediction.label} ")
    assert "; noun: " in str(prediction)
    (again,) = classifier.predict_many([video])
    assert isinstance(again, Prediction)
    assert again.heads.keys() == {"verb", "noun"}


def test_the_command_prints_heads_as_a_table_as_json_and_as_csv(
    run: st.TrainResult, kitchens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = str(kitchens.parent / "P01" / "videos" / "P01_11.MP4")
    command = ["predict", str(run.folder), video, "nowhere.mp4", "--top-k", "3", "--format"]
    assert main([*command, "table"]) == 0
    table = capsys.readouterr().out
    assert all(f" {column} " in table.splitlines()[1] for column in ("action", "verb", "noun"))
    assert main([*command, "json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert {name: len(head["scores"]) for name, head in first["heads"].items()} == {"verb": 2, "noun": 3}
    assert first["label"] == " ".join(head["label"] for head in first["heads"].values())
    assert len(first["scores"]) == 3
    assert second.keys() == {"video", "error"}
    assert main([*command, "csv"]) == 0
    row, failed = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["label_3"]
    assert row["verb_label"] == first["heads"]["verb"]["label"]
    assert float(row["noun_score_3"]) == pytest.approx(first["heads"]["noun"]["scores"][row["noun_label_3"]], abs=1e-6)
    assert "verb_label_3" not in row
    assert failed["error"]
    assert not failed["noun_label"]


def test_a_run_stopped_in_the_middle_resumes_to_the_same_weights(
    kitchens: Path, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"dropout": 0.3, "balance_classes": True, "val_data": kitchens / "EPIC_100_validation.csv"}
    whole = st.train(config(kitchens, trunk, tmp_path / "whole", **changes), console=quiet())
    halves = config(kitchens, trunk, tmp_path / "halves", **changes)
    stop_after(monkeypatch, steps=4)  # in the middle of the second epoch: 3 steps each
    with pytest.raises(KeyboardInterrupt):
        st.train(halves, console=quiet())
    monkeypatch.undo()
    other = config(kitchens, trunk, tmp_path / "halves", **changes, resume=True)
    with pytest.raises(TrainingError, match="labels was"):
        st.train(st.TrainConfig(**{**vars(other), "label_kind": "verb"}), console=quiet())
    st.train(other, console=quiet())
    first, second = (load_file(tmp_path / name / "stadapter.safetensors") for name in ("whole", "halves"))
    assert whole.metrics["verb_top1"] >= whole.metrics["top1"]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_compare_takes_the_action_as_what_is_right_and_keeps_the_figures_of_each_head(
    run: st.TrainResult, tmp_path: Path
) -> None:
    assert run.report is not None
    result = FinishedRun(
        strategy="st-adapter",
        name="default",
        about="",
        seed=0,
        budget={},
        identity={},
        config={},
        commit=None,
        versions={},
        hardware={},
        precision="fp32",
        size=32,
        trained_parameters=1,
        total_parameters=2,
        gmacs_per_view=0.1,
        artefact_bytes=3,
        peak_memory_bytes=None,
        peak_memory_of="process",
        steps=4,
        train_loss=1.0,
        clips_per_second=5.0,
        training_seconds=6.0,
        wall_seconds=7.0,
        interruptions=0,
        **figures(run.report),
    )
    assert (result.top1, result.heads["noun"]["top1"]) == (run.metrics["top1"], run.metrics["noun_top1"])
    assert sum(row.is_correct for row in result.predictions) / result.num_clips == run.metrics["top1"]
    assert result.predictions[3].label == "put pan"
    write_result(tmp_path / "st-adapter--default--seed0.json", result)
    comparison = summarise(tmp_path)
    assert comparison.rows[0].top1 == run.metrics["top1"]
    assert comparison.sentences == ("A clip is correct if its verb and its noun are; the result files have each.",)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([{"name": "verb", "classes": ["take"]}, {"name": "noun", "classes": ["pan", "door"]}], "no model that can be"),
        ([{"name": "verb"}, {"name": "noun"}], "lacks classes"),
        (
            [{"name": "verb", "classes": ["take", "put"]}, {"name": "noun", "classes": ["pan", "tap"]}],
            "head.classifier",
        ),
    ],
)
def test_an_artefact_with_damaged_heads_is_refused(
    labels: list[Any], message: str, run: st.TrainResult, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    spec = json.loads((folder / "stadapter.json").read_text()) | {"labels": labels}
    (folder / "stadapter.json").write_text(json.dumps(spec))
    with pytest.raises(ArtefactError, match=message):
        load_artefact(folder)


def test_the_doctor_counts_the_classes_of_each_head(kitchens: Path) -> None:
    report = st.check_data(kitchens, label_kind="verb+noun")
    assert report.could_train
    assert {count.label: (count.train, count.held_out) for count in report.per_class()} == {
        "noun: door": (4, 1),
        "noun: pan": (2, 1),
        "noun: plate": (4, 2),
        "verb: put": (4, 2),
        "verb: take": (6, 2),
    }
    assert report.to_json()["clips"][0]["classes"] == ["verb: take", "noun: plate"]
    few = next(finding for finding in report.findings if finding.kind == "few clips")
    assert "noun: pan: 2" in few.items


ANSWERS = [  # take, put | plate, door, pan
    [3.0, 0.0, 2.0, 0.0, 0.0],  # take plate: both right
    [0.0, 1.0, 0.0, 2.0, 0.0],  # put plate: verb right, noun door
    [0.0, 1.0, 0.0, 3.0, 0.0],  # take door: noun right, verb put
    [2.0, 0.0, 2.0, 0.0, -1.0],  # put pan: both wrong, and the least likely of the six
]


@pytest.fixture
def judged(kitchens: Path) -> tuple[ByLookup, Manifest]:
    manifest = read_manifest(kitchens, label_kind="verb+noun")
    return knowing(manifest, {"verb": VERBS, "noun": NOUNS}, ANSWERS), manifest


def test_figures_of_actions_equal_those_worked_out_by_hand(judged: tuple[ByLookup, Manifest]) -> None:
    report = evaluate(*judged, ClipConfig(num_frames=4, size=16), time_check=True)
    verb, noun = report.heads["verb"], report.heads["noun"]
    assert (report.top1, verb.top1, noun.top1) == (1 / 4, 2 / 4, 2 / 4)
    assert (report.top5, verb.top5, noun.top5) == (3 / 4, 1.0, 1.0)  # of six actions the fourth's is the last
    assert [p.predicted for p in report.predictions] == ["take plate", "put door", "put door", "take plate"]
    assert [p.is_correct for p in report.predictions] == [True, False, False, False]
    assert [p.is_correct for p in verb.predictions] == [True, True, False, False]
    assert [p.predicted for p in noun.predictions] == ["plate", "door", "door", "plate"]
    verbs, nouns = (torch.tensor(ANSWERS)[:, part].softmax(-1) for part in (slice(0, 2), slice(2, 5)))
    true = verbs[range(4), [0, 1, 0, 1]] * nouns[range(4), [0, 0, 1, 2]]
    assert [p.true_score for p in report.predictions] == pytest.approx(true.tolist())
    assert [p.score for p in report.predictions] == pytest.approx((verbs.amax(1) * nouns.amax(1)).tolist())
    assert report.loss == pytest.approx(float(-true.log().mean())) == pytest.approx(verb.loss + noun.loss)
    assert report.mean_class_accuracy == pytest.approx(1 / 4)  # of take plate, put plate, take door, put pan
    assert report.labels == ("take plate", "take door", "put plate", "put door", "put pan")
    assert verb.confusion == ((1, 1), (1, 1))
    assert noun.confusion == ((1, 1, 0), (0, 1, 0), (1, 0, 0))
    assert report.confusion == ()
    assert report.time_check is not None
    assert verb.time_check is not None
    assert (report.time_check.as_is, verb.time_check.as_is) == (1 / 4, 2 / 4)
    assert report.time_check.most_common == 1 / 4


def test_the_figures_of_a_head_are_those_of_a_classifier_with_it_alone(
    judged: tuple[ByLookup, Manifest],
) -> None:
    model, manifest = judged
    settings = ClipConfig(num_frames=4, size=16)
    nouns = read_manifest(manifest.entries[0].path.parents[2] / "epic-kitchens-100-annotations", label_kind="noun")
    alone = evaluate(knowing(nouns, NOUNS, [answer[2:] for answer in ANSWERS]), nouns, settings, time_check=True)
    assert evaluate(model, manifest, settings, time_check=True).heads["noun"].to_json() == alone.to_json()


def test_figures_are_named_after_their_head(judged: tuple[ByLookup, Manifest]) -> None:
    report = evaluate(*judged, ClipConfig(num_frames=4, size=16))
    assert [name for name, _, _ in headline_figures(report)] == [
        *(f"action {name}" for name in ("top-1", "top-5", "mean class accuracy")),  # of two verbs and three nouns six
        *(f"{head} {name}" for head in ("verb", "noun") for name in ("top-1", "mean class accuracy")),
    ]
    assert "Confusion, noun: rows true" in shown(tables(report))


def test_a_csv_may_have_a_column_for_each_head_in_any_order(
    kitchens: Path, run: st.TrainResult, tmp_path: Path
) -> None:
    video = kitchens.parent / "P01" / "videos" / "P01_11.MP4"
    rows = [f"{video},0,0.9,plate,take", f"{video},0.9,1.8,plate,put", f"{video},1.8,2.7,door,take"]
    manifest = read_manifest(write(tmp_path / "list.csv", "\n".join(["path,start,end,label:noun,label:verb", *rows])))
    assert manifest.label_space.heads == {"noun": ("door", "plate"), "verb": ("put", "take")}
    assert manifest.entries[0].by_head == (("noun", "plate"), ("verb", "take"))
    report = evaluate(load_artefact(run.folder).model, manifest, ClipConfig(num_frames=4, size=16))
    assert [prediction.label for prediction in report.predictions] == ["take plate", "put plate", "take door"]
    write(tmp_path / "list.csv", "\n".join(["path,start,end,label:hand,label:verb", *rows]))
    with pytest.raises(
        DataError,
        match="clips have labels for hand and verb; expected labels for verb and noun: columns label:verb,label",
    ):
        evaluate(load_artefact(run.folder).model, read_manifest(tmp_path / "list.csv"), ClipConfig(size=16))
    with pytest.raises(DataError, match=r"expected labels for hand and way: columns label:hand,label:way of a CSV$"):
        EvaluationClips(manifest, ClipConfig(size=16), labels={"hand": ["left", "right"], "way": ["in", "out"]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label:verb\na.mp4,take\n", "expected label on its own, or two or more heads"),
        ("path,label,label:verb,label:noun\na.mp4,x,take,door\n", "expected label on its own, or two or more heads"),
        ("path,label:verb,label:verb\na.mp4,take,door\n", "label:verb and label:verb both mean the label:verb"),
        ("path,label:verb,label:\na.mp4,take,door\n", "expected label on its own"),
        ("path,label:verb,label:noun\na.mp4,take,\n", "line 2: a.mp4 has no label"),
    ],
)
def test_columns_of_heads_that_make_no_sense_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_manifest(write(tmp_path / "list.csv", text))


def test_a_header_that_is_not_understood_is_one_problem(tmp_path: Path) -> None:
    problems: list[str] = []
    read_manifest(write(tmp_path / "list.csv", "name;kind\na.mp4;up\n"), on_problem=problems.append)
    assert ["unknown columns name;kind" in problem for problem in problems] == [True]


def test_columns_of_heads_may_be_written_with_capitals_and_blanks(kitchens: Path, tmp_path: Path) -> None:
    video = kitchens.parent / "P01" / "videos" / "P01_11.MP4"
    text = f"Path,Label:verb, LABEL : noun \n{video},take,plate\n"
    assert read_manifest(write(tmp_path / "list.csv", text)).entries[0].by_head == (("verb", "take"), ("noun", "plate"))
