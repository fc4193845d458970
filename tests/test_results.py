"""The published results: the pages say what the result files hold, and nothing of the machine they were made on."""

import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import comparison
import gestures
import speed
from scaling import is_gpu, read_benchmarks

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("results", "benchmarks")
RESULTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.json"))
PAGES = ("README.md", "docs/results.md", "docs/speed.md")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the pages and the result files, which the scripts take for the project."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "docs").mkdir()
    for name in PAGES:
        shutil.copyfile(ROOT / name, tmp_path / name)
    for module in (gestures, comparison, speed):
        _move(module, tmp_path, monkeypatch)
    return tmp_path


def _move(module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in list(vars(module).items()):
        if isinstance(value, Path) and value.is_relative_to(ROOT):
            monkeypatch.setattr(module, name, folder / value.relative_to(ROOT))


def test_the_pages_are_what_the_result_files_give(elsewhere: Path) -> None:
    gestures.write_tables()
    comparison.write_page()
    speed.write_page()
    written = [path.relative_to(elsewhere) for path in elsewhere.rglob("*") if path.is_file()]
    assert len(written) > len(RESULTS)
    assert [name for name in written if (elsewhere / name).read_bytes() != (ROOT / name).read_bytes()] == []


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_result_files_are_json_without_paths_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    json.loads(text)
    assert not re.search(r'"/[a-z]+/|/home/|/tmp/|/root/|[A-Z]:\\\\', text)


def test_the_command_of_a_benchmark_has_every_setting_that_is_not_the_default() -> None:
    settings = {"parts": ["model"], "batch_size": 4, "num_frames": 8, "repeats": 9, "threads": None}
    told = speed.command({"reference": None, "settings": settings})
    assert told == "stadapter benchmark --parts model --batch-size 4 --repeats 9"
    told = speed.command({"reference": {"notes": []}, "settings": {"clip_heights": [240, 480]}})
    assert told == "stadapter benchmark --reference st-adapter --clip-heights 240 480"


def test_the_table_of_aims_tells_how_many_fall_short() -> None:
    def case(name: str, **ratios: dict[str, float]) -> dict[str, object]:
        return {"name": name, "equal": True, "seconds": {}, **ratios}

    cases = [
        case("step, fp32", times_as_fast_as={"released, fp32": 2.996, "ours, otherwise": 1.0}),
        case("step, bf16", times_as_fast_as={"released, fp32": 12.34}, times_the_floor={"products": 1.2}),
        case("another step, bf16", times_as_fast_as={"released, fp32": 0.1}),
    ]
    at_least = speed.Aim("a", "step, .*", speed.FASTER, "released", 3)
    at_most = speed.Aim("b", "step, .*", speed.OVER, "prod", 1.1)
    table = speed.aims_table([at_least, at_most], {"one": {"cases": cases}, "two": {"cases": []}})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["", "aim", "`one.json`", "`two.json`"]
    assert lines[2] == ["a", "at least 3", "3.00 to 12.34", "—"]
    assert lines[3] == ["b", "at most 1.1", "1.20; **1 of 1 short**", "—"]
    assert speed.aims_table([at_least], {}).splitlines()[-1] == "| a | at least 3 | — |"
    wrong = {"name": "step, fp16", "equal": False}
    assert at_least.cell({"cases": [wrong]}).endswith("**1 of 1 short**")


@pytest.mark.parametrize("aim", speed.CPU_AIMS, ids=lambda aim: aim.work)
def test_every_aim_of_a_cpu_is_found_in_every_file_of_one(aim: speed.Aim) -> None:
    results = [result for result in read_benchmarks(ROOT / "benchmarks").values() if not is_gpu(result)]
    assert len(results) >= 2
    assert all(aim.ratios(result) for result in results)
