"""The figures of a benchmark as tables to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from stadapter.wording import percent

_MEMORY = {"saved_bytes": "kept for the backward pass, besides the weights", "peak_bytes": "peak GPU memory"}


def tables(result: Mapping[str, Any]) -> Group:
    """A table per part, the machine, and what was not equal or not measured, to be printed with rich."""
    parts = list(dict.fromkeys(case["part"] for case in result["cases"]))
    shown = [_table(part, [case for case in result["cases"] if case["part"] == part], result) for part in parts]
    return Group(*shown, *map(Text, [*_machine(result), *notes(result)]))


def seconds_text(seconds: float) -> str:
    """A time with its unit, in three digits.

    >>> [seconds_text(12.3456), seconds_text(0.0456), seconds_text(7.89e-5)]
    ['12.3 s', '45.6 ms', '78.9 µs']
    """
    unit, scale = next(((unit, scale) for unit, scale in (("s", 1.0), ("ms", 1e-3)) if seconds >= scale), ("µs", 1e-6))
    return f"{seconds / scale:.3g} {unit}"


def _table(part: str, cases: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> Table:
    is_processor_time = any(case["clock"] == "processor" for case in cases)
    title = f"{part}, processor time, one thread" if is_processor_time else part
    table = Table(title=title, title_justify="left")
    headers = ("", "ours", "times as fast as", "times its floor", "of the product rate", "equal")
    for header in headers:
        table.add_column(header, justify="left" if header in ("", *headers[2:4]) else "right")
    for case in cases:
        equal = Text("NO", style="bold red") if not case["equal"] else Text("yes" if case["checks"] else "")
        if "seconds" not in case:
            table.add_row(Text(case["name"]), "not timed", "", "", "", equal)
            continue
        table.add_row(
            Text(case["name"]),
            seconds_text(case["seconds"]["ours"]["median"]),
            Text("\n".join(f"{ratio:.2f} {name}" for name, ratio in case["times_as_fast_as"].items())),
            Text("\n".join(f"{ratio:.2f} {name}" for name, ratio in case["times_the_floor"].items())),
            share_of_rate(case, result),
            equal,
        )
    return table


def share_of_rate(case: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The necessary products per second, over what one large product reaches in the same precision."""
    rate = result["machine"]["product_flops_per_second"].get(str(case["name"]).rsplit(", ", 1)[-1])
    if rate is None or "flops" not in case:
        return ""
    return percent(case["flops"] / case["seconds"]["ours"]["median"] / rate, 0)


def _machine(result: Mapping[str, Any]) -> list[str]:
    machine, versions = result["machine"], result["versions"]
    rates = [f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in machine["product_flops_per_second"].items()]
    return [
        f"{result['date']}, {machine['processor']}, {machine['device']}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        f"one large product {' and '.join(rates)}; copying {machine['copy_bytes_per_second'] / 2**30:.1f} GiB/s "
        "read and written",
    ]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What to know besides the figures: what was not equal, what was not measured and why, memory."""
    told = [f"released code: {note}" for note in result["reference"]["notes"]] if result["reference"] else []
    told += [f"{each['part']}: FAILED {each['where']}: {each['error']}" for each in result.get("failures", [])]
    for case in result["cases"]:
        told += [f"{case['name']}: {note}" for note in case.get("notes", [])]
        if "bare_trunk_flops" in (facts := case.get("facts", {})):
            trunk, adapters = facts["bare_trunk_flops"] / 2, (case["flops"] - facts["bare_trunk_flops"]) / 2
            told.append(
                f"{case['name']}: {trunk / 1e9:.4g} billion multiply-adds in the bare trunk's products, "
                f"{adapters / 1e9:.3g} in the adapters' ({percent(adapters / trunk)})"
            )
        for fact, what in _MEMORY.items():
            if sides := facts.get(fact):
                sizes = ", ".join(f"{name} {count / 2**20:.1f} MiB" for name, count in sides.items())
                told.append(f"{case['name']}: {what}: {sizes}")
        told += [
            f"{case['name']}: NOT EQUAL: {check['what']}: {check['error']:.3g}, at most {check['limit']:g} expected"
            for check in case["checks"]
            if not check["error"] <= check["limit"]
        ]
    return told
