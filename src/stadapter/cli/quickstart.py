"""stadapter quickstart: the built-in example, from clips to a trained classifier."""

import shlex
import sys
from collections.abc import Sequence

from stadapter.cli.flags import parse
from stadapter.cli.output import output_console, say
from stadapter.paths import expanded


def run(arguments: Sequence[str]) -> int:
    """stadapter quickstart"""
    from stadapter.quickstart.config import QuickstartConfig

    flags = parse(QuickstartConfig, "stadapter quickstart", arguments)
    from stadapter.quickstart.runner import quickstart
    from stadapter.quickstart.tables import tables

    try:
        result = quickstart(flags)
    except KeyboardInterrupt:
        say(f"\nstopped; continue with the same command: {shlex.join(['stadapter', 'quickstart', *arguments])}")
        raise
    folder = expanded(flags.out)
    output_console(sys.stdout).print(tables(result), highlight=False)
    clip = shlex.quote(str(folder / result["unseen"][0]["clip"]))
    say(
        [
            f"saved in {folder}; look at {folder / 'st-adapter' / 'report.html'}",
            f"next: stadapter predict {shlex.quote(str(folder / 'st-adapter'))} {clip}",
        ]
    )
    return 0
