"""stadapter benchmark: equality first, then times beside the released code and beside the floor."""

import sys
from collections.abc import Sequence

import tyro

from stadapter.cli.output import check_writable, output_console, say, write_json


def run(arguments: Sequence[str]) -> int:
    """stadapter benchmark; 1 where two sides that should be equal are not."""
    from stadapter.benchmark.config import BenchmarkConfig

    flags = tyro.cli(BenchmarkConfig, prog="stadapter benchmark", args=arguments)
    if flags.json is not None and flags.json != "-":
        check_writable(flags.json, "--json")
    from stadapter.benchmark import all_equal, benchmark
    from stadapter.benchmark.tables import tables

    result = benchmark(flags, progress=say)
    if flags.json is not None:
        write_json(flags.json, result)
    if flags.json != "-":
        output_console(sys.stdout).print(tables(result), highlight=False)
    return 0 if all_equal(result) else 1
