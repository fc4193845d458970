"""The command line: verbs, flags, tables, JSON and CSV, exit codes, and errors in one line."""

import csv
import errno
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import released_weights, write_released
from stadapter.__main__ import VERBS, main
from stadapter.artefact import read_spec
from stadapter.cli.output import write_json
from stadapter.errors import ArtefactError
from stadapter.predict import Classifier
from stadapter.synthetic import write_clips
from stadapter.tuning import LinearProbe, LoRA, STAdapter
from trunks import save_trunk

CLASSES = ["down", "left", "right", "up"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_trunk(tmp_path_factory.mktemp("trunks") / "dinov2", "dinov2")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "clips"
    write_clips(folder, clips_per_class=2, size=32, num_frames=8)
    return folder


def train_flags(clips: Path, trunk: Path, out: Path) -> list[str]:
    small = "--num-frames 2 --size 16 --batch-size 4 --epochs 1 --num-workers 0 --device cpu --precision fp32"
    return ["--data", str(clips), "--backbone", str(trunk), "--out", str(out), *small.split()]


@pytest.fixture(scope="module")
def run(clips: Path, trunk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", *train_flags(clips, trunk, out), "--val-fraction", "0"]) == 0
    return out


def stadapter(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 120} | options
    return subprocess.run([sys.executable, "-m", "stadapter", *map(str, arguments)], check=False, **options)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Exit code and message of a command that fails, with nothing on standard output."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # how tyro leaves
        code = int(str(stop.code))
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, re.sub(r"[│╭╮╰╯─\s]+", " ", captured.err)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown and purpose in shown for verb, purpose in VERBS.items())


def test_help_answers_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from stadapter.__main__ import main; main(['--help']);"
        "print([m for m in ('torch', 'numpy', 'transformers', 'rich', 'tyro') if m in sys.modules], file=sys.stderr)"
    )
    assert stadapter_python(code).stderr.strip() == "[]"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert stadapter("--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


def stadapter_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("word", ["--version", "version"])
def test_the_version_is_told(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert main([word]) == 0
    assert re.fullmatch(r"stadapter \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("word", "advice"), [("trian", "did you mean train?"), ("--trian", "did you mean train?"), ("xyz", "expected one")]
)
def test_an_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str], word: str, advice: str) -> None:
    code, message = refused(capsys, word, "--data", "x")
    assert code == 2
    assert advice in message


def test_help_of_a_verb_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["help", "check"])
    assert "usage: stadapter check" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_needs_no_torch(verb: str) -> None:
    code = (
        "import sys\nfrom stadapter.__main__ import main\n"
        f"try: main(['{verb}', '--help'])\nexcept SystemExit as stop: assert stop.code == 0\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    assert stadapter_python(code).stderr.strip() == "False"


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_help_and_a_default(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    unframed = re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out)
    flags = [" ".join(flag.split()) for flag in re.split(r"\n +(?=--[a-z])", unframed)[1:]]
    assert len(flags) >= (2 if verb == "export" else 5)
    for flag in flags:
        assert re.match(r"--[a-z].* [a-z]+.* \((default: .+|required)\)", flag), flag


def test_help_is_paragraphs_not_the_lines_of_the_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "Folder with one sub-folder" in line)
    assert "or the annotations of Kinetics" in line
    assert "(required)" in line


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["train", "--data", "x", "--out", "y", "--epoch", "3"], "--epochs"),
        (["train", "--data", "x", "--out", "y", "--tuning.widht", "3"], "--tuning.width"),
        (["evaluate", "run", "--data", "x", "--batchsize", "3"], "--batch-size"),
        (["predict", "run", "clip.mp4", "--topk", "3"], "--top-k"),
        (["convert", "x.pth", "--out", "y", "--backbone", "z", "--label", "l.txt"], "--labels"),
    ],
)
def test_an_unknown_flag_suggests_the_nearest(
    capsys: pytest.CaptureFixture[str], arguments: list[str], suggestion: str
) -> None:
    code, message = refused(capsys, *arguments)
    assert code == 2
    assert f"Perhaps you meant: {suggestion} " in message


def test_an_error_is_one_line_without_colour_codes_where_there_is_no_terminal(tmp_path: Path) -> None:
    found = stadapter("predict", tmp_path / "nowhere", "clip.mp4", env=ENVIRONMENT | {"COLUMNS": "40"})
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert ESCAPE not in found.stderr


@pytest.mark.parametrize("no_colour", [True, False])
def test_an_error_is_red_on_a_terminal_unless_no_colour_is_wanted(tmp_path: Path, no_colour: bool) -> None:
    pty = pytest.importorskip("pty")
    reader, writer = pty.openpty()
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    environment |= {"NO_COLOR": "1"} if no_colour else {}
    found = stadapter("tarin", env=environment, capture_output=False, stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    shown = os.read(reader, 10_000).decode()
    os.close(reader)
    assert found.returncode == 2
    assert f"{ESCAPE}[1;31merror" in shown or no_colour
    assert f"{ESCAPE}[1;31m" not in shown or not no_colour
    assert "did you mean train?" in shown


def test_an_interrupted_verb_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(verb: str, arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("stadapter.cli"), "run", interrupt)
    assert main(["predict"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_train_leaves_a_run_folder_that_predicts(run: Path, clips: Path) -> None:
    classifier = Classifier.load(run)
    assert list(classifier.labels) == CLASSES
    assert classifier.clip_config.num_frames == 2
    assert classifier.predict(clips / "up" / "up_00.mp4").label in CLASSES


def test_train_says_what_it_trains_and_what_to_do_next(
    clips: Path, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = train_flags(clips, trunk, tmp_path / "run")
    assert main(["train", *flags, "--tuning", "linear-probe", "--recipe", "small", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert re.search(r"trained 132 of [\d,]+ parameters \(\d\.\d\d %\)", captured.err)
    assert f"next: stadapter predict {tmp_path / 'run'} clip.mp4" in captured.err
    assert "top-1" in captured.out  # one clip of each class was held out
    assert ESCAPE not in captured.out + captured.err
    assert read_spec(tmp_path / "run")["receipt"]["settings"]["seed"] == 3


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("", STAdapter()),
        ("--tuning st-adapter --tuning.width 96 --tuning.kernel-size 3 1 1", STAdapter(width=96)),
        ("--tuning.width=6 --tuning.kernel_size 1 3 3", STAdapter(width=6, kernel_size=(1, 3, 3))),
        (
            "--tuning.before-mlp --tuning.no-before-attention --tuning.activation None --tuning=st-adapter",
            STAdapter(before_mlp=True, before_attention=False, activation=None),
        ),
        ("--tuning linear-probe", LinearProbe()),
        ("--tuning lora", LoRA()),
        ("--tuning.rank 3 --tuning=lora --tuning.last-blocks 1", LoRA(rank=3, last_blocks=1)),
        ("--tuning st-adapter --tuning lora --tuning.rank 2", LoRA(rank=2)),
    ],
)
def test_the_strategy_and_its_settings_are_taken_as_typed(typed: str, expected: object) -> None:
    from stadapter.cli.train import parse_train_flags

    assert parse_train_flags(["--data", "x", "--out", "y", *typed.split()]).tuning == expected


def test_train_has_the_help_of_the_chosen_strategy(capsys: pytest.CaptureFixture[str]) -> None:
    for strategy, flag in {"lora": "--tuning.rank", "st-adapter": "--tuning.kernel-size"}.items():
        with pytest.raises(SystemExit):
            main(["train", "--tuning", strategy, "--help"])
        shown = capsys.readouterr().out
        assert flag in shown
        assert "--tuning {st-adapter,linear-probe," in shown


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--tuning lra", "'st-adapter', 'linear-probe', 'attentive-pooling'"),
        ("--tuning", "--tuning"),
        ("--tuning.rank 3", "--tuning.rank is a flag of lora; add --tuning lora, or drop it"),
        ("--lr -1", "lr -1.0: expected a learning rate above 0"),
        ("--accept-changes", "accept_changes without resume: expected both"),
        ("--augmentation.scale 2 3", "scale (2.0, 3.0)"),
        ("--recipe big", "small"),
        ("--epochs many", "many"),
    ],
)
def test_a_setting_without_meaning_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, typed: str, message: str
) -> None:
    code, shown = refused(capsys, "train", "--data", tmp_path, "--out", tmp_path / "run", *typed.split())
    assert code == 2
    assert message in shown
    assert not (tmp_path / "run").exists()


def test_data_that_is_not_there_is_an_error_without_traceback(
    capsys: pytest.CaptureFixture[str], trunk: Path, tmp_path: Path
) -> None:
    code, message = refused(capsys, "train", *train_flags(tmp_path / "none", trunk, tmp_path / "run"))
    assert code == 1
    assert message.startswith("error: ")
    assert "none: no such file or folder" in message


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    clips: Path, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*train_flags(clips, trunk, tmp_path / "run"), "--tuning.width", "4", "--epochs", "5", "--dry-run"]
    assert main(["train", *flags]) == 0
    shown = capsys.readouterr().out
    assert "4 clips to train on, 4 held out; 4 classes: down (1), left (1), right (1), up (1)" in shown
    assert "2 frames of 16 x 16 pixels" in shown
    assert "5 steps: 5 epochs of 1" in shown
    # A block's adapter: 32 x 4 + 4, 4 x 3 + 4, 4 x 32 + 32; the classifier: 32 x 4 + 4.
    assert "trained 1,056 of " in shown
    table = shown.partition("What this training takes, approximately")[2]
    for name in ("parameters", "arithmetic", "steps", "memory", "per step", "training", "validation", "total"):
        assert re.search(rf"^│ {name} +│ +\d", table, re.MULTILINE)
    assert not (tmp_path / "run").exists()


def test_of_several_processes_one_says_what_a_training_would_take(clips: Path, trunk: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "stadapter"]
    done = subprocess.run(
        [*launch, "train", *train_flags(clips, trunk, tmp_path / "run"), "--batch-size", "32", "--dry-run"],
        env={**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("What this training takes, approximately") == 1
    assert done.stdout.count("clips to train on") == 1
    assert "32 clips each x 2 processes" in done.stdout  # of far fewer: clips are repeated to fill them
    assert "Measured in one process only" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_an_interrupted_training_says_how_to_go_on_and_does(clips: Path, trunk: Path, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    flags = [*train_flags(clips, trunk, out), "--val-fraction", "0", "--batch-size", "1", "--epochs", "100000"]
    command = [sys.executable, "-m", "stadapter", "train", *flags]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: "train" in read_metrics(out))
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"resume with: stadapter train --data {clips}" in message
    assert f"'{out}'" in message
    assert "--resume\n" in message
    assert "Traceback" not in message


def read_metrics(run: Path) -> list[str]:
    """The kinds of the records in a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["kind"] for line in lines]


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_evaluate_shows_tables_and_writes_the_report(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "report.json"
    flags = ["--num-workers", "0", "--num-temporal-views", "2", "--num-spatial-views", "3", "--json", str(target)]
    assert main(["evaluate", str(run), "--data", str(clips), *flags]) == 0
    shown = capsys.readouterr().out
    assert all(title in shown for title in ("Evaluation", "By class", "Confusion"))
    report = json.loads(target.read_text(encoding="utf-8"))
    assert report["labels"] == CLASSES
    assert report["num_clips"] == len(report["predictions"]) == 8
    assert f"{100 * report['top1']:.1f} %" in shown


def test_evaluate_asks_whether_time_matters_unless_told_not_to(
    run: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, shown in (([], 1), (["--no-time-check"], 0)):
        assert main(["evaluate", str(run), "--data", str(clips), "--num-workers", "0", *flags]) == 0
        assert capsys.readouterr().out.count("Does time matter?") == shown


def test_evaluate_tells_how_many_clips_were_trained_on(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path, clips_per_class=1, size=32, num_frames=8, seed=1)
    for data, told in ((clips, ["8 of 8 clips were trained on"]), (tmp_path, [])):
        assert main(["evaluate", str(run), "--data", str(data), "--num-workers", "0", "--no-time-check"]) == 0
        assert re.findall(r"\d+ of \d+ clips? were trained on", capsys.readouterr().err) == told


def test_evaluate_does_not_take_new_clips_for_ones_that_were_trained_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "clips"
    write_clips(data, clips_per_class=4, size=32, num_frames=8)
    spec = json.loads((run / "stadapter.json").read_text())
    spec["receipt"]["settings"]["data"] = str(data)
    moved = Path(shutil.copytree(run, tmp_path / "run"))
    (moved / "stadapter.json").write_text(json.dumps(spec))
    write_clips(data, clips_per_class=5, size=32, num_frames=8)
    assert main(["evaluate", str(moved), "--data", str(data), "--num-workers", "0", "--no-time-check"]) == 0
    assert re.search(r"up to 20 of 20 clips were trained on", capsys.readouterr().err)


def test_evaluate_writes_a_page_only_where_it_is_told_to(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_training = (run / "report.html").read_bytes()
    evaluate = ["evaluate", str(run), "--data", str(clips), "--num-workers", "0"]
    assert main(evaluate) == 0
    views = ["--num-temporal-views", "2", "--num-spatial-views", "1"]
    assert main([*evaluate, *views, "--report", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"stadapter evaluate {run} --data {clips}" in page
    assert "2 frames of 16 x 16 pixels, 2 views" in page
    assert page.count("data:image/jpeg") >= 4
    assert (run / "report.html").read_bytes() == of_training
    assert f"wrote {tmp_path / 'page.html'}" in capsys.readouterr().err
    code, message = refused(capsys, *evaluate, "--report", tmp_path / "no such folder" / "page.html")
    assert code == 2
    assert "expected --report to name a file in an existing, writable folder" in message


def test_evaluate_puts_json_alone_on_standard_output(
    run: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--data", str(clips), "--num-workers", "0", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_clips"] == 8
    assert "By class" in captured.err


def test_evaluate_uses_the_views_that_are_asked_for(
    run: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("stadapter.evaluation")
    real, seen = module.evaluate, []
    monkeypatch.setattr(module, "evaluate", lambda *given, **named: seen.append(given[2]) or real(*given, **named))
    for views in ([], ["--num-temporal-views", "3"], ["--num-spatial-views", "1"]):
        assert main(["evaluate", str(run), "--data", str(clips), "--num-workers", "0", *views]) == 0
    assert [(clip.num_temporal_views, clip.num_spatial_views) for clip in seen] == [(1, 3), (3, 3), (1, 1)]


def test_evaluate_computes_in_the_precision_that_is_asked_for(run: Path, clips: Path, tmp_path: Path) -> None:
    reports = []
    for precision in ("fp32", "bf16"):
        target = tmp_path / f"{precision}.json"
        flags = ["--num-workers", "0", "--no-time-check", "--precision", precision, "--json", str(target)]
        assert main(["evaluate", str(run), "--data", str(clips), *flags]) == 0
        reports.append(json.loads(target.read_text(encoding="utf-8")))
    exact, rounded = reports
    assert [report["evaluation"]["precision"] for report in reports] == ["fp32", "bf16"]
    assert rounded["loss"] != exact["loss"]
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.05)


def test_evaluate_refuses_classes_the_model_does_not_know(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path, classes=["up", "grow"], clips_per_class=1, size=32, num_frames=4)
    code, message = refused(capsys, "evaluate", run, "--data", tmp_path, "--num-workers", "0")
    assert code == 1
    assert "grow" in message


def test_a_report_that_cannot_be_written_is_an_error(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is evaluated."""
    for target in (tmp_path / "no such folder" / "report.json", tmp_path, ""):
        code, message = refused(capsys, "evaluate", run, "--data", clips, "--num-workers", "0", "--json", target)
        assert code == 2
        assert message.startswith(f"error: cannot write {str(target)!r}; ")


def test_a_report_that_cannot_be_written_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_json(str(tmp_path / "report.json"), {"top1": 0.5})
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ArtefactError, match="No space left on device; make room"):
        write_json(str(tmp_path / "report.json"), {"top1": 0.9})
    assert json.loads((tmp_path / "report.json").read_text()) == {"top1": 0.5}


def test_a_report_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("report.json")
    for report in ({"top1": 0.5}, {"top1": 0.9}):
        write_json(str(tmp_path / "link.json"), report)
        assert json.loads((tmp_path / "report.json").read_text()) == report


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_report_can_go_into_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    named = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    unnamed, end = os.pipe()
    for target, reader in ((str(tmp_path / "pipe"), named), (f"/dev/fd/{end}", unnamed)):
        write_json(target, {"top1": 0.5})
        assert json.loads(os.read(reader, 100)) == {"top1": 0.5}
    for descriptor in (named, unnamed, end):
        os.close(descriptor)


@pytest.fixture
def mixed(clips: Path, tmp_path: Path) -> list[str]:
    """A good file, a damaged one, one that is not there, a folder with two videos and a note, an empty folder."""
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    folder, empty = tmp_path / "folder", tmp_path / "empty"
    (folder / "inner").mkdir(parents=True)
    empty.mkdir()
    (folder / "b.mp4").write_bytes((clips / "up" / "up_01.mp4").read_bytes())
    (folder / "inner" / "a.mp4").write_bytes((clips / "left" / "left_00.mp4").read_bytes())
    (folder / "notes.txt").write_text("not a video")
    good = clips / "up" / "up_00.mp4"
    return [str(path) for path in (good, tmp_path / "bad.mp4", tmp_path / "none.mp4", folder, empty)]


def expected_rows(mixed: list[str]) -> list[tuple[str, bool]]:
    good, bad, none, folder, empty = mixed
    return [
        (good, True),
        (bad, False),
        (none, False),
        (f"{folder}/b.mp4", True),
        (f"{folder}/inner/a.mp4", True),
        (empty, False),
    ]


def test_predict_writes_json_lines(run: Path, mixed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), *mixed, "--format", "json", "--top-k", "2"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [(row["video"], "label" in row) for row in rows] == expected_rows(mixed)
    classifier = Classifier.load(run)
    for row in rows:
        if "label" not in row:
            assert row["error"]
            continue
        assert len(row["scores"]) == 2
        assert row["scores"][row["label"]] == row["score"]
        assert row["score"] == pytest.approx(classifier.predict(row["video"]).score, abs=1e-6)
    assert "skipped 1 file other than videos" in captured.err
    assert "3 of 6 could not be read" in captured.err


def test_predict_writes_csv(run: Path, mixed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), *mixed, "--format", "csv", "--top-k", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["video", "label", "score", "label_2", "score_2", "error"]
    assert [(row["video"], not row["error"]) for row in rows] == expected_rows(mixed)
    for row in rows:
        assert (row["label"] in CLASSES) == (not row["error"])
        assert not row["label"] or float(row["score"]) >= float(row["score_2"])


def test_predict_names_the_windows_of_a_video(run: Path, mixed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = mixed[:2]
    command = ["predict", str(run), good, bad, "--window-seconds", "0.1"]
    assert main([*command, "--format", "json"]) == 0
    *windows, broken = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(windows) > 1
    assert [row["start_seconds"] for row in windows[:2]] == [0.0, 0.1]
    assert {row["video"] for row in windows} == {good}
    assert (broken["video"], "start_seconds" in broken) == (bad, False)
    assert main([*command, "--format", "csv"]) == 0
    first, *_, last = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert list(first)[:4] == ["video", "start_seconds", "end_seconds", "label"]
    assert (first["start_seconds"], first["end_seconds"]) == ("0.0", "0.1")
    assert (last["start_seconds"], bool(last["error"])) == ("", True)
    assert main(command) == 0
    assert f"{Path(good).name} [0.1 to 0.2 s]" in capsys.readouterr().out.replace("\n", "")
    assert "--stride-seconds without --window-seconds" in refused(capsys, *command[:3], "--stride-seconds", "1")[1]


def test_predict_takes_the_clips_of_a_list(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = clips / "parts.csv"
    listed.write_text(
        "path,start,end,label\n"
        "up/up_00.mp4,0,0.2,up\n"
        f"{clips}/left/left_00.mp4,,,\n"
        "up/up_00.mp4,,0.1,left\n"
        "none.mp4,,,up\n"
        "up/up_00.mp4,late,,up\n"
    )
    up, left = clips / "up" / "up_00.mp4", clips / "left" / "left_00.mp4"
    try:
        assert main(["predict", str(run), str(listed), "--format", "json"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert main(["predict", str(run), str(listed), "--format", "csv"]) == 0
        written = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert "starts and ends" in refused(capsys, "predict", run, listed, "--window-seconds", "1")[1]
    finally:
        listed.unlink()
    assert "line 6: found 'late' as a time" in rows[0]["error"]
    assert [row["video"] for row in rows[1:]] == [str(up), str(left), str(up), f"{clips}/none.mp4"]
    assert [(row.get("start_seconds"), row.get("end_seconds")) for row in rows[1:4]] == [
        (0.0, 0.2),
        (None, None),
        (None, 0.1),
    ]
    assert "no such file" in rows[4]["error"]
    classifier = Classifier.load(run)
    part = classifier.predict(up, end_seconds=0.1)
    assert (rows[3]["label"], rows[3]["score"]) == (part.label, pytest.approx(part.score, abs=1e-6))
    assert [(row["start_seconds"], row["end_seconds"]) for row in written[1:4]] == [
        ("0.0", "0.2"),
        ("", ""),
        ("", "0.1"),
    ]


def test_predict_takes_a_list_with_a_path_in_every_line(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "clips.txt"
    listed.write_text(f"{clips}/up/up_00.mp4\n\n  one, two.MP4\n")
    assert main(["predict", str(run), str(listed), "--format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["video"] for row in rows] == [f"{clips}/up/up_00.mp4", f"{tmp_path}/one, two.MP4"]
    assert "label" in rows[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [("", "is empty"), ("path,start,end\n", "no videos in this list"), ("name,clip\n", "unknown columns name,clip")],
)
def test_a_list_without_clips_is_a_row(
    run: Path, tmp_path: Path, text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "clips.csv").write_text(text)
    assert main(["predict", str(run), str(tmp_path / "clips.csv"), "--format", "json"]) == 1
    assert why in json.loads(capsys.readouterr().out)["error"]


def test_predict_shows_a_table_that_a_pipe_does_not_cut(
    run: Path, mixed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["predict", str(run), *mixed]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name, _ in expected_rows(mixed))
    assert shown.count("error") == 3
    assert ESCAPE not in shown


def test_more_classes_than_there_are_can_be_asked_for(
    run: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run), str(clips / "up"), "--format", "csv", "--top-k", "9"]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert header.split(",")[-2:] == ["score_4", "error"]


def test_predict_fails_when_nothing_could_be_read(
    run: Path, mixed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(run), mixed[1], mixed[2], "--format", "json"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert "2 of 2 could not be read" in captured.err


@pytest.mark.parametrize("flags", [[], ["clip.mp4", "--top-k", "0"], ["clip.mp4", "--batch-size", "0"], [""]])
def test_predict_without_sense_is_wrong_usage(run: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "predict", run, *flags)[0] == 2


def test_a_name_that_begins_with_a_tilde_is_a_name(
    run: Path, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "~clip.mp4").write_bytes((clips / "up" / "up_00.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    for given in ("./~clip.mp4", "~clip.mp4", "."):
        assert main(["predict", str(run), given, "--format", "csv"]) == 0
        assert "~clip.mp4," in capsys.readouterr().out
    assert "~nosuchuser/clips: no such file" in refused(capsys, "train", "--data", "~nosuchuser/clips", "--out", "o")[1]


def test_control_characters_in_names_do_not_reach_the_terminal(
    run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a\x1b[31m.mp4").write_bytes((clips / "up" / "up_00.mp4").read_bytes())
    (tmp_path / "b\x1b[31m.mp4").write_bytes(b"no video")
    assert main(["predict", str(run), str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert r"a\x1b[31m.mp4" in shown
    assert r"b\x1b[31m.mp4" in shown
    assert "\x1b[31m.mp4" not in shown
    assert r"a\x1b[31m: no such file" in refused(capsys, "train", "--data", "a\x1b[31m", "--out", tmp_path / "o")[1]


def test_names_with_bytes_that_are_no_text_are_shown(run: Path, clips: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    try:
        Path(os.fsdecode(name)).write_bytes((clips / "up" / "up_00.mp4").read_bytes())
    except OSError:
        pytest.skip("this file system takes text only")
    found = stadapter("predict", run, os.fsdecode(name))
    assert found.returncode == 0, found.stderr
    assert "caf" in found.stdout


def test_a_reader_that_goes_away_ends_the_batch_quietly(run: Path, clips: Path) -> None:
    command = [sys.executable, "-m", "stadapter", "predict", str(run), str(clips), "--format", "json"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert message == ""


def test_the_users_home_may_be_written_as_a_tilde(
    run: Path, clips: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(clips))
    assert main(["predict", str(run), "~/up", "~/left/left_00.mp4", "--format", "csv"]) == 0
    names = [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == [str(clips / name) for name in ("up/up_00.mp4", "up/up_01.mp4", "left/left_00.mp4")]


def test_a_folder_that_cannot_be_listed_is_a_row_and_hides_nothing(
    run: Path, mixed: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = os.listdir

    def refuse(folder: str | Path) -> list[str]:
        if Path(folder).name == "inner":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return listing(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    main(["predict", str(run), mixed[3], "--format", "json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "inner cannot be listed (Permission denied)" in rows[0]["error"]
    assert rows[1]["video"] == f"{mixed[3]}/b.mp4"
    assert "label" in rows[1]


def test_an_address_is_no_video(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run), "https://example.com/a.mp4", "--format", "csv"]) == 1
    assert "https://example.com/a.mp4: a URL; expected a file or folder" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="needs a shell that closes files")
@pytest.mark.parametrize("arguments", [["--help"], ["predict"]])
def test_nobody_need_listen(run: Path, clips: Path, arguments: list[str]) -> None:
    if arguments == ["predict"]:
        arguments = ["predict", str(run), str(clips / "up" / "up_00.mp4")]
    command = shlex.join([sys.executable, "-m", "stadapter", *arguments])
    ended = subprocess.run(f"{command} >&-", shell=True, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)


def test_convert_makes_a_run_folder_with_the_names_of_a_file(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = save_trunk(tmp_path / "clip", "clip")
    checkpoint = write_released(tmp_path / "checkpoint-49.pth", released_weights(trunk))
    (tmp_path / "labels.txt").write_text("push\npull\nlift\n")
    out = tmp_path / "a run"
    flags = f"--backbone {trunk} --labels {tmp_path / 'labels.txt'} --num-temporal-views 3 --size 32"
    assert main(["convert", str(checkpoint), "--out", str(out), *flags.split()]) == 0
    said = capsys.readouterr().err
    assert f"saved in {out}: 3 classes, trained " in said
    assert f"next: stadapter predict '{out}' clip.mp4" in said
    classifier = Classifier.load(out)
    assert classifier.labels == ("push", "pull", "lift")
    assert (classifier.clip_config.num_temporal_views, classifier.clip_config.resize) == (3, "released")
    assert main(["predict", str(out), str(clips / "up"), "--format", "json"]) == 0


def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save([1, 2], tmp_path / "x.pth")
    code, message = refused(capsys, "convert", tmp_path / "x.pth", "--backbone", "none", "--out", tmp_path / "run")
    assert code == 1
    assert "holds no dict of tensors" in message
