"""stadapter benchmark: first equality, then times against the released code and against the floor."""

import sys
from collections.abc import Sequence
from typing import Any

from stadapter.cli.flags import parse
from stadapter.cli.output import check_writable, output_console, say, write_json


def run(arguments: Sequence[str]) -> int:
    """stadapter benchmark; returns 1 if two sides that should be equal are not."""
    from stadapter.benchmark.config import BenchmarkConfig

    flags = parse(BenchmarkConfig, "stadapter benchmark", arguments)
    if flags.json is not None and flags.json != "-":
        check_writable(flags.json, "--json")
    from stadapter.benchmark.runner import all_equal, benchmark
    from stadapter.benchmark.tables import tables

    so_far: dict[str, Any] = {}
    try:
        benchmark(flags, progress=say, keep=so_far.update)
    finally:  # on Ctrl-C too: a benchmark takes minutes, and what it has measured is valid without the rest
        if flags.json is not None and so_far:
            write_json(flags.json, so_far)
        if flags.json != "-" and so_far:
            output_console(sys.stdout).print(tables(so_far), highlight=False)
    return 0 if all_equal(so_far) else 1
