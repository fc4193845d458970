"""report.html holds what it should, nothing that it should not, and reads well in a real browser."""

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Browser
from stadapter.artefact import read_spec, save_artefact
from stadapter.clips import ClipConfig, load_frames
from stadapter.errors import ArtefactError
from stadapter.evaluation.figures import ClassResult, ClipFailure, ClipPrediction, Report
from stadapter.evaluation.timecheck import ORDER_NAMES, Order, make_time_check
from stadapter.manifest import Entry, Manifest, read_manifest
from stadapter.model import build_model
from stadapter.report import write_report
from stadapter.report.charts import class_bars, heat_map
from stadapter.report.curves import read_curves, round_numbers
from stadapter.report.filmstrips import make_filmstrip, make_filmstrips
from stadapter.sampling import uniform_indices
from stadapter.synthetic import write_clips, write_video
from stadapter.tuning import STAdapter
from stadapter.uncertainty import Interval, bootstrap_interval
from stadapter.video import read_frames
from trunks import make_trunk

CONFIG = ClipConfig(num_frames=4, size=16)
HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "two\nlines\tand\x00nothing",
    "שלום {{ 7 * 7 }} עולם",
    "long" * 100,
    "caf\udce9 \u202egpj.exe",
)


def made_report(
    names: Sequence[str], labels: Sequence[str], predicted: Sequence[str], *, classes: Sequence[str] = ()
) -> Report:
    """A report on clips of these names, true and predicted classes; every third score is lower."""
    classes = tuple(classes or dict.fromkeys(labels))
    place = {label: position for position, label in enumerate(classes)}
    confusion = [[0] * len(classes) for _ in classes]
    for true, named in zip(labels, predicted, strict=True):
        confusion[place[true]][place[named]] += 1
    predictions = [
        ClipPrediction(name, None, None, true, named, score, score if true == named else 1 - score, true == named)
        for number, (name, true, named) in enumerate(zip(names, labels, predicted, strict=True))
        for score in [0.9 - 0.1 * (number % 3)]
    ]
    right = [prediction.is_correct for prediction in predictions]
    orders: dict[Order, Sequence[str]] = dict.fromkeys(ORDER_NAMES, predicted)
    return Report(
        labels=classes,
        num_clips=len(names),
        top1=sum(right) / len(right),
        top1_interval=bootstrap_interval(right),
        top5=1.0,
        top5_interval=bootstrap_interval([1] * len(right)),
        mean_class_accuracy=sum(right) / len(right),
        mean_class_accuracy_interval=bootstrap_interval(right),
        loss=0.5,
        calibration_error=0.1,
        mean_score=0.8,
        per_class=tuple(
            ClassResult(label, sum(row), row[position] / sum(row) if sum(row) else None, None)
            for position, (label, row) in enumerate(zip(classes, confusion, strict=True))
        ),
        confusion=tuple(tuple(row) for row in confusion),
        predictions=tuple(predictions),
        failures=(),
        time_check=make_time_check(labels, orders),
    )


def report_on(manifest: Manifest, *, wrong: Sequence[int] = ()) -> Report:
    """All clips named right but those at some positions, which get the next class."""
    labels = [entry.label or "" for entry in manifest.entries]
    classes = manifest.labels
    after = dict(zip(classes, classes[1:] + classes[:1], strict=True))
    predicted = [after[label] if number in wrong else label for number, label in enumerate(labels)]
    return made_report([entry.name for entry in manifest.entries], labels, predicted, classes=classes)


def many(num_classes: int, clips_per_class: int) -> Report:
    classes = [f"class {number:03d}" for number in range(num_classes)]
    labels = [label for label in classes for _ in range(clips_per_class)]
    predicted = [
        classes[(number * number) % num_classes] if number % 3 else label for number, label in enumerate(labels)
    ]
    return made_report([f"{number}.mp4" for number in range(len(labels))], labels, predicted)


def write_metrics(folder: Path, *records: dict[str, object]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def step(number: int, loss: float, **more: float) -> dict[str, object]:
    return {"kind": "train", "step": number, "loss": loss, "accuracy": 0.5, "lr": 1e-3, **more}


@pytest.fixture
def clips(tmp_path: Path) -> Manifest:
    """down 0 to 3, up 0 to 3: 64 x 64, 16 frames"""
    write_clips(tmp_path / "clips", classes=("up", "down"), clips_per_class=4)
    return read_manifest(tmp_path / "clips")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a receipt and 60 logged steps."""
    folder = tmp_path_factory.mktemp("gestures")
    model = build_model(backbone=make_trunk("dinov2"), labels=["down", "up"], tuning=STAdapter(width=8))
    receipt = {
        "command": "stadapter train --data 'my clips' --out gestures",
        "settings": {"data": "my clips", "seed": 7},
        "data_sha256": "ab" * 32,
        "num_train_clips": 12,
        "steps": 600,
        "seconds": 471.3,
        "hardware": "cpu (2 cores, 1 threads)",
        "versions": {"stadapter": "0.1.0", "torch": "2.13.0"},
        "unreadable": {"left/broken.mp4": "moov atom not found"},
        "changes": ["after step 100: lr was 0.002, is 0.001"],
    }
    save_artefact(folder, model, CONFIG, receipt=receipt)
    write_metrics(
        folder,
        {"kind": "start", "step": 0},
        *(step(10 * number, 3 / number) for number in range(1, 61)),
        {"kind": "validation", "step": 600, "top1": 0.75, "loss": 0.6},
    )
    return folder


class Page(HTMLParser):
    """What a page is made of: its elements with their attributes, and its text outside of style."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in ("bdi", "b", "span", "code"):
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())

    def count(self, tag: str, **attributes: str) -> int:
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}.items()
        return sum(found == tag and wanted <= given.items() for found, given in self.elements)


def written(path: Path, report: Report | None, run: Path, manifest: Manifest | None = None) -> Page:
    return Page(write_report(path, report, run=run, manifest=manifest, clip_config=CONFIG).read_text(encoding="utf-8"))


def test_thousands_of_unreadable_clips_do_not_fill_the_page(trained: Path, clips: Manifest, tmp_path: Path) -> None:
    failures = tuple(ClipFailure(f"up/{number:05d}.mp4", None, None, "gone") for number in range(5000))
    report = dataclasses.replace(report_on(clips, wrong=[]), failures=failures)
    page = written(tmp_path / "page.html", report, trained, clips)
    assert "up/00099.mp4 evaluation gone" in page.text
    assert "up/00100.mp4" not in page.text
    assert "And 4901 clips more: stadapter.json in the run folder has all" in page.text  # one is from the training


def test_the_page_tells_the_figures_and_the_receipt(trained: Path, clips: Manifest, tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", report_on(clips, wrong=[1, 6]), trained, clips)
    for told in (
        "top-1 75.0 %",
        "6 of 8 clips correct",
        f"2 classes, st-adapter on tiny-dinov2: {read_spec(trained)['parameters']['summary']}.",
        "Does time matter?",
        "Cannot tell",
        "3 of 4 clips, 1 mistaken for up",
        "stadapter train --data 'my clips' --out gestures",
        "ab" * 32,
        "seed 7",
        "optimizer steps 600",
        "clips trained on 11 of 12: the others could not be read",
        "changed along the way after step 100: lr was 0.002, is 0.001",
        "7.9 min",
        "stadapter 0.1.0, torch 2.13.0",
        "cpu (2 cores, 1 threads)",
        "left/broken.mp4 training moov atom not found",
        clips.hash(),
        "4 frames of 16 x 16 pixels, 1 view",
        "95 %, percentile bootstrap over clips, 2,000 resamples",
    ):
        assert told in page.text, told


def test_the_page_loads_nothing_and_runs_nothing(trained: Path, clips: Manifest, tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", report_on(clips, wrong=[0]), trained, clips)
    addresses = [value for _, given in page.elements for name, value in given.items() if name in ("src", "href")]
    assert len(addresses) == 7 * 4 + 1  # six hits and a miss of four frames, and the icon
    assert all(value is not None and value.startswith("data:") for value in addresses)
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", source)
    assert page.count("script") == page.count("iframe") == page.count("object") == 0
    assert not [name for _, given in page.elements for name in given if name.startswith("on")]
    (policy,) = [given["content"] for tag, given in page.elements if tag == "meta" and "http-equiv" in given]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_names_are_shown_and_never_obeyed(trained: Path, tmp_path: Path) -> None:
    entries = tuple(Entry(tmp_path / "gone.mp4", f"{label}/{label}.mp4", label) for label in HOSTILE)
    manifest = Manifest(entries, HOSTILE, missing=("<i>missing</i>.mp4",))
    report = dataclasses.replace(
        report_on(manifest, wrong=[0, 2]),
        failures=(ClipFailure("<b>bad</b>.mp4", None, 2.0, 'moov "atom" <not> found'),),
    )
    page = written(tmp_path / "page.html", report, trained, manifest)
    assert page.count("script") == page.count("img") == page.count("b", onerror="") == 0
    for told in (
        HOSTILE[0],
        HOSTILE[1],
        r"two\nlines\tand\x00nothing",
        "{{ 7 * 7 }}",
        r"caf\xe9 \u202egpj.exe",
        "<b>bad</b>.mp4",
    ):
        assert told in page.text, told
    assert 'moov "atom" <not> found' in page.text
    assert "1 of 7 listed clips not found: <i>missing</i>.mp4" in page.text


def test_a_clip_that_has_gone_is_named_and_the_page_is_written(trained: Path, clips: Manifest, tmp_path: Path) -> None:
    report = report_on(clips, wrong=[0])
    clips.entries[0].path.unlink()
    page = written(tmp_path / "page.html", report, trained, clips)
    assert "No pictures: can no longer be read: " in page.text
    assert page.count("div", class_="strip") == 6


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (0.55, "Overall they are underconfident."),
        (0.65, "Overall they are neither over- nor underconfident, as far as 8 clips show."),
        (0.75, "Overall they are neither over- nor underconfident, as far as 8 clips show."),
        (0.95, "Overall they are overconfident."),
    ],
)
def test_scores_claim_too_much_or_too_little_where_the_clips_show_it(
    trained: Path, clips: Manifest, tmp_path: Path, score: float, told: str
) -> None:
    report = dataclasses.replace(report_on(clips, wrong=[1, 6]), mean_score=score, top1_interval=Interval(0.62, 0.8))
    page = written(tmp_path / "page.html", report, trained)
    assert f"75 % of the predictions are correct. {told}" in page.text


def test_few_clips_cannot_tell_what_scores_claim(trained: Path, clips: Manifest, tmp_path: Path) -> None:
    report = dataclasses.replace(report_on(clips, wrong=[1, 6]), mean_score=0.5, top1_interval=Interval(0.4, 0.9))
    page = written(tmp_path / "page.html", report, trained)
    assert "8 clips are too few to tell whether they are over- or underconfident." in page.text


def test_without_an_evaluation_there_are_curves_and_a_receipt(trained: Path, tmp_path: Path) -> None:
    page = written(tmp_path / "page.html", None, trained)
    assert "No clips were held out" in page.text
    assert "Learning rate" in page.text
    assert page.count("figure", class_="curve") == 3


def test_a_run_that_tells_little_still_has_a_page(trained: Path, clips: Manifest, tmp_path: Path) -> None:
    """As one that came from another program: no receipt, no metrics."""
    folder = tmp_path / "bare"
    shutil.copytree(trained, folder)
    (folder / "metrics.jsonl").unlink()
    spec = json.loads((folder / "stadapter.json").read_text(encoding="utf-8"))
    (folder / "stadapter.json").write_text(json.dumps(spec | {"receipt": {}}), encoding="utf-8")
    page = written(tmp_path / "page.html", report_on(clips), folder)
    assert "None: every clip could be read." in page.text
    assert page.count("figure", class_="curve") == 0


def test_a_folder_that_is_no_run_and_a_place_that_cannot_be_written_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"has no stadapter\.json"):
        write_report(tmp_path / "page.html", None, run=tmp_path)
    with pytest.raises(ArtefactError, match="cannot write"):
        write_report(tmp_path / "none" / "page.html", None, run=trained)


@pytest.mark.parametrize(("num_classes", "megabytes"), [(2, 0.1), (30, 0.2), (31, 0.1), (400, 0.5)])
def test_any_number_of_classes_fits(trained: Path, tmp_path: Path, num_classes: int, megabytes: float) -> None:
    page = written(tmp_path / "page.html", many(num_classes, 5), trained)
    assert (tmp_path / "page.html").stat().st_size < megabytes * 1e6
    assert page.count("svg", class_="bar") == 4 + num_classes
    assert ("Largest errors" in page.text) == (num_classes > 30)
    assert page.count("g", class_="right") == (num_classes if num_classes <= 30 else 0)


def test_the_matrix_is_drawn_with_rows_true_and_shares_of_the_row() -> None:
    report = made_report(["a", "b", "c", "d"], ["x", "x", "x", "y"], ["x", "y", "x", "y"])
    drawn = heat_map(report)
    cells = {
        (cell.y // drawn.cell, cell.x // drawn.cell): (cell.count, cell.share, cell.is_right) for cell in drawn.cells
    }
    assert cells == {(0, 0): (2, 2 / 3, True), (0, 1): (1, 1 / 3, False), (1, 1): (1, 1.0, True)}
    assert drawn.cells[1].title == "x, predicted y: 1 of 3 clips"
    assert drawn.summary.endswith("3 of 4 clips on the diagonal.")


def test_a_matrix_of_many_classes_has_every_cell_in_a_few_paths() -> None:
    report = many(100, 4)
    drawn = heat_map(report)
    squares = [square for shade in drawn.shades for square in re.findall(r"M[\d.]+ [\d.]+h", shade.path)]
    assert len(squares) == len(set(squares)) == sum(count > 0 for row in report.confusion for count in row)
    assert len(drawn.shades) <= 16
    assert drawn.cells == drawn.labels == ()


def test_classes_come_worst_first_and_empty_ones_last() -> None:
    report = made_report(["a", "b", "c", "d"], ["x", "x", "y", "z"], ["x", "y", "y", "x"], classes=["w", "x", "y", "z"])
    bars = class_bars(report)
    assert [(bar.name, bar.value) for bar in bars] == [("z", 0.0), ("x", 0.5), ("y", 1.0), ("w", None)]
    assert [bar.note for bar in bars] == [
        "0 of 1 clip, 1 mistaken for x",
        "1 of 2 clips, 1 mistaken for y",
        "1 of 1 clip",
        "no clips",
    ]


def test_what_a_resumed_run_did_again_is_drawn_once(tmp_path: Path) -> None:
    path = write_metrics(
        tmp_path,
        {"kind": "start", "step": 0},
        *(step(number, 1.0) for number in (10, 20, 30)),
        {"kind": "start", "step": 10},
        *(step(number, 2.0) for number in (20, 40)),
    )
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 50, "lo')  # cut off by a crash
    loss = read_curves(tmp_path)[0]
    assert loss.title == "Loss"
    assert loss.path == "M25.00 50.00L50.00 0.00L100.00 0.00"  # 1 at 10, 2 at 20 and 40
    assert loss.smooth == ""


def test_curves_show_held_out_figures(trained: Path) -> None:
    loss, accuracy, rate = read_curves(trained)
    assert loss.held_out is not None
    assert accuracy.held_out is not None
    assert (loss.held_out.text, accuracy.held_out.text, rate.held_out) == ("0.6", "75 %", None)
    assert (accuracy.held_out.path, accuracy.held_out.x, accuracy.held_out.y) == ("", 100.0, 25.0)
    assert [tick.text for tick in accuracy.y_ticks] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert loss.smooth
    assert not rate.smooth  # it has no noise to average


def test_held_out_figures_of_several_epochs_are_a_curve_that_tells_the_best(tmp_path: Path) -> None:
    held_out = ((20, 0.75, 0.5), (30, 0.25, 0.875), (40, 0.5, 0.75))
    write_metrics(
        tmp_path,
        *(step(number, 1.0) for number in (10, 20, 30, 40)),
        *({"kind": "validation", "step": at, "loss": loss, "top1": top1} for at, loss, top1 in held_out),
    )
    loss, accuracy, _ = (curve.held_out for curve in read_curves(tmp_path))
    assert loss is not None
    assert accuracy is not None
    assert loss.text == "0.5, best 0.25 after 30 steps"
    assert accuracy.text == "75 %, best 88 % after 30 steps"
    write_metrics(
        tmp_path, step(40, 1.0), *({"kind": "validation", "step": at, "top1": top1} for at, _, top1 in held_out[:2])
    )
    last = read_curves(tmp_path)[1].held_out
    assert last is not None
    assert last.text == "88 %"
    write_metrics(
        tmp_path,
        step(40, 1.0),
        *({"kind": "validation", "step": at, "top1": top1} for at, top1 in ((20, 0.504), (40, 0.5))),
    )
    alike = read_curves(tmp_path)[1].held_out
    assert alike is not None
    assert alike.text == "50 %"  # not "best 50 %"
    assert accuracy.path == "M50.00 50.00L75.00 12.50L100.00 25.00"
    assert loss.path.count("L") == 2


@pytest.mark.parametrize("num_steps", [301, 1000, 2000])
def test_a_long_curve_has_few_points_and_reaches_its_end(num_steps: int, tmp_path: Path) -> None:
    write_metrics(tmp_path, *(step(number, 1.0) for number in range(1, num_steps + 1)))
    for path in (path for curve in read_curves(tmp_path) for path in (curve.path, curve.smooth) if path):
        assert path.count("L") <= 301
        assert path.rpartition("L")[2].startswith("100.00 ")


def test_there_are_no_curves_without_figures(tmp_path: Path) -> None:
    assert read_curves(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_bytes(
        b'\xff\xfe\n[1]\n{"kind": "train"}\n{"kind": "train", "step": 1, "loss": NaN}'
    )
    assert read_curves(tmp_path) == []


@pytest.mark.parametrize("highest", [1e-7, 0.002, 0.99, 1.0, 7.3, 420.0, 1e6])
def test_an_axis_has_three_to_six_numbers_and_reaches_its_curve(highest: float) -> None:
    numbers = round_numbers(highest)
    assert 3 <= len(numbers) <= 6
    assert numbers[0] == 0
    assert numbers[-2] < highest <= numbers[-1] * 1.001


def test_filmstrips_show_the_surest_with_one_of_every_class_first(clips: Manifest) -> None:
    hits, misses = make_filmstrips(report_on(clips, wrong=[0, 3, 5]), clips, CONFIG, limit=2)
    assert [(strip.prediction.name, strip.prediction.score) for strip in misses] == [
        ("down/down_00.mp4", 0.9),
        ("down/down_03.mp4", 0.9),
    ]
    assert {strip.prediction.label for strip in hits} == {"down", "up"}
    assert (hits[0].width, hits[0].height, len(hits[0].pictures)) == (64, 64, 4)
    assert make_filmstrips(report_on(clips), None, CONFIG, limit=2) == ([], [])


def test_a_strip_has_the_frames_of_the_first_view_uncropped(clips: Manifest) -> None:
    path = clips.entries[0].path
    assert torch.equal(load_frames(path, ClipConfig(num_frames=4)), read_frames(path, uniform_indices(16, 4)[0]))
    assert len(load_frames(path, ClipConfig(num_frames=4, num_temporal_views=3, num_spatial_views=3))) == 4


def test_a_strip_of_a_segment_has_its_frames(tmp_path: Path) -> None:
    """A video that is black for one second, grey for one, and white for one."""
    shades = np.repeat([0, 128, 255], 10).astype(np.uint8)
    write_video(tmp_path / "a.mp4", np.broadcast_to(shades[:, None, None, None], (30, 32, 32, 3)))
    (prediction,) = made_report(["a.mp4"], ["x"], ["x"]).predictions
    for start, shade in ((0.0, 0), (1.0, 128), (2.0, 255)):
        entry = Entry(tmp_path / "a.mp4", "a.mp4", "x", start, start + 1)
        for address in make_filmstrip(prediction, entry, CONFIG).pictures:
            with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
                assert np.asarray(picture).mean() == pytest.approx(shade, abs=5)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def pages(trained: Path, clips: Manifest, tmp_path: Path) -> list[Path]:
    """The page of an ordinary run, one with hostile names, one with many classes, one without an evaluation."""
    hostile = Manifest(tuple(Entry(Path("/none.mp4"), f"{label}.mp4", label) for label in HOSTILE), HOSTILE)
    reports = {
        "ordinary": (report_on(clips, wrong=[1, 6]), clips),
        "hostile": (
            dataclasses.replace(
                report_on(hostile, wrong=[0, 3]), failures=(ClipFailure(HOSTILE[4], None, None, HOSTILE[4]),)
            ),
            hostile,
        ),
        "many": (many(120, 4), None),
        "training": (None, None),
    }
    for name, (report, manifest) in reports.items():
        write_report(tmp_path / f"{name}.html", report, run=trained, manifest=manifest, clip_config=CONFIG)
    return [tmp_path / f"{name}.html" for name in reports]


def test_a_browser_shows_the_pages_without_a_request_a_complaint_or_sideways_scrolling(
    browser: Browser, pages: list[Path]
) -> None:
    for page in pages:
        for width, dark in ((360, False), (800, True), (1280, False)):
            browser.open(page.as_uri(), width=width, dark=dark)
            assert [address for address in browser.requested() if not address.startswith("data:")] == [page.as_uri()]
            assert browser.complaints() == []
            assert browser.value("document.documentElement.scrollWidth") <= width, (page.name, width)
            assert browser.value("document.title") == f"{page_title(page)}: report"


def page_title(page: Path) -> str:
    found = re.search(r"<title>(.*): report</title>", page.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def test_a_browser_draws_every_figure(browser: Browser, pages: list[Path]) -> None:
    browser.open(pages[0].as_uri(), width=360)
    sizes = browser.value(
        "[...document.querySelectorAll('svg, img')].map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(sizes) == 2 + 4 + 2 + 1 + 2 + 8 * 4 + 3 + 2  # headlines, time, classes, matrix and key, clips, curves
    assert all(width > 8 and height > 8 for width, height in sizes)
    assert browser.value("[...document.images].every(image => image.naturalWidth == 64)")
    assert len(browser.screenshot()) > 20_000


def test_a_browser_obeys_the_readers_colours(browser: Browser, pages: list[Path]) -> None:
    colours = {}
    for dark in (False, True):
        browser.open(pages[0].as_uri(), width=800, dark=dark)
        shown = browser.value("getComputedStyle(document.body).backgroundColor")
        colours[dark] = sum(map(int, re.findall(r"\d+", shown)))
    assert colours[False] > 700
    assert colours[True] < 100


def test_a_browser_prints_the_page(browser: Browser, pages: list[Path]) -> None:
    browser.open(pages[0].as_uri(), width=800, dark=True)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 6


def test_a_page_is_written_through_a_link_and_into_a_pipe(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to(tmp_path / "page.html")
    write_report(tmp_path / "link.html", None, run=trained)
    assert (tmp_path / "link.html").is_symlink()
    assert "</html>" in (tmp_path / "page.html").read_text()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = threading.Thread(target=write_report, args=(tmp_path / "pipe", None), kwargs={"run": trained})
    writer.start()
    received = b""
    while writer.is_alive() or not received:
        with contextlib.suppress(BlockingIOError):
            received += os.read(reader, 65536)
    os.close(reader)
    assert b"<html" in received
    assert not (tmp_path / "pipe").is_file()
