"""The trainings of a comparison: one per experiment and seed, and those in the search for a learning rate."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stadapter.backbones import load_backbone
from stadapter.check.examine import content_hash
from stadapter.clips import ClipConfig
from stadapter.comparison.config import CompareConfig
from stadapter.comparison.experiments import Experiment
from stadapter.comparison.results import CHOSEN, Run, learned_from, result_name
from stadapter.errors import DataError, SettingsError
from stadapter.machine import choose_device, choose_precision, precision_name
from stadapter.manifest import Manifest, read_manifest, read_splits, size_bytes
from stadapter.training.preparation import clip_size
from stadapter.training.schedule import Plan, make_plan
from stadapter.training.settings import TrainConfig
from stadapter.wording import listed

_SEARCH_FOLDER, _RUNS_FOLDER = "search", "runs"


@dataclass(frozen=True)
class Common:
    """What all runs share, determined before the first of them."""

    train_set: Manifest
    search_sets: tuple[Manifest, Manifest] | None
    """Clips to train on, and those held out, in the search for the learning rate; None without a search."""
    width: int
    num_blocks: int
    budget: dict[str, Any]
    """Steps, batch, size, frames, precision and data: equal in all results of a folder."""


@dataclass(frozen=True)
class Job:
    """One training and its result."""

    title: str
    result: Path
    config: TrainConfig
    known: Run
    """What is known of its result beforehand."""


def find_common(config: CompareConfig) -> Common:
    """Read the data and the trunk, and make sure that no test clip is trained on.

    Raises:
        SettingsError: the trunk cannot take such clips, or this machine lacks the device or precision.
        STAdapterError: one of them is not usable, or a clip is on both sides.
    """
    device = choose_device(config.device)  # refused once, not by every run
    precision = precision_name(choose_precision(config.precision, device))
    layout: dict[str, Any] = {name: getattr(config, name) for name in ("video_root", "label_kind", "split_number")}
    train_set, _ = read_splits(config.data, val_fraction=0, val_data=config.test, **layout)
    test_set = read_manifest(config.test, **layout)
    _refuse_overlap(train_set, test_set, f"--data {config.data}")
    search_sets = None
    if config.lr_search:
        search_sets = _read_search_sets(config, layout)
        for clips, side in zip(search_sets, ("to train on", "held out"), strict=True):
            _refuse_overlap(clips, test_set, f"the clips {side} in the search for the learning rate")
    trunk = load_backbone(config.backbone)
    size = clip_size(config.size, trunk.info, device)
    _check_clips(config, size)
    budget = {
        "steps": _plan(config.steps, train_set, config.batch_size).total_steps,
        "batch_size": config.batch_size,
        "num_frames": config.num_frames,
        "size": size,
        "precision": precision,
        "train_sha256": train_set.hash(),
        "test_sha256": test_set.hash(),
        "backbone_sha256": trunk.info.sha256,
    }
    return Common(train_set, search_sets, trunk.width, len(trunk.blocks), budget)


def _check_clips(config: CompareConfig, size: int) -> None:
    """Refuse clips that no run could be trained on, once, before the first run."""
    views = config.num_spatial_views if config.num_spatial_views is not None else 1
    ClipConfig(num_frames=config.num_frames, size=size, fit=config.fit, num_spatial_views=views)


def _read_search_sets(config: CompareConfig, layout: dict[str, Any]) -> tuple[Manifest, Manifest]:
    """Clips to train on and clips held out in the search for the learning rate."""
    if config.search_data is None:
        part, held_out = read_splits(config.data, val_fraction=config.search_fraction, **layout)
    else:
        data, held_out_data = config.search_data
        part, held_out = read_splits(data, val_fraction=0, val_data=held_out_data, **layout)
    assert held_out is not None
    if config.search_data is not None:
        _refuse_overlap(part, held_out, f"--search-data {config.search_data[0]}", "those held out")
    return part, held_out


def _refuse_overlap(manifest: Manifest, test_set: Manifest, what: str, of_what: str = "the test clips") -> None:
    if both := manifest.shared_with(test_set) or _copies(manifest, test_set):
        raise DataError(
            f"{what} and {of_what} have {len(both)} in common: {listed(both)}; expected no clip in both: name a "
            "folder to train on that does not hold them, such as its train/"
        )


def _copies(manifest: Manifest, test_set: Manifest) -> list[str]:
    """The clips that another data set also holds, under another name: the same part of the same content."""
    ours, theirs = (
        {path: size_bytes(path) for path in {entry.path for entry in clips.entries}} for clips in (manifest, test_set)
    )
    alike = {size for size in set(ours.values()) & set(theirs.values()) if size > 0}
    contents = {path: content_hash(path) for path, size in {**ours, **theirs}.items() if size in alike}
    tested = {(contents[entry.path], entry.segment): entry for entry in test_set.entries if contents.get(entry.path)}
    return [
        f"{entry.name} = {tested[place].name}"
        for entry in manifest.entries
        if (place := (contents.get(entry.path), entry.segment)) in tested
    ]


def rates_of(config: CompareConfig, experiment: Experiment) -> tuple[float, ...]:
    """The learning rates to search for an experiment; none if there is no search."""
    if not config.lr_search:
        return ()
    own = experiment.lr_search or config.lr_search
    if len(own) != len(config.lr_search):
        raise SettingsError(
            f"{experiment.title} searches {len(own)} learning rates of its own, --lr-search has "
            f"{len(config.lr_search)}; expected equally many, or the search would not be the same for all"
        )
    return own


def experiment_job(config: CompareConfig, common: Common, experiment: Experiment, seed: int, folder: Path) -> Job:
    """The training of an experiment with one seed."""
    result = folder / result_name(experiment.strategy, experiment.name, seed)
    train_config = _train_config(config, common, experiment, seed, folder / _RUNS_FOLDER / result.stem)
    found = {name: common.budget[name] for name in (*CHOSEN, "train_sha256", "test_sha256", "backbone_sha256")}
    identity = {**learned_from(train_config), **found}
    if rates := rates_of(config, experiment):
        identity["lr"] = {"search": list(rates), "seed": config.seeds[0], **_searched_on(common)}
    known = _known(experiment, seed, common, identity)
    return Job(f"{experiment.title}, seed {seed}", result, train_config, known)


def search_job(config: CompareConfig, common: Common, experiment: Experiment, rate: float, folder: Path) -> Job:
    """A short training with one learning rate, on clips held out of the training data."""
    assert common.search_sets is not None
    part, _ = common.search_sets
    stem = f"{experiment.stem}--lr{rate:g}"
    full = _train_config(config, common, experiment, config.seeds[0], folder / _RUNS_FOLDER / _SEARCH_FOLDER / stem)
    epochs = _plan(math.ceil(config.steps / 3), part, config.batch_size).epochs
    train_config = replace(full, **_search_clips(config), epochs=epochs, lr=rate)
    found = {name: common.budget[name] for name in (*CHOSEN, "backbone_sha256")}
    identity = {**learned_from(train_config), **found, **_searched_on(common)}
    known = _known(experiment, config.seeds[0], common, identity)
    result = folder / _SEARCH_FOLDER / f"{stem}.json"
    return Job(f"{experiment.title}, learning rate {rate:g}", result, train_config, known)


def _train_config(config: CompareConfig, common: Common, experiment: Experiment, seed: int, out: Path) -> TrainConfig:
    settings: dict[str, Any] = {"num_frames": config.num_frames, "lr": config.lr, **experiment.settings}
    return TrainConfig(
        data=config.data,
        out=out,
        val_data=config.test,
        val_fraction=0,
        video_root=config.video_root,
        label_kind=config.label_kind,
        split_number=config.split_number,
        backbone=config.backbone,
        tuning=experiment.make_tuning(width=common.width, num_blocks=common.num_blocks),
        size=config.size,
        fit=config.fit,
        num_spatial_views=config.num_spatial_views,
        augmentation=config.augmentation,
        epochs=_plan(config.steps, common.train_set, config.batch_size).epochs,
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        num_workers=config.num_workers,
        seed=seed,
        checkpoint_minutes=config.checkpoint_minutes,
        **settings,
    )


def _plan(steps: int, clips: Manifest, batch_size: int) -> Plan:
    """At least so many steps, in whole passes over the clips."""
    sizes = {"num_clips": len(clips.entries), "batch_size": batch_size}
    return make_plan(**sizes, epochs=math.ceil(steps / make_plan(**sizes).steps_per_epoch))


def _search_clips(config: CompareConfig) -> dict[str, Any]:
    """The settings that say on which clips a training in the search is done."""
    if config.search_data is None:
        return {"val_data": None, "val_fraction": config.search_fraction}
    return {"data": config.search_data[0], "val_data": config.search_data[1]}


def _searched_on(common: Common) -> dict[str, Any]:
    """The clips the learning rate is searched on, so that a result records them."""
    assert common.search_sets is not None
    return {"search_sha256": [clips.hash() for clips in common.search_sets]}


def _known(experiment: Experiment, seed: int, common: Common, identity: dict[str, Any]) -> Run:
    return Run(
        strategy=experiment.strategy,
        name=experiment.name,
        about=experiment.about,
        seed=seed,
        budget=common.budget,
        identity=identity,
    )
