"""A GPU verified and measured in one call of a few minutes, as one JSON file with hardware, versions and date.

    python experiments/gpu.py --out benchmarks/h200.json [--reference ST_ADAPTER_CHECKOUT]
    python experiments/gpu.py --out try.json --device cpu --trunk tiny        tries this script without one

First the tests that need a GPU (with REQUIRE_GPU=1), then `stadapter benchmark` in bf16, which is what a GPU trains in:
the adapter, the model, the step and inference with and without gradient checkpointing and torch.compile, peak memory,
the copy to the device, the training loop and decoding on one core, each verified before it is timed, beside the matrix
products alone and beside the released code, in fp16 as it trains, where a checkout of it is given. `python
experiments/scaling.py` and `python experiments/speed.py` then fill the tables of docs/scaling.md and docs/speed.md.
The file is written anew after every case: what is stopped has what was measured until then. The exit code is 1 where
a test or a case failed or two sides were not equal.

The package must be importable, installed or by PYTHONPATH=src, with av, tyro and pytest beside what it computes with.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from stadapter.benchmark.config import BenchmarkConfig
from stadapter.benchmark.runner import all_equal, benchmark
from stadapter.benchmark.tables import tables
from stadapter.durable import write_whole
from stadapter.machine import choose_device

ROOT = Path(__file__).resolve().parents[1]
TEST_SECONDS = 240
"""The tests take a minute or two; the rest of a call is for what is measured."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--reference", help="checkout of the released code; default none")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try this script (default: cuda)")
    parser.add_argument("--trunk", choices=("b16", "tiny"), default="b16", help="size of the trunk (default: b16)")
    parser.add_argument("--batch-size", type=int, help="clips of a step (default: 32, on a CPU 2)")
    parser.add_argument("--repeats", type=int, help="rounds of measuring (default: 3, on a CPU 1)")
    flags = parser.parse_args(arguments)
    started = time.monotonic()
    device = choose_device(flags.device)
    on_gpu = device.type == "cuda"
    known: dict[str, Any] = {
        "gpu_tests": run_gpu_tests() if on_gpu else None,
        "gpu": describe_gpu(device) if on_gpu else None,
    }

    def keep(result: dict[str, Any]) -> None:
        result |= {**known, "minutes": round((time.monotonic() - started) / 60, 1)}
        write_whole(flags.out, (json.dumps(result, indent=1) + "\n").encode())

    def say(name: str) -> None:
        print(f"{time.monotonic() - started:.0f} s: {name}", file=sys.stderr, flush=True)

    result = benchmark(make_config(flags, device), progress=say, keep=keep)
    Console(width=160).print(tables(result), highlight=False)
    return 0 if all_equal(result) and (not on_gpu or known["gpu_tests"]["exit_code"] == 0) else 1


def make_config(flags: argparse.Namespace, device: torch.device) -> BenchmarkConfig:
    """All of it at the sizes of the paper, or small."""
    on_cpu, tiny = device.type == "cpu", flags.trunk == "tiny"
    return BenchmarkConfig(
        parts=("adapter", "model", "scale", "loop", "clips"),
        precisions=("fp32", "bf16") if on_cpu else ("bf16",),
        reference=flags.reference,
        trunk=flags.trunk,
        batch_size=flags.batch_size or (2 if on_cpu else 32),
        num_frames=2 if tiny else 8,
        clip_heights=(64,) if tiny else (240, 480),
        clip_frames=(24,) if tiny else (300,),
        clip_gops=(12,) if tiny else (12, 250),
        loop_clips=4 if tiny else None,
        repeats=flags.repeats or (1 if on_cpu else 3),
        device=str(device),
    )


def run_gpu_tests() -> dict[str, Any]:
    """The tests marked gpu, which fail without one."""
    # By name, so that nothing else need import; plugins of the machine's own are no part of it.
    files = ["tests/test_gpu.py", "tests/test_compiled.py"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *files]
    paths = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "REQUIRE_GPU": "1", "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=TEST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"exit_code": None, "last_line": f"not done after {TEST_SECONDS} s"}
    print(done.stdout, file=sys.stderr)
    return {"exit_code": done.returncode, "last_line": (done.stdout.strip().splitlines() or [""])[-1]}


def describe_gpu(device: torch.device) -> dict[str, Any]:
    """Its name, memory and CUDA version."""
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "capability": f"{found.major}.{found.minor}",
        "cuda": torch.version.cuda,
    }


if __name__ == "__main__":
    sys.exit(main())
