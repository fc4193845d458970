"""The tables of docs/speed.md, from what `stadapter benchmark --json` wrote to benchmarks/.

stadapter benchmark --reference ST-ADAPTER --json benchmarks/NAME.json
python experiments/speed.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gestures import replace_between
from stadapter.benchmark.tables import notes, seconds_text, share_of_rate
from stadapter.compare.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "benchmarks"
HEADERS = ("", "ours", "times as fast as", "times its floor", "of the product rate")


def main() -> None:
    write_page()


def write_page() -> None:
    """Write the part of docs/speed.md: a section for each result file."""
    sections = [section(path) for path in sorted(MEASURED.glob("*.json"))]
    replace_between(ROOT / "docs" / "speed.md", "speed", "\n\n".join(sections))


def section(path: Path) -> str:
    """What one file says: the machine, a table for each part, the notes."""
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, versions = result["machine"], result["versions"]
    flags = "".join(f" --{name} {' '.join(result['settings'][name])}" for name in ("parts", "presets", "precisions"))
    rates = [f"{rate / 1e9:,.0f} GFLOP/s in {name}" for name, rate in machine["product_flops_per_second"].items()]
    head = (
        f"## {machine['processor']}, {machine['device']}, {result['date'].split()[0]}\n\n"
        f"`benchmarks/{path.name}`, commit {result['commit'][:12]}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". One large matrix product reaches {' and '.join(rates)}.\n\n"
        f"    stadapter benchmark --reference st-adapter{flags} --repeats {result['settings']['repeats']}"
    )
    parts = list(dict.fromkeys(case["part"] for case in result["cases"]))
    tables = [f"### {part}\n\n{table(part, result)}" for part in parts]
    told = "\n".join(f"- {note}" for note in notes(result))
    return "\n\n".join([head, *tables, *([told] if told else [])])


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
