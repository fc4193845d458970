"""The data doctor on real files: every layout, every kind of damage, tables, JSON, exit codes."""

import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import stadapter as st
from stadapter.__main__ import main
from stadapter.check import DataReport, check_data
from stadapter.check.tables import SHOWN_CLASSES, tables
from stadapter.cli.check import CheckFlags
from stadapter.cli.train import parse_train_flags
from stadapter.errors import SettingsError
from stadapter.manifest import read_splits
from stadapter.synthetic import draw_clip, write_clips, write_video
from stadapter.training.settings import TrainConfig
from stadapter.wording import printable


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 7 clips of 16 frames: 6 to train on with the default share held out."""
    folder = tmp_path_factory.mktemp("good") / "clips"
    write_clips(folder, classes=("grow", "shrink"), clips_per_class=7, size=32)
    return folder


@pytest.fixture
def data(good: Path, tmp_path: Path) -> Path:
    """A copy of the good clips, to be spoiled."""
    return Path(shutil.copytree(good, tmp_path / "data"))


def kinds(report: DataReport) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.items for finding in report.findings}


def errors(report: DataReport) -> list[str]:
    return [finding.found for finding in report.findings if finding.level == "error"]


def shown(report: DataReport, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"), force_terminal=False)  # noqa: SIM115
    console.print(tables(report))
    console.file.close()
    return console.export_text()


def test_good_data_has_nothing_amiss_and_the_split_of_training(good: Path) -> None:
    report = check_data(good)
    assert report.could_train
    assert report.findings == ()
    assert [(count.label, count.train, count.held_out, count.unreadable) for count in report.per_class()] == [
        ("grow", 6, 1, 0),
        ("shrink", 6, 1, 0),
    ]
    train, val = read_splits(good)
    assert val is not None
    assert [clip.name for clip in report.clips] == [entry.name for entry in (*train.entries, *val.entries)]
    text = shown(report)
    for part in ("14: 12 to train on, 2 held out", "32x32 (14)", "h264 (14)", "1.6 s each", "no problems found"):
        assert part in text


def test_a_report_is_a_line_and_for_rich_its_tables(good: Path) -> None:
    report = check_data(good)
    assert repr(report) == f"DataReport({good}: {len(report.clips)} clips, 0 findings, could_train=True)"
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(report)
    assert console.export_text() == shown(report)


@pytest.mark.parametrize("settings", [{"val_fraction": 0.5}, {"val_fraction": 0.0}])
def test_clips_are_held_out_as_train_would_with_the_same_flags(good: Path, settings: dict[str, float]) -> None:
    _, val = read_splits(good, val_fraction=settings["val_fraction"])
    found = [clip.name for clip in check_data(good, val_fraction=settings["val_fraction"]).clips if clip.held_out]
    assert found == ([entry.name for entry in val.entries] if val is not None else [])


def test_its_defaults_are_those_of_train() -> None:
    config = st.TrainConfig(data="x", out="y")
    flags = importlib.import_module("stadapter.cli.check").CheckFlags(data="x")
    for name in ("val_data", "val_fraction", "num_frames", "max_bad_fraction"):
        assert getattr(flags, name) == getattr(config, name) == (check_data.__kwdefaults__ or {})[name]


def as_splits(data: Path) -> Path:
    for name in ("grow", "shrink"):
        (data / "val" / name).mkdir(parents=True)
        shutil.move(data / name / f"{name}_00.mp4", data / "val" / name)
        (data / "train").mkdir(exist_ok=True)
        shutil.move(data / name, data / "train" / name)
    return data


def as_csv(data: Path) -> Path:
    names = [path.relative_to(data).as_posix() for path in sorted(data.glob("*/*"))]
    (data / "list.csv").write_text("path,label\n" + "".join(f"{name},{Path(name).parent}\n" for name in names))
    return data / "list.csv"


def as_released_list(data: Path) -> Path:
    names = [path.relative_to(data).as_posix() for path in sorted(data.glob("*/*"))]
    (data / "list.txt").write_text("".join(f"{name} {int('shrink' in name)}\n" for name in names))
    return data / "list.txt"


def as_segments(data: Path) -> Path:
    rows = [f"{path.relative_to(data)},{path.parent.name},0.2,1.2\n" for path in sorted(data.glob("*/*"))]
    (data / "list.csv").write_text("path,label,start,end\n" + "".join(rows))
    return data / "list.csv"


def as_images(data: Path) -> Path:
    for position, path in enumerate(sorted(data.glob("*/*"))):
        path.unlink()
        path.with_suffix("").mkdir()
        for index in range(9):
            image = Image.fromarray(np.full((8, 8, 3), 9 * index + position, np.uint8))
            image.save(path.with_suffix("") / f"img_{index}.png")
    return data


@pytest.mark.parametrize("arrange", [as_splits, as_csv, as_released_list, as_segments, as_images])
def test_every_layout_is_checked(arrange: Callable[[Path], Path], data: Path) -> None:
    report = check_data(arrange(data), deep=True)
    assert report.findings == ()
    assert (len(report.clips), sum(clip.held_out for clip in report.clips)) == (14, 2)
    assert {clip.num_frames for clip in report.clips} == {{as_images: 9, as_segments: 10}.get(arrange, 16)}


def spoil(data: Path) -> None:
    """One of every kind of trouble that is not in the layout."""
    grow = data / "grow"
    (grow / "empty.mp4").touch()
    (grow / "[bold red]words.mp4").write_bytes(b"\0" * 500)
    content = (grow / "grow_01.mp4").read_bytes()
    (grow / "half.mp4").write_bytes(content[: len(content) // 2])
    write_video(grow / "single.mp4", draw_clip("grow", 8, size=32, num_frames=1))
    write_video(grow / "five.mp4", draw_clip("grow", 9, size=32, num_frames=5))
    (data / "shrink" / "new\nline.mp4").write_bytes((grow / "grow_02.mp4").read_bytes())
    (data / "outside.mp4").write_bytes(content)
    (grow / "dangling.mp4").symlink_to("nowhere.mp4")
    (grow / "loop.mp4").symlink_to("loop.mp4")
    (grow / "up").symlink_to("..")
    (data / "notes.txt").touch()


def test_every_trouble_is_told_with_the_clip_it_is_in(data: Path) -> None:
    spoil(data)
    found = kinds(check_data(data, max_bad_fraction=0.5))
    assert found["empty"] == ("grow/empty.mp4",)
    assert found["cut"] == ("grow/half.mp4",)
    assert found["unreadable"][0].startswith("grow/[bold red]words.mp4: 0 frames decoded")
    assert found["single frame"] == ("grow/single.mp4",)
    assert found["short"] == ("grow/five.mp4: 5 frames",)
    contradicting = {"grow/grow_02.mp4 (grow)", "shrink/new\nline.mp4 (shrink)"}
    assert set(found["contradiction"][0].split(" = ")) == contradicting
    assert found["outside"] == ("outside.mp4",)
    assert set(found["no file"]) == {"grow/dangling.mp4", "grow/loop.mp4"}
    assert found["other files"] == ("notes.txt",)


@pytest.mark.parametrize("width", [40, 60, 200])
def test_the_tables_show_names_as_they_are_at_any_width(width: int, data: Path) -> None:
    spoil(data)
    text = shown(check_data(data), width)
    assert max(len(line) for line in text.splitlines()) <= width
    unwrapped = re.sub(r"\s+", "", text)
    assert "[boldred]words.mp4" in unwrapped
    assert "shrink/new\\nline.mp4" in unwrapped
    assert "trainingcannotstart" in unwrapped


def test_too_many_unreadable_clips_stop_training_as_they_would_there(data: Path) -> None:
    names = [clip.name for clip in check_data(data).clips if not clip.held_out][:2]
    (data / names[0]).write_bytes(b"broken")
    assert check_data(data).could_train  # one alone never stops a run
    (data / names[1]).write_bytes(b"broken")
    assert not check_data(data).could_train
    assert "2 of 12 training clips cannot be read, more than 10 %" in errors(check_data(data))[0]
    assert check_data(data, max_bad_fraction=0.2).could_train


def test_copies_are_found_whatever_their_names_and_leaks_said(data: Path) -> None:
    held_out = next(clip.name for clip in check_data(data).clips if clip.held_out and clip.label == "grow")
    train = next(clip.name for clip in check_data(data).clips if not clip.held_out and clip.label == "grow")
    shutil.copy(data / held_out, data / train)
    report = check_data(data)
    assert kinds(report)["leak"] == (f"{held_out} = {train} in training",)
    assert report.could_train
    assert "leak: 1 held-out clip also in the training data" in shown(report)


def test_overlapping_segments_on_both_sides_are_a_leak_and_a_lost_segment_is_named(data: Path) -> None:
    rows = "grow/grow_00.mp4,{0},{1},{2}\n"
    classes = "".join(f"{path.relative_to(data)},{path.parent.name},,\n" for path in sorted(data.glob("*/*_0[1-5]*")))
    header = "path,label,start,end\n"
    train = data / "train.csv"
    train.write_text(header + classes + rows.format("grow", 0, 0.8) + rows.format("grow", 5, 6))
    val = data / "val.csv"
    val.write_text(header + rows.format("grow", 0.7, 1.5) + rows.format("grow", 0.8, 9) + "gone.mp4,grow,0,1\n")
    found = kinds(check_data(train, val_data=val))
    where = (data / "grow" / "grow_00.mp4").as_posix()
    assert found["leak"] == (f"{where} [0.7 to 1.5 s] = grow/grow_00.mp4 [0 to 0.8 s] in training",)
    assert found["past the end"] == (f"{where} [0.8 to 9 s]: the video ends at 1.6 s",)
    assert found["no segment"][0].startswith("grow/grow_00.mp4 [5 to 6 s]: no frame between")
    assert found["not found"] == ("gone.mp4",)


def test_deep_finds_damage_that_a_glance_does_not(data: Path) -> None:
    as_images(data)
    (data / "grow" / "grow_03" / "img_5.png").write_bytes(b"broken")
    assert "damaged" not in kinds(check_data(data))
    assert kinds(check_data(data, deep=True))["damaged"] == ("grow/grow_03: 8 of 9 frames can be decoded",)


def empty_class(data: Path) -> Path:
    (data / "nothing").mkdir()
    return data


def one_class(data: Path) -> Path:
    shutil.rmtree(data / "grow")
    return data


def flat(data: Path) -> Path:
    return data / "grow"


def one_video(data: Path) -> Path:
    return data / "grow" / "grow_00.mp4"


def bad_lines(data: Path) -> Path:
    listed = as_csv(data)
    listed.write_text(listed.read_text().replace("grow/grow_00.mp4,grow", "grow/grow_00.mp4").replace("shrink\n", "\n"))
    return listed


def only_val(data: Path) -> Path:
    shutil.rmtree(as_splits(data) / "train")
    return data


@pytest.mark.parametrize(
    ("arrange", "reasons", "num_clips"),
    [
        (empty_class, ["1 class folder without a video: nothing/"], 14),
        (one_class, ["found only one class, 'shrink'"], 7),
        (flat, ["7 videos not in a class folder"], 7),
        (one_video, ["grow_00.mp4 is a single video"], 1),
        (
            bad_lines,
            ["line 2: found 1 field, expected 2 (path,label)", "7 lines that cannot", "found only one class"],
            6,
        ),
        (only_val, ["holds val/ but no train/"], 2),
        (lambda data: data / "none", ["none: no such file or folder"], 0),
        (lambda data: empty_class(data) / "nothing", ["nothing: found no files"], 0),
    ],
)
def test_what_training_would_refuse_is_told_and_the_rest_still_looked_at(
    arrange: Callable[[Path], Path], reasons: list[str], num_clips: int, data: Path
) -> None:
    report = check_data(arrange(data))
    assert not report.could_train
    assert [found for found, reason in zip(errors(report), reasons, strict=True) if reason not in found] == []
    assert len(report.clips) == num_clips
    assert all(clip.error is None for clip in report.clips)
    assert "training cannot start" in shown(report)


def test_lines_that_are_refused_for_one_reason_are_one_error(data: Path) -> None:
    listed = as_segments(data)
    listed.write_text(listed.read_text().replace("0.2,1.2", "3,1"))
    report = check_data(listed)
    (finding,) = report.findings  # and none that the list holds no clips, or one class only
    assert (finding.level, finding.found) == ("error", f"{listed}: 14 lines that cannot be used")
    assert finding.advice == "expected end > start"
    assert len(finding.items) == 14
    assert finding.items[0] == "line 2: the segment ends at 1.0 s but starts at 3.0 s"
    text = shown(report)
    assert "and 9 more, all in --json" in text
    assert "training cannot start: 1 error" in text
    listed.write_text(listed.read_text().replace("3,1", "0,soon", 3).replace("3,1", "0,1.2", 10))
    report = check_data(listed)
    (lines, line) = report.findings[:2]
    assert [item.partition(": ")[0] for item in lines.items] == ["line 2", "line 3", "line 4"]
    assert (line.found.partition("list.csv, ")[2].partition(" at")[0], line.items) == ("line 15: the segment ends", ())
    assert report.per_class()[0].train == 3


def test_clips_with_two_labels_in_a_list_are_one_error(data: Path) -> None:
    listed = as_csv(data)
    rows = listed.read_text().splitlines()
    listed.write_text("\n".join([*rows, *(row.replace(",grow", ",shrink") for row in rows if row.endswith(",grow"))]))
    (told,) = errors(check_data(listed))
    assert "grow/grow_04.mp4 is listed as 'grow' and as 'shrink' and 2 more; expected one label per clip" in told


def test_a_file_that_vanishes_meanwhile_is_named(data: Path) -> None:
    gone = data / "shrink" / "shrink_06.mp4"
    report = check_data(data, progress=lambda done, total: gone.unlink(missing_ok=True))
    assert kinds(report)["missing"] == ("shrink/shrink_06.mp4",)
    assert report.could_train


@pytest.mark.parametrize(("mode", "told"), [(0o000, "cannot be listed"), (0o444, "without a video: grow/")])
def test_folders_that_may_not_be_looked_into_are_told(mode: int, told: str, data: Path) -> None:
    (data / "grow").chmod(mode)
    try:
        if os.access(data / "grow", os.X_OK):
            pytest.skip("this user may look into every folder")
        report = check_data(data)
        assert not report.could_train
        assert told in errors(report)[0]
        assert not check_data(data / "grow" / "grow_00.mp4", val_data=data / "grow" / "x").could_train
    finally:
        (data / "grow").chmod(0o755)


def test_json_holds_every_clip_and_every_finding(data: Path) -> None:
    spoil(data)
    report = check_data(data)
    plain = json.loads(json.dumps(report.to_json()))
    assert plain == report.to_json()
    assert plain["could_train"] is False
    assert len(plain["clips"]) == plain["num_train"] + plain["num_held_out"] == len(report.clips)
    assert {finding["kind"] for finding in plain["findings"]} == set(kinds(report))
    by_name = {clip["name"]: clip for clip in plain["clips"]}
    assert by_name["grow/five.mp4"]["video"]["width"] == 32
    assert by_name["grow/five.mp4"]["num_frames"] == 5
    assert by_name["grow/empty.mp4"]["error"]
    assert by_name["grow/empty.mp4"]["video"] is None


def test_many_classes_are_shown_from_the_smallest(tmp_path: Path, good: Path) -> None:
    for number in range(SHOWN_CLASSES + 5):
        for index in range(3 if number == 33 else 4):
            path = tmp_path / f"class{number}" / f"{index}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(good / "grow" / f"grow_0{index}.mp4")
    text = shown(check_data(tmp_path))
    assert f"the {SHOWN_CLASSES} classes with the fewest clips to train on, of {SHOWN_CLASSES + 5}" in text
    assert re.search(r"│ class33 +│ +2 │", text)
    assert "class9 " not in text.split("warning")[0]


def test_clips_that_are_all_the_same_do_not_fill_the_screen(tmp_path: Path, good: Path) -> None:
    for label, count in (("grow", 60), ("shrink", 5)):
        for index in range(count):
            path = tmp_path / label / f"{index:04d}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.symlink_to(good / label / f"{label}_00.mp4")
    report = check_data(tmp_path)
    (alike, *_) = next(finding.items for finding in report.findings if finding.kind == "copies")
    assert alike.count(" = ") > 40
    text = " ".join(shown(report).split())
    assert f"{alike[:300]} … (the rest in --json)" in text
    assert alike.rpartition(" = ")[2] not in text


def test_what_a_terminal_cannot_show_is_written_out() -> None:
    assert printable("a\x1b[31m\udce9\u202eé.mp4") == r"a\x1b[31m\udce9\u202eé.mp4"


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"num_workers": -1}, {"max_bad_fraction": 2}, {"val_fraction": 1}]
)
def test_a_number_out_of_range_is_refused(wrong: dict[str, float], good: Path) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        check_data(good, **wrong)  # type: ignore[arg-type]


def test_what_to_do_next_trains_on_what_was_checked(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = "--val-fraction 0.5 --num-frames 4 --max-bad-fraction 0.3"
    assert main(["check", str(data), *kept.split(), "--num-workers", "1", "--deep"]) == 0
    said = capsys.readouterr().err
    assert said == f"next: stadapter train --data {data} {kept} --out runs/first\n"
    parse_train_flags(shlex.split(said.partition("train ")[2]))


def test_what_to_do_next_leaves_out_what_means_nothing_for_the_data(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--video-root", str(data), "--label-kind", "verb", "--split-number", "2", "--val-fraction", "0.5"]
    assert main(["check", str(data), *flags]) == 0
    assert capsys.readouterr().err == f"next: stadapter train --data {data} --val-fraction 0.5 --out runs/first\n"


def test_every_flag_that_check_hands_on_is_one_of_train() -> None:
    ours, theirs = ({field.name: field.default for field in dataclasses.fields(of)} for of in (CheckFlags, TrainConfig))
    kept = ours.keys() - {"deep", "json", "num_workers"}
    assert kept <= theirs.keys()
    assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}


def test_the_verb_tells_by_its_exit_code_whether_training_could_start(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    assert main(["check", str(data), "--json", str(target)]) == 0
    captured = capsys.readouterr()
    assert "training can start: no problems found" in captured.out
    assert captured.err == f"next: stadapter train --data {data} --out runs/first\n"
    assert json.loads(target.read_text())["could_train"] is True
    shutil.rmtree(data / "grow")
    assert main(["check", str(data)]) == 1
    captured = capsys.readouterr()
    assert "training cannot start: 1 error" in captured.out
    assert captured.err == ""
    assert main(["check", str(data), "--num-frames", "0"]) == 2
    assert main(["check", str(data), "--json", str(tmp_path)]) == 2


def test_json_alone_is_on_standard_output_when_asked_for(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(good), "--deep", "--num-workers", "2", "--json", "-"]) == 0
    captured = capsys.readouterr()
    clips = json.loads(captured.out)["clips"]
    assert {(clip["num_decoded"], clip["num_damaged"]) for clip in clips} == {(16, 0)}
    assert "By class" in captured.err


def test_names_that_are_no_text_are_in_the_json_file(data: Path, tmp_path: Path) -> None:
    name = b"caf\xe9.mp4"
    try:
        (data / "grow" / os.fsdecode(name)).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes text only")
    assert main(["check", str(data), "--json", str(tmp_path / "report.json")]) == 0
    names = [clip["name"] for clip in json.loads((tmp_path / "report.json").read_text())["clips"]]
    assert os.fsencode("grow/") + name in [os.fsencode(found) for found in names]


def test_the_gestures_are_sound_but_name_sides(shared: Path) -> None:
    report = check_data(shared / "videos" / "gestures-small")
    assert report.could_train
    assert kinds(report) == {"flip": ("left / right",)}
    assert len(report.clips) == 149
