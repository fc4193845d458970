"""How long the command line takes to answer, from a cold start of Python."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from stadapter.benchmark.config import BenchmarkConfig
from stadapter.benchmark.released import Released
from stadapter.benchmark.timing import Case

_COMMANDS = {
    "stadapter --help": ("-m", "stadapter", "--help"),
    "stadapter predict --help": ("-m", "stadapter", "predict", "--help"),
    "stadapter train --help": ("-m", "stadapter", "train", "--help"),
    "import stadapter": ("-c", "import stadapter"),
    "import all that training needs": ("-c", "import stadapter.training.loop"),
}
_NEEDS_TORCH = {"import all that training needs"}


def cases(config: BenchmarkConfig, released: Released | None, device: torch.device) -> Iterator[Case]:
    """Each command in its own process, against a Python that does nothing, or only imports torch."""
    for name, arguments in _COMMANDS.items():
        floors = {"python": _call("-c", "pass")}
        if name in _NEEDS_TORCH:
            floors["import torch"] = _call("-c", "import torch")
        yield Case("cold-start", name, ours=_call(*arguments), floors=floors)


def _call(*arguments: str) -> Callable[[], None]:
    def call() -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    return call
