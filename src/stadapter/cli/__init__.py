"""The verbs of the command line: flags in, results on standard output, messages on standard error.

One module per verb, each imported only when asked for.
"""

import importlib
from collections.abc import Sequence

from stadapter.allocator import keep_freed_memory
from stadapter.cores import limit_threads

_COMPUTING = ("quickstart", "train", "evaluate", "predict")
"""Verbs that run a model over and over in their own process and so reuse the memory they free; the others do not."""


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run one verb with its flags and return the exit code."""
    limit_threads()
    if verb in _COMPUTING:
        keep_freed_memory()
    code: int = importlib.import_module(f"stadapter.cli.{verb}").run(arguments)
    return code
