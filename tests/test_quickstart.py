import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from rich.console import Console

from stadapter.__main__ import main
from stadapter.backbones import load_backbone
from stadapter.errors import SettingsError, TrainingError
from stadapter.hands import CLASSES
from stadapter.quickstart.config import QuickstartConfig
from stadapter.quickstart.runner import RESULT_NAME, quickstart
from stadapter.quickstart.tables import tables

SMALL = {"seed": 0, "train_clips_per_class": 1, "test_clips_per_class": 1, "epochs": 1}


def small(folder: Path, **changes: int) -> QuickstartConfig:
    return QuickstartConfig(out=str(folder), **SMALL | changes)


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a finished one, and what the verb that made it said on standard output and standard error."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    flags = [text for name, value in SMALL.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        assert main(["quickstart", "--out", str(folder), *flags]) == 0
    return folder, output.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def finished(told: tuple[Path, str, str]) -> Path:
    return told[0]


def test_it_leaves_clips_two_run_folders_and_a_result(finished: Path) -> None:
    result = json.loads((finished / RESULT_NAME).read_text())
    assert list(result["runs"]) == ["linear-probe", "st-adapter"]
    assert result["runs"]["linear-probe"]["steps"] == result["runs"]["st-adapter"]["steps"] == 1
    for name, run in result["runs"].items():
        spec = json.loads((finished / name / "stadapter.json").read_text())
        assert spec["backbone"]["name"] == "tiny"
        assert run["top1"] == spec["receipt"]["metrics"]["top1"]
        assert 0 <= run["top1_interval"]["low"] <= run["top1"] <= run["top1_interval"]["high"] <= 1
    assert result["runs"]["linear-probe"]["trained_parameters"] < result["runs"]["st-adapter"]["trained_parameters"]
    assert [each["label"] for each in result["unseen"]] == list(CLASSES)
    assert all((finished / each["clip"]).is_file() and each["label"] in each["clip"] for each in result["unseen"])


def test_its_table_shows_both_and_names_the_unseen_clip(finished: Path) -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(tables(json.loads((finished / RESULT_NAME).read_text())))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "linear probe" in shown
    wrong = [
        each
        for each in json.loads((finished / RESULT_NAME).read_text())["unseen"]
        if each["predicted"] != each["label"]
    ]
    assert f"Of 8 more clips, one per class, ST-Adapter classifies {8 - len(wrong)} correctly" in shown
    assert wrong  # one step teaches nothing, and that is told
    assert f"it mistakes {wrong[0]['label']} for {wrong[0]['predicted']} (" in " ".join(shown.split())


def test_a_finished_one_is_refused(finished: Path) -> None:
    with pytest.raises(SettingsError, match="holds a finished quickstart"):
        quickstart(small(finished), console=quiet())


def test_an_unfinished_one_with_other_settings_is_refused(tmp_path: Path, finished: Path) -> None:
    result = json.loads((finished / RESULT_NAME).read_text())
    del result["unseen"]
    (tmp_path / RESULT_NAME).write_text(json.dumps(result))
    with pytest.raises(SettingsError, match="epochs was 1, is 2"):
        quickstart(small(tmp_path, epochs=2), console=quiet())


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SettingsError, match="was not made by quickstart"):
        quickstart(small(tmp_path), console=quiet())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match="file is a file; choose another --out"):
        quickstart(QuickstartConfig(out=str(tmp_path / "file")), console=Console(file=io.StringIO()))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"train_clips_per_class": 0}, {"test_clips_per_class": 0}, {"epochs": 0}]
)
def test_a_wrong_number_is_refused_before_anything_is_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="expected at least"):
        quickstart(small(tmp_path / "q", **wrong), console=quiet())
    assert not (tmp_path / "q").exists()


def test_a_second_one_keeps_out_of_a_folder_in_use(tmp_path: Path) -> None:
    hold = "import sys; from pathlib import Path; from stadapter.training.run_folder import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    folder = tmp_path / "q"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        (folder / "st-adapter").mkdir()  # where the other has not written its first checkpoint yet
        (folder / RESULT_NAME).write_text(json.dumps({"settings": SMALL, "runs": {}}))
        with pytest.raises(TrainingError, match="is training in"):
            quickstart(small(folder), console=quiet())
        assert (folder / "st-adapter").is_dir()
        other.communicate(b"")


def test_an_interrupted_one_goes_on_and_ends_the_same(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "a")
    result = json.loads((tmp_path / "a" / RESULT_NAME).read_text())
    del result["unseen"], result["runs"]["st-adapter"]
    (tmp_path / "a" / RESULT_NAME).write_text(json.dumps(result))
    again = quickstart(small(tmp_path / "a"), console=quiet())
    whole = json.loads((finished / RESULT_NAME).read_text())
    assert again["unseen"] == whole["unseen"]
    weights = [folder / "st-adapter" / "stadapter.safetensors" for folder in (tmp_path / "a", finished)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_verb_prints_the_table_and_what_to_do_next(told: tuple[Path, str, str]) -> None:
    folder, output, errors = told
    assert "ST-Adapter" in output
    assert f"next: stadapter predict {folder / 'st-adapter'}" in errors


def test_the_embedded_trunk_is_small_and_what_the_record_says() -> None:
    import stadapter

    folder = Path(stadapter.__file__).parent / "tiny"
    assert (folder / "model.safetensors").stat().st_size < 8 * 2**20
    record = json.loads((Path(__file__).parents[1] / "results" / "tiny.json").read_text())
    assert load_backbone("tiny").info.sha256 == record["sha256"]


@pytest.mark.slow
def test_st_adapter_sees_time_and_a_linear_probe_does_not(tmp_path: Path) -> None:
    runs = quickstart(QuickstartConfig(out=str(tmp_path / "q")), console=quiet())["runs"]
    assert runs["linear-probe"]["top1"] <= 0.55
    assert runs["st-adapter"]["top1"] >= 0.90


def test_the_readme_shows_what_the_quickstart_gave() -> None:
    root = Path(__file__).parents[1]
    result = json.loads((root / "results" / "quickstart.json").read_text())
    runs = result["runs"]
    readme = (root / "README.md").read_text()
    table = readme.split("<!-- quickstart:begin -->")[1].split("<!-- quickstart:end -->")[0]
    assert f"{result['seconds'] / 60:.1f} minutes" in table
    for run in runs.values():
        assert f"| {run['trained_parameters']:,} | {100 * run['top1']:.1f} % |" in table
    assert runs["linear-probe"]["top1"] <= 0.55
    assert runs["st-adapter"]["top1"] >= 0.90
