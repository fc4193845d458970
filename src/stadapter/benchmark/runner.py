"""The parts of a benchmark, one after the other: verify, measure, keep what has been measured."""

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stadapter.allocator import hand_back_freed_memory, keep_freed_memory, keep_no_freed_memory
from stadapter.benchmark import adapter, clips, loop, model, scale, start
from stadapter.benchmark.config import BenchmarkConfig, Part
from stadapter.benchmark.floors import copy_rate, product_rate
from stadapter.benchmark.networks import DTYPES
from stadapter.benchmark.released import Released, import_released
from stadapter.benchmark.timing import Case, measure, synchroniser
from stadapter.machine import choose_device, describe_device
from stadapter.provenance import commit, processor, versions
from stadapter.wording import first_line

FORMAT_VERSION = 1


def benchmark(
    config: BenchmarkConfig,
    *,
    progress: Callable[[str], None] = lambda name: None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Verify and measure.

    Args:
        config: what to measure, at which sizes.
        progress: called with the name of every case before it is measured.
        keep: called at the start and after every case with the results so far, so stopping early loses none.

    Returns:
        JSON values: hardware, versions, date, for every case its checks, seconds and ratios, and what failed: a case
        or part that cannot be computed is reported, and the rest is measured.

    Raises:
        SettingsError: there is no such device, or the reference is not a checkout of the released code.
    """
    device = choose_device(config.device)
    released = import_released(config.reference) if config.reference is not None else None
    with _threads(config.threads or torch.get_num_threads()):
        return _measure_all(config, released, device, progress, keep)


def all_equal(result: dict[str, Any]) -> bool:
    """Whether everything could be computed and every check of a benchmark holds."""
    return not result["failures"] and all(case["equal"] for case in result["cases"])


def _measure_all(
    config: BenchmarkConfig,
    released: Released | None,
    device: torch.device,
    progress: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    synchronise = synchroniser(device)
    result = _header(config, released, device)
    _measure_rates(result["machine"], config, device, synchronise)
    keep(result)
    with ExitStack() as folders:
        for part in config.parts:
            # As in decoding processes, and as in those that train.
            (keep_no_freed_memory if part == "clips" else keep_freed_memory)()
            with _recording_failures(result, part, "between its cases"):
                for case in _cases(part, config, released, device, folders):
                    progress(case.name)
                    with _recording_failures(result, part, case.name), _threads(_num_threads(case)):
                        result["cases"].append(measure(case, repeats=config.repeats, synchronise=synchronise))
                    keep(result)
                    _free(device)
                _measure_rates(result["machine"], config, device, synchronise)
            keep(result)
    return result


@contextmanager
def _recording_failures(result: dict[str, Any], part: Part, where: str) -> Iterator[None]:
    """Record what fails in the block and measure the rest: it takes minutes, and there may be only one chance."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        result["failures"].append(
            {"part": part, "where": where, "error": f"{type(error).__name__}: {first_line(error)}"}
        )


def _free(device: torch.device) -> None:
    """Free what a case leaves: gigabytes of large videos, or what did not fit into a GPU."""
    hand_back_freed_memory()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _num_threads(case: Case) -> int:
    return 1 if case.clock == "processor" else torch.get_num_threads()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute with this many threads; a process that loads clips has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cases(
    part: Part, config: BenchmarkConfig, released: Released | None, device: torch.device, folders: ExitStack
) -> Iterator[Case]:
    makers: dict[Part, Callable[..., Iterator[Case]]] = {
        "adapter": adapter.cases,
        "model": model.cases,
        "scale": scale.cases,
        "clips": clips.cases,
        "loop": loop.cases,
        "cold-start": start.cases,
    }
    make = makers[part]
    if part in ("clips", "loop"):
        folder = folders.enter_context(tempfile.TemporaryDirectory(prefix="stadapter-benchmark-"))
        make = partial(make, folder=Path(folder))
    return make(config, released, device)


def _measure_rates(
    machine: dict[str, Any], config: BenchmarkConfig, device: torch.device, synchronise: Callable[[], None]
) -> None:
    """Measure what the machine can do, and keep the best so far: a moment in which it also does other work is lower."""
    rates = machine["product_flops_per_second"]
    for name in config.precisions:
        found = product_rate(DTYPES[name], device, synchronise, repeats=config.repeats)
        rates[name] = max(rates.get(name, 0.0), found)
    copied = copy_rate(device, synchronise, repeats=config.repeats)
    machine["copy_bytes_per_second"] = max(machine["copy_bytes_per_second"], copied)


def _header(config: BenchmarkConfig, released: Released | None, device: torch.device) -> dict[str, Any]:
    import av

    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "settings": {name: value for name, value in vars(config).items() if name not in ("reference", "json")},
        "machine": {
            **processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": describe_device(device),
            "product_flops_per_second": {},
            "copy_bytes_per_second": 0.0,
        },
        "commit": commit(),
        "versions": {**versions(), "av": av.__version__},
        "reference": {"notes": list(released.notes)} if released is not None else None,
        "cases": [],
        "failures": [],
    }
