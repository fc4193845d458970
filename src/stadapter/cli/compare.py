"""stadapter compare: strategies under one budget."""

import shlex
import sys
from collections.abc import Sequence

from stadapter.cli.flags import parse
from stadapter.cli.output import output_console, say
from stadapter.paths import expanded


def run(arguments: Sequence[str]) -> int:
    """stadapter compare; returns 1 if a run failed."""
    from stadapter.comparison.config import CompareConfig

    flags = parse(CompareConfig, "stadapter compare", arguments)
    from stadapter.comparison.runner import compare
    from stadapter.comparison.tables import tables

    try:
        comparison = compare(flags)
    except KeyboardInterrupt:
        say(f"\nstopped; continue with the same command: {shlex.join(['stadapter', 'compare', *arguments])}")
        raise
    output_console(sys.stdout).print(tables(comparison), highlight=False)
    folder = expanded(flags.out)
    say(f"saved in {folder}; look at {folder / 'comparison.md'}")
    return 1 if comparison.failures else 0
