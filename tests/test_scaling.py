"""docs/scaling.md says what its script gives, and its arithmetic is that of the program's own models."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gpu
import scaling
from stadapter.benchmark import scale
from stadapter.benchmark.config import BenchmarkConfig
from stadapter.benchmark.networks import NUM_CLASSES, make_networks, sizes_of
from stadapter.benchmark.runner import benchmark
from stadapter.costs import gmacs_per_view

CPU = torch.device("cpu")
TINY: dict[str, Any] = {"trunk": "tiny", "batch_size": 2, "num_frames": 2, "repeats": 1, "device": "cpu"}
GPU = {
    "date": "2030-01-02 03:04 UTC",
    "machine": {"device": "NVIDIA Made-up", "product_flops_per_second": {"bf16": 600e12}},
    "settings": {"presets": ["12x384"], "precisions": ["bf16"]},
    "cases": [
        {"part": "model", "name": "training step, 12x384, bf16", "seconds": {}, "facts": {"clips": 1}},
        {
            "part": "scale",
            "name": "training step, 12x384, bf16",
            "flops": 64 * 582e9,
            "facts": {"clips": 64, "peak_bytes": {"ours": 24_000_000_000, "gradient checkpointing": 5_500_000_000}},
            "seconds": {
                "ours": {"median": 0.16},
                "gradient checkpointing": {"median": 0.20},
                "compiled": {"median": 0.128},
            },
        },
        {
            "part": "scale",
            "name": "inference, 12x384, bf16",
            "facts": {"clips": 64},
            "seconds": {"ours": {"median": 0.05}},
        },
        {"part": "clips", "name": "training, 240p-300-frames-gop-12", "seconds": {"ours": {"median": 0.004}}},
        {"part": "clips", "name": "training, 240p-300-frames-gop-250", "seconds": {"ours": {"median": 0.01}}},
        {"part": "clips", "name": "training, 480p-300-frames-gop-250", "seconds": {"ours": {"median": 0.03}}},
    ],
}
"""What experiments/gpu.py might write: 400 clips a second, 500 compiled, 320 with gradient checkpointing."""


def cells(table: str, start: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_is_what_the_script_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "scaling.md"
    shutil.copyfile(scaling.PAGE, page)
    monkeypatch.setattr(scaling, "PAGE", page)
    scaling.main()
    assert page.read_text(encoding="utf-8") == (scaling.ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def test_a_measured_gpu_fills_its_row() -> None:
    row = cells(scaling.measured_table({"made-up": GPU}), "NVIDIA Made-up")
    assert row[1:6] == ["bf16", "400", "320", "500", "39 %"]
    assert row[6:] == ["24", "5.5", "1,280", "100", "`benchmarks/made-up.json`, 2030-01-02"]
    assert "none has been measured" in scaling.measured_table({})
    assert "none has been measured" not in scaling.measured_table({"made-up": GPU})


def test_the_time_of_the_recipe_follows_from_the_rate() -> None:
    table = scaling.kinetics_table(scaling.facts(), {"made-up": GPU})
    row = cells(table, "NVIDIA Made-up, measured")
    assert row[1:6] == ["400", "2 h", "15 min", "112 s", "160 ms"]  # 12 x 240,000 clips at 400 a second
    assert row[-1] == "3,200"
    assert all("assumed" in line or "measured" in line for line in table.splitlines()[2:])
    assert "measured" not in scaling.kinetics_table(scaling.facts(), {})


def test_files_that_are_no_benchmark_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"machine": "a"}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "gpu.json").write_text(json.dumps(GPU))
    assert list(scaling.read_benchmarks(tmp_path)) == ["gpu"]


@pytest.mark.parametrize("preset", ["12x384", "24x384"])
def test_parameters_and_arithmetic_are_those_of_the_model(preset: Any) -> None:
    sizes = sizes_of(BenchmarkConfig(**{**TINY, "batch_size": 1}), preset, CPU)
    model = make_networks(sizes, CPU).ours()
    assert scaling.trained_parameters(sizes) == model.count_parameters().trained
    counted = gmacs_per_view(model, num_frames=2, size=sizes.image_size)
    products = scaling.flops(scaling.forward_products(sizes)) / 2e9
    assert products == pytest.approx(counted, rel=0.03)  # beside the products: convolutions, prefix tokens
    assert NUM_CLASSES == 400


@pytest.mark.filterwarnings("ignore")  # of a compiler
def test_one_device_is_verified_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "COMPILER", "eager")
    result = benchmark(BenchmarkConfig(**TINY, parts=("scale",), presets=("12x384",), precisions=("fp32",)))
    step, inference = result["cases"]
    sides = ["ours", "gradient checkpointing", "compiled", "compiled, gradient checkpointing", "matrix products"]
    assert list(step["seconds"]) == sides
    assert list(inference["seconds"]) == ["ours", "compiled", "matrix products"]
    assert step["equal"]
    assert inference["equal"]
    assert len(step["checks"]) == 3
    saved = step["facts"]["saved_bytes"]
    assert saved["gradient checkpointing"] < saved["ours"]
    row = cells(scaling.measured_table({"cpu": result}), scaling.device_text(result))
    assert float(row[2].replace(",", "")) == pytest.approx(2 / step["seconds"]["ours"]["median"], rel=0.01)


def test_what_cannot_be_compiled_is_told_and_the_rest_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "COMPILER", "no-such-backend")
    result = benchmark(BenchmarkConfig(**TINY, parts=("scale",), presets=("12x384",), precisions=("fp32",)))
    assert all("no-such-backend" in case["notes"][0] and case["equal"] for case in result["cases"])
    assert "compiled" not in result["cases"][0]["seconds"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_script_for_a_gpu_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "COMPILER", "eager")
    out = tmp_path / "try.json"
    assert gpu.main(["--out", str(out), "--device", "cpu", "--trunk", "tiny"]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {case["part"] for case in result["cases"]} == {"adapter", "model", "scale", "clips", "loop"}
    assert result["machine"]["product_flops_per_second"].keys() == {"fp32", "bf16"}
    assert (result["gpu"], result["gpu_tests"]) == (None, None)
    assert scaling.read_benchmarks(tmp_path)
