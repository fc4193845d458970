"""How many cores a process may use, in a container and outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stadapter import cli, cores

VERSION_1 = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")


@pytest.fixture
def control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cpu").mkdir()
    monkeypatch.setattr(cores, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_count_visible", lambda: 16)
    for name in cores._THREAD_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "5000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 16),
        ({"cpu.max": "damaged"}, 16),
        (dict(zip(VERSION_1, ("-1\n", "100000\n"), strict=True)), 16),
        (dict(zip(VERSION_1, ("350000\n", "100000\n"), strict=True)), 4),
        ({VERSION_1[0]: "350000\n"}, 16),
    ],
)
def test_a_container_s_limit_counts_under_both_versions_of_control_groups(
    files: dict[str, str], expected: int, control_groups: Path
) -> None:
    for name, content in files.items():
        (control_groups / name).write_text(content)
    assert cores.count_cores() == expected


def test_without_a_limit_all_cores_that_this_process_may_run_on_count(
    control_groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cores, "_CONTROL_GROUPS", control_groups)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores.count_cores() == allowed


def test_threads_are_limited_only_below_the_visible_cores_and_unless_someone_has_chosen(
    control_groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    (control_groups / "cpu.max").write_text("300000 100000")
    monkeypatch.setenv("MKL_NUM_THREADS", "5")
    cores.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    cores.limit_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("MKL_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS")
    with pytest.raises(SystemExit):
        cli.run("check", ["--help"])
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_torch_computes_on_as_many_threads(control_groups: Path) -> None:
    (control_groups / "cpu.max").write_text("100000 100000")
    script = (
        "from pathlib import Path; from stadapter import cores; "
        f"cores._CONTROL_GROUPS = Path({str(control_groups)!r}); cores.limit_threads(); "
        "import torch; print(torch.get_num_threads())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "1"
