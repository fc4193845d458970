"""The tables of docs/scaling.md: what was measured on a device, and arithmetic on what is known.

    python experiments/scaling.py

Measured rows come from benchmarks/*.json, which `stadapter benchmark --json` and experiments/gpu.py write; without a
file of a GPU its rows stay empty. Everything else is arithmetic: on the matrix products that a step cannot do without
(stadapter.benchmark.floors), and on rates that are assumed and said to be.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gestures import replace_between
from stadapter.benchmark.config import BenchmarkConfig
from stadapter.benchmark.floors import Sizes, backward_products, flops, forward_products
from stadapter.benchmark.networks import NUM_CLASSES, make_networks, sizes_of
from stadapter.benchmark.tables import share_of_rate
from stadapter.comparison.tables import markdown_table
from stadapter.costs import checkpointing_cost
from stadapter.training.recipes import k400_b16
from stadapter.wording import duration

ROOT = Path(__file__).resolve().parents[1]
PAGE, MEASURED = ROOT / "docs" / "scaling.md", ROOT / "benchmarks"
RECIPE = k400_b16("-", "-")
KINETICS_CLIPS = 240_000
ASSUMED_SHARE = 0.35
"""Of a GPU's published rate, that training is assumed to reach: an aim, not a measurement."""
PUBLISHED_RATES = {"A100 (SXM)": 312e12, "H100 (SXM)": 989e12}
"""Dense bf16 operations a second, from NVIDIA's data sheets."""
ASSUMED_COPY, ASSUMED_NETWORK = 20e9, 12.5e9
"""Bytes a second from pinned memory to a GPU over PCIe 4 x16, and between machines at 100 Gbit/s."""
DECODE_MILLISECONDS = (5, 10, 20, 40, 80)
DEVICE_RATES = (25, 50, 100, 200, 400, 800)
GPUS = (1, 8, 64)
EMPTY = "—"


@dataclass(frozen=True)
class Facts:
    """What is known of the recipe without measuring: per clip of a training step, unless said otherwise."""

    forward_gmacs: float
    step_gmacs: float
    trained_parameters: int
    clip_bytes: int
    """As copied to a device: floats where the recipe resizes as released, else uint8."""

    @property
    def gradient_bytes(self) -> int:
        """Of one all-reduce, fp32."""
        return 4 * self.trained_parameters


def facts() -> Facts:
    """Of the recipe k400-b16, from its sizes."""
    config = BenchmarkConfig(presets=("12x384",), batch_size=1, num_frames=RECIPE.num_frames)
    sizes = sizes_of(config, "12x384", torch.device("cpu"))
    forward = flops(forward_products(sizes))
    assert RECIPE.size is not None
    return Facts(
        forward_gmacs=forward / 2e9,
        step_gmacs=(forward + flops(backward_products(sizes))) / 2e9,
        trained_parameters=trained_parameters(sizes),
        clip_bytes=3 * RECIPE.num_frames * RECIPE.size**2 * (4 if RECIPE.resize == "released" else 1),
    )


def trained_parameters(sizes: Sizes, *, num_classes: int = NUM_CLASSES) -> int:
    """Of its adapters, kernel (3, 1, 1), and the classifier."""
    width, bottleneck = sizes.width, sizes.bottleneck
    adapter = width * bottleneck + bottleneck + 3 * bottleneck + bottleneck + bottleneck * width + width
    return sum(map(sizes.adapters, range(sizes.num_blocks))) * adapter + (width + 1) * num_classes


def main() -> None:
    """Write the tables into the page."""
    benchmarks = read_benchmarks(MEASURED)
    known = facts()
    for mark, block in {
        "measured": measured_table(benchmarks),
        "known": known_table(known),
        "decode": decode_table(),
        "kinetics": kinetics_table(known, benchmarks),
        "memory": memory_sentence(),
    }.items():
        replace_between(PAGE, mark, block)


def read_benchmarks(folder: Path) -> dict[str, dict[str, Any]]:
    """The benchmarks of a folder by file name; what is no benchmark is passed over."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: values for name, values in found.items() if _is_benchmark(values)}


def _is_benchmark(values: Any) -> bool:
    machine = values.get("machine") if isinstance(values, dict) else None
    return isinstance(machine, dict) and "product_flops_per_second" in machine


def measured_table(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """What each device did, one row a device and precision; rows of a GPU stay empty where none was measured."""
    headers = [
        "device",
        "precision",
        "training, clips/s",
        "with gradient checkpointing",
        "compiled",
        "of the product rate",
        "peak memory, GB",
        "with gradient checkpointing",
        "inference, clips/s",
        "decoding, clips/s per core",
        "from",
    ]
    lines = [line for name, values in benchmarks.items() for line in _measured_lines(name, values)]
    if not any(is_gpu(values) for values in benchmarks.values()):
        lines.append(["a GPU", "bf16", *[EMPTY] * 8, "none has been measured"])
    return markdown_table(headers, lines)


def is_gpu(benchmark: Mapping[str, Any]) -> bool:
    """Whether it was measured on one."""
    return not str(benchmark["machine"]["device"]).startswith("cpu")


def device_text(benchmark: Mapping[str, Any]) -> str:
    """What it was measured on, a CPU with the name of the processor."""
    machine = benchmark["machine"]
    return str(machine["device"]) if is_gpu(benchmark) else f"{machine['processor']}, {machine['device']}"


def _measured_lines(name: str, benchmark: Mapping[str, Any]) -> Iterable[list[str]]:
    preset = benchmark["settings"]["presets"][0]
    for precision in benchmark["settings"]["precisions"]:
        step = _case(benchmark, f"training step, {preset}, {precision}")
        inference = _case(benchmark, f"inference, {preset}, {precision}")
        if step is None and inference is None:
            continue
        yield [
            device_text(benchmark),
            precision,
            _number(_rate(step)),
            _number(_rate(step, "gradient checkpointing")),
            _number(_rate(step, "compiled")),
            (share_of_rate(step, benchmark) if step is not None else "") or EMPTY,
            _peak(step, "ours"),
            _peak(step, "gradient checkpointing"),
            _number(_rate(inference)),
            _number(decode_rate(benchmark)),
            f"`benchmarks/{name}.json`, {benchmark['date'][:10]}",
        ]


def _case(benchmark: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The case of that name that was timed; the part "scale" says more than the part "model"."""
    cases = [case for case in benchmark["cases"] if case["name"] == name and "seconds" in case]
    return max(cases, key=lambda case: bool(case["part"] == "scale"), default=None)


def _rate(case: Mapping[str, Any] | None, side: str = "ours") -> float | None:
    """Clips a second of one side."""
    if case is None or side not in case["seconds"]:
        return None
    return float(case["facts"]["clips"] / case["seconds"][side]["median"])


def decode_rate(benchmark: Mapping[str, Any]) -> float | None:
    """Training clips a second that one core loads from videos 240 pixels high, the longest and sparsest measured."""
    cases = [
        case
        for case in benchmark["cases"]
        if case["part"] == "clips" and case["name"].startswith("training, 240p") and "seconds" in case
    ]
    return 1 / float(cases[-1]["seconds"]["ours"]["median"]) if cases else None


def _peak(case: Mapping[str, Any] | None, side: str) -> str:
    found = (case or {}).get("facts", {}).get("peak_bytes", {}).get(side)
    return f"{found / 1e9:.3g}" if found is not None else EMPTY


def _number(value: float | None) -> str:
    if value is None:
        return EMPTY
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def known_table(known: Facts) -> str:
    """What a clip of the recipe costs, with its symbol."""
    return markdown_table(
        ["symbol", "what", "value", "how it is known"],
        [
            ["F", "arithmetic of one view, forward", f"{known.forward_gmacs:.1f} GMACs", "matrix products, counted"],
            [
                "S",
                "arithmetic of a training step, per clip",
                f"{known.step_gmacs:.1f} GMACs",
                "forward, gradients of activations, gradients of the adapters' weights",
            ],
            [
                "b",
                "a clip on its way to the device",
                f"{known.clip_bytes / 1e6:.2f} MB",
                f"{RECIPE.num_frames} x 3 x {RECIPE.size} x {RECIPE.size} floats, as sent by `--resize released`, "
                "which the recipe uses; a quarter of that with `--resize fast`",
            ],
            ["P", "trained parameters", f"{known.trained_parameters:,}", "adapters and classifier, 400 classes"],
            ["g", "gradients of a step", f"{known.gradient_bytes / 1e6:.1f} MB", "P x 4 bytes"],
        ],
    )


def decode_table() -> str:
    """Cores that decode for one device: its clips a second times the seconds of a core for a clip."""
    headers = ["core time per clip", *(f"{rate} clips/s" for rate in DEVICE_RATES)]
    lines = [
        [f"{milliseconds} ms", *(_cores(rate * milliseconds / 1000) for rate in DEVICE_RATES)]
        for milliseconds in DECODE_MILLISECONDS
    ]
    return markdown_table(headers, lines)


def _cores(count: float) -> str:
    return f"{count:.1f}" if count < 10 else f"{count:.0f}"


def kinetics_table(known: Facts, benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """How long the recipe takes at assumed rates, and at those that were measured on a GPU in bf16."""
    rates = {
        f"{name}, assumed": ASSUMED_SHARE * published / (2e9 * known.step_gmacs)
        for name, published in PUBLISHED_RATES.items()
    }
    for values in filter(is_gpu, benchmarks.values()):
        if rate := _rate(_case(values, "training step, 12x384, bf16")):
            rates[f"{values['machine']['device']}, measured"] = rate
    headers = [
        "GPU",
        "clips/s per GPU",
        *(f"{count} GPU{'s' if count > 1 else ''}" for count in GPUS),
        "one step",
        "copy of its clips",
        "all-reduce, 8 machines",
        "clips/s to decode for 8 GPUs",
    ]
    return markdown_table(headers, [_kinetics_line(name, rate, known) for name, rate in rates.items()])


def memory_sentence() -> str:
    """What gradient checkpointing takes and saves for a batch of the recipe, counted."""
    config = BenchmarkConfig(presets=("12x384",), batch_size=1)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    model = make_networks(sizes_of(config, "12x384", cpu), cpu).ours()
    assert RECIPE.size is not None
    cost = checkpointing_cost(
        model,
        num_clips=RECIPE.batch_size,
        num_frames=RECIPE.num_frames,
        size=RECIPE.size,
        device=cuda,
        autocast_dtype=torch.bfloat16,
    )
    return f"For {RECIPE.batch_size} clips of this recipe in bf16: {cost}."


def _kinetics_line(name: str, rate: float, known: Facts) -> list[str]:
    assert RECIPE.epochs is not None
    step = RECIPE.batch_size / rate
    return [
        name,
        f"{rate:.0f}",
        *(duration(RECIPE.epochs * KINETICS_CLIPS / (rate * count)) for count in GPUS),
        f"{1000 * step:.0f} ms",
        f"{1000 * RECIPE.batch_size * known.clip_bytes / ASSUMED_COPY:.1f} ms",
        f"{1000 * 2 * 7 / 8 * known.gradient_bytes / ASSUMED_NETWORK:.1f} ms",
        f"{8 * rate:,.0f}",
    ]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
