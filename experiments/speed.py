"""The tables of docs/speed.md, from what `stadapter benchmark --json` wrote to benchmarks/.

stadapter benchmark --reference ST-ADAPTER --json benchmarks/NAME.json
python experiments/speed.py
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gestures import replace_between
from scaling import read_benchmarks
from stadapter.benchmark import BenchmarkConfig
from stadapter.benchmark.tables import notes, seconds_text, share_of_rate
from stadapter.compare.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks"
HEADERS = ("", "ours", "times as fast as", "times its floor", "of the product rate")


def main() -> None:
    write_page()


def write_page() -> None:
    """Write the part of docs/speed.md: a section for each result file."""
    sections = [section(name, result) for name, result in read_benchmarks(MEASURED).items()]
    replace_between(ROOT / "docs" / "speed.md", "speed", "\n\n".join(sections))


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
        ours = seconds_text(case["seconds"]["ours"]["median"]) if case["equal"] else "not equal: not timed"
        ratios = [
            "; ".join(f"{ratio:.2f} {name}" for name, ratio in case.get(kind, {}).items())
            for kind in ("times_as_fast_as", "times_the_floor")
        ]
        lines.append([case["name"], ours, *ratios, share_of_rate(case, result) if case["equal"] else ""])
    return markdown_table(HEADERS, lines)


if __name__ == "__main__":
    main()
