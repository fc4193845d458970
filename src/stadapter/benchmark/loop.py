"""The whole training loop: decoding, batches, steps, from videos on disk."""

import io
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import DataLoader, RandomSampler

from stadapter.benchmark.clips import AUGMENTATION, write_loop_videos
from stadapter.benchmark.config import BenchmarkConfig, Precision
from stadapter.benchmark.floors import Sizes
from stadapter.benchmark.networks import (
    Networks,
    make_networks,
    ready,
    released_step,
    released_title,
    runs_in_half,
    save_vision,
    sizes_of,
    training_step,
    tuning_of,
)
from stadapter.benchmark.released import Released
from stadapter.benchmark.timing import Call, Case
from stadapter.cores import count_cores
from stadapter.machine import default_workers
from stadapter.training.loop import Loop
from stadapter.training.preparation import prepare
from stadapter.training.settings import TrainConfig

EPOCHS = 2


def cases(config: BenchmarkConfig, released: Released | None, device: torch.device, *, folder: Path) -> Iterator[Case]:
    """Two epochs from files, in every precision, including the workers' start; against the same steps from memory.

    On both sides the network and the list of videos are ready before timing begins.
    """
    sizes = sizes_of(config, config.presets[0], device)
    backbone = save_vision(sizes, folder / "trunk")
    videos = write_loop_videos(folder / "clips", config.clips_of_a_loop(device.type))
    batch_size = config.clips_of_a_step(device.type)
    steps = EPOCHS * math.ceil(len(videos) / batch_size)
    for precision in config.precisions:
        networks = make_networks(sizes, device)
        clips, targets = networks.clips(config.num_frames), networks.targets(config.num_frames)
        step = training_step(ready(networks.ours(), precision, training=True), clips, targets)
        others: dict[str, Call] = {}
        notes: tuple[str, ...] = ()
        if released is not None and released.clips is None:
            notes = ("the released data set could not be imported",)
        elif released is not None:
            half = runs_in_half(device, precision)
            others[released_title(half)] = _their_loop(config, networks, released, videos, half=half)
        yield Case(
            "loop",
            f"training loop, {config.presets[0]}, {precision}: {EPOCHS} epochs of {len(videos)} videos",
            ours=_our_loop(config, sizes, precision, device, backbone, folder),
            others=others,
            floors={"its steps alone, clips in memory": _repeated(step, steps)},
            facts={"clips": EPOCHS * len(videos), "steps": steps, "workers": default_workers(device_type=device.type)},
            notes=notes,
        )


def _repeated(step: Call, count: int) -> Call:
    def run() -> None:
        for _ in range(count):
            step()

    return run


def _our_loop(
    config: BenchmarkConfig, sizes: Sizes, precision: Precision, device: torch.device, backbone: Path, folder: Path
) -> Callable[[], None]:
    runs = itertools.count()
    settings = TrainConfig(
        data=folder / "clips",
        out=folder / f"run-{precision}",
        backbone=backbone,
        tuning=tuning_of(sizes),
        val_fraction=0.0,
        num_frames=config.num_frames,
        size=sizes.image_size,
        batch_size=config.clips_of_a_step(device.type),
        epochs=EPOCHS,
        precision=precision,
        augmentation=AUGMENTATION,
        device=str(device),
    )
    prepared = prepare(settings)

    def train() -> None:
        run = replace(prepared, config=replace(settings, out=f"{settings.out}-{next(runs)}"))
        with run.claimed():
            Loop(run, Console(file=io.StringIO())).fit()

    return train


def _beside(device: torch.device) -> int:
    """Decoding processes for the released loop, which does not take turns: half of the cores if it computes on them."""
    return max(1, count_cores() // 2) if device.type == "cpu" else default_workers(device_type=device.type)


def _their_loop(
    config: BenchmarkConfig, networks: Networks, released: Released, videos: list[Path], *, half: bool
) -> Callable[[], None]:
    """What the released main.py does with a batch, without NCCL processes: its data set, its model, its step."""
    listing = videos[0].parents[1] / "list.txt"
    listing.write_text("".join(f"{video.parent.name}/{video.name} 0\n" for video in videos), encoding="utf-8")
    side, batch_size = networks.sizes.image_size, networks.sizes.num_images // config.num_frames
    dataset = released.clips.VideoDataset(
        str(listing), str(listing.parent), num_frames=config.num_frames, spatial_size=side, scale_range=(0.08, 1.0)
    )
    model = networks.released(released, half=half)
    step_on = released_step(model, half=half)

    def train() -> None:
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=RandomSampler(dataset),
            num_workers=_beside(networks.device),
            pin_memory=networks.device.type == "cuda",
        )
        for _ in range(EPOCHS):
            for clips, labels in loader:
                step_on(clips.to(networks.device), labels.to(networks.device))

    return train
