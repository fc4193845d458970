"""The tables of docs/speed.md, from what `stadapter benchmark --json` wrote to benchmarks/.

stadapter benchmark --reference ST-ADAPTER --json benchmarks/NAME.json
python experiments/speed.py
"""

import argparse
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gestures import replace_between
from scaling import EMPTY, is_gpu, read_benchmarks
from stadapter.benchmark.config import BenchmarkConfig
from stadapter.benchmark.tables import notes, seconds_text, share_of_rate
from stadapter.comparison.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks"
HEADERS = ("", "ours", "times as fast as", "times its floor", "of the product rate")
Kind = Literal["times_as_fast_as", "times_the_floor"]
FASTER: Kind = "times_as_fast_as"
OVER: Kind = "times_the_floor"


@dataclass(frozen=True)
class Aim:
    """What a ratio of some cases was to be."""

    work: str
    cases: str
    """The cases' names, a regular expression."""
    kind: Kind
    """Which ratio: FASTER is to be at least the limit, OVER at most."""
    beside: str
    """How the name of the side begins that ours is compared with."""
    limit: float

    def __str__(self) -> str:
        return f"at {'least' if self.kind == FASTER else 'most'} {self.limit:g}"

    def ratios(self, result: Mapping[str, Any]) -> list[float]:
        """Those of a file, to two digits behind the point; not a number for a case that was not timed: not equal."""
        cases = [case for case in result["cases"] if re.fullmatch(self.cases, case["name"])]
        return [math.nan for case in cases if "seconds" not in case] + [
            round(ratio, 2)
            for case in cases
            for name, ratio in case.get(self.kind, {}).items()
            if name.startswith(self.beside)
        ]

    def cell(self, result: Mapping[str, Any]) -> str:
        """The lowest and the highest ratio of a file, and how many of them fall short."""
        ratios = self.ratios(result)
        if not ratios:
            return EMPTY
        num_short = sum(not self._is_reached(ratio) for ratio in ratios)
        timed = [f"{ratio:.2f}" for ratio in sorted(ratios) if not math.isnan(ratio)]
        span = " to ".join(dict.fromkeys((timed[0], timed[-1]))) if timed else EMPTY
        return f"{span}; **{num_short} of {len(ratios)} short**" if num_short else span

    def _is_reached(self, ratio: float) -> bool:
        return ratio >= self.limit if self.kind == FASTER else ratio <= self.limit


CPU_AIMS = (
    Aim("convolution with its changes of layout, both passes", "convolution .*backward, .*", FASTER, "as released", 5),
    Aim("adapter alone, both passes, over its products", "adapter, forward and backward, .*", OVER, "matrix", 1.12),
    Aim("training step, fp32, against released", "training step, .*, fp32", FASTER, "released", 1.1),
    Aim("training step, bf16, against released in fp32", "training step, .*, bf16", FASTER, "released", 3),
    Aim("training step, fp32, over its products", "training step, .*, fp32", OVER, "matrix", 1.1),
    Aim("training step, bf16, over its products", "training step, .*, bf16", OVER, "matrix", 1.1),
    Aim("inference, fp32, against released", "inference, .*, fp32", FASTER, "released", 1.1),
    Aim("inference, bf16, against released in fp32", "inference, .*, bf16", FASTER, "released", 3),
    Aim("inference with 12x384, over the bare trunk", "inference, 12x384, .*", OVER, "the bare trunk", 1.12),
    Aim("test clip, against released", "evaluation, .*", FASTER, "released", 15),
    Aim("test clip, over the decoding it needs", "evaluation, .*", OVER, "decoding", 1.3),
    Aim("training clip, as training reads it, against released", "training, one view of .*", FASTER, "released", 3),
    Aim("training clip, one view, against released", r"training, \d.*", FASTER, "released", 3),
    Aim("training clip, one view, over the decoding it needs", r"training, \d.*", OVER, "decoding", 1.3),
)
GPU_AIMS = (
    Aim("convolution with its changes of layout, both passes", "convolution .*backward, .*", FASTER, "as released", 3),
    Aim("adapter alone, both passes, against released", "adapter, forward and backward, .*", FASTER, "released", 1.5),
    Aim("adapter alone, both passes, over its products", "adapter, forward and backward, .*", OVER, "matrix", 1.5),
    Aim("training step, bf16, against released in fp16", "training step, .*, bf16", FASTER, "released", 1.8),
    Aim("inference, bf16, against released in fp16", "inference, .*, bf16", FASTER, "released", 1.8),
    Aim("inference with 12x384, over the bare trunk", "inference, 12x384, .*", OVER, "the bare trunk", 1.12),
)


def main() -> None:
    write_page()


def write_page() -> None:
    """Write the parts of docs/speed.md: what was aimed at, then a section for each result file."""
    results, page = read_benchmarks(MEASURED), ROOT / "docs" / "speed.md"
    for mark, aims, of_gpus in (("cpu-aims", CPU_AIMS, False), ("gpu-aims", GPU_AIMS, True)):
        those = {name: result for name, result in results.items() if is_gpu(result) == of_gpus}
        replace_between(page, mark, aims_table(aims, those))
    replace_between(page, "speed", "\n\n".join(section(name, result) for name, result in results.items()))


def aims_table(aims: Sequence[Aim], results: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each aim, a column for each file; one empty column where there is no file."""
    headers = ["", "aim", *([f"`{name}.json`" for name in results] or ["not measured"])]
    cells = [[aim.cell(result) for result in results.values()] or [EMPTY] for aim in aims]
    return markdown_table(headers, [[aim.work, str(aim), *line] for aim, line in zip(aims, cells, strict=True)])


def section(name: str, result: Mapping[str, Any]) -> str:
    """What one file says: the machine, a table for each part, the notes."""
    machine, versions = result["machine"], result["versions"]
    rates = [f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in machine["product_flops_per_second"].items()]
    head = (
        f"## {machine['processor']}, {machine['device']}, {result['date'].split()[0]}\n\n"
        f"`benchmarks/{name}.json`, commit {(result['commit'] or 'unknown')[:12]}; "
        + ", ".join(f"{package} {version}" for package, version in versions.items())
        + f". One large matrix product reaches {' and '.join(rates)}.\n\n"
        f"    {command(result)}"
    )
    parts = list(dict.fromkeys(case["part"] for case in result["cases"]))
    tables = [f"### {part}\n\n{table(part, result)}" for part in parts]
    told = "\n".join(f"- {note}" for note in notes(result))
    return "\n\n".join([head, *tables, *([told] if told else [])])


def command(result: Mapping[str, Any]) -> str:
    """What to type to measure the same: every setting that is not the default."""
    words, defaults = ["stadapter", "benchmark"], dataclasses.asdict(BenchmarkConfig())
    if result["reference"] is not None:
        words += ["--reference", "st-adapter"]
    for name, value in result["settings"].items():
        given = tuple(value) if isinstance(value, list) else value
        if given is not None and given != defaults[name]:
            words += [f"--{name.replace('_', '-')}", *map(str, given if isinstance(given, tuple) else [given])]
    return " ".join(words)


def table(part: str, result: Mapping[str, Any]) -> str:
    """The cases of one part, a line each."""
    lines = []
    for case in (case for case in result["cases"] if case["part"] == part):
        ours = seconds_text(case["seconds"]["ours"]["median"]) if "seconds" in case else "not equal: not timed"
        ratios = [
            "; ".join(f"{ratio:.2f} {name}" for name, ratio in case.get(kind, {}).items()) for kind in (FASTER, OVER)
        ]
        lines.append([case["name"], ours, *ratios, share_of_rate(case, result) if "seconds" in case else ""])
    return markdown_table(HEADERS, lines)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
