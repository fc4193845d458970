"""The runs of a comparison: each once, in a process of its own, from where it stands."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stadapter.backbones import load_backbone
from stadapter.clips import ClipConfig
from stadapter.comparison.config import CompareConfig
from stadapter.comparison.experiments import Experiment
from stadapter.comparison.results import (
    FORMAT,
    changes,
    learned_from,
    read_job,
    read_result,
    read_results,
    result_name,
    write_result,
)
from stadapter.comparison.search import choose_rate
from stadapter.errors import DataError, SettingsError, listed
from stadapter.machine import choose_device, choose_precision
from stadapter.manifest import Manifest, read_manifest, read_splits
from stadapter.processes import stopped_by_signals
from stadapter.training.checkpoint import CHECKPOINT_NAME
from stadapter.training.run_folder import locked
from stadapter.training.schedule import make_plan
from stadapter.training.settings import TrainConfig, settings_to_json
from stadapter.vit import BackboneInfo

SEARCH_FOLDER, RUNS_FOLDER = "search", "runs"
_SEARCH_FIGURES = ("top1", "loss", "train_loss")


@dataclass(frozen=True)
class Common:
    """What all runs share, found before the first of them."""

    train_set: Manifest
    test_set: Manifest
    search_sets: tuple[Manifest, Manifest] | None
    backbone_sha256: str
    width: int
    num_blocks: int
    budget: dict[str, Any]
    """Steps, batch, size, frames and data: equal in all results of a folder."""


@dataclass(frozen=True)
class Job:
    """One training and its result."""

    title: str
    result: Path
    config: TrainConfig
    known: dict[str, Any]
    """What its result holds that is known before: whose it is, its identity, the budget."""


def run_all(config: CompareConfig, experiments: Sequence[Experiment], folder: Path, console: Console) -> None:
    """Run what has no result yet; results that are there with other settings are refused before anything starts.

    Raises:
        SettingsError, STAdapterError, KeyboardInterrupt: as `compare`.
    """
    common = find_common(config)
    rates = {item.stem: _rates(config, item) for item in experiments}
    wanted = [(item, _job(config, common, item, seed, folder)) for seed in config.seeds for item in experiments]
    if not config.redo:
        _refuse_other_settings([job for _, job in wanted])
    _refuse_other_budget(folder, common, [job for _, job in wanted], redo=config.redo)
    with stopped_by_signals(), locked(folder):
        for number, (item, job) in enumerate(wanted, start=1):
            if _is_done(job):
                continue
            console.print(f"\n{job.title} ({number} of {len(wanted)})", style="bold", highlight=False)
            if rates[item.stem]:
                found = _search(config, common, item, folder, console)
                if found["chosen"] is None:
                    _fail(job, f"no learning rate worked: {listed([str(e) for e in found['errors'].values()])}", found)
                    continue
                job = replace(
                    job, config=replace(job.config, lr=found["chosen"]), known={**job.known, "lr_search": found}
                )
            _run(job, console)


def find_common(config: CompareConfig) -> Common:
    """Read the data and the trunk, and see that no test clip is trained on.

    Raises:
        SettingsError: clips that the trunk cannot take, or a device or precision that this machine has not.
        STAdapterError: either is not usable, or a clip is on both sides.
    """
    choose_precision(config.precision, choose_device(config.device))  # refused once, not by every run
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
    _check_clips(config, trunk.info)
    budget = {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "num_frames": config.num_frames,
        "size": config.size,
        "train_sha256": train_set.hash(),
        "test_sha256": test_set.hash(),
        "backbone_sha256": trunk.info.sha256,
    }
    return Common(train_set, test_set, search_sets, trunk.info.sha256, trunk.width, len(trunk.blocks), budget)


def _check_clips(config: CompareConfig, info: BackboneInfo) -> None:
    """Refuse clips that no run could be trained on, once and before the first of them."""
    size = config.size if config.size is not None else info.image_size
    info.check_size(size)
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
    if both := manifest.shared_with(test_set):
        raise DataError(
            f"{what} and {of_what} share {len(both)}: {listed(both)}; expected none to be in both: name a "
            "folder to train on that does not hold them, such as its train/"
        )


def _rates(config: CompareConfig, experiment: Experiment) -> tuple[float, ...]:
    """The learning rates to search for an experiment; none where there is no search."""
    if not config.lr_search:
        return ()
    own = experiment.lr_search or config.lr_search
    if len(own) != len(config.lr_search):
        raise SettingsError(
            f"{experiment.title} searches {len(own)} learning rates of its own, --lr-search has "
            f"{len(config.lr_search)}; expected as many, or the search would not be the same for all"
        )
    return own


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
        epochs=_epochs(config.steps, common.train_set, config.batch_size),
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
        num_workers=config.num_workers,
        seed=seed,
        checkpoint_minutes=config.checkpoint_minutes,
        **settings,
    )


def _epochs(steps: int, clips: Manifest, batch_size: int) -> int:
    plan = make_plan(num_clips=len(clips.entries), batch_size=batch_size, epochs=1)
    return math.ceil(steps / plan.steps_per_epoch)


def _job(config: CompareConfig, common: Common, experiment: Experiment, seed: int, folder: Path) -> Job:
    result, rates = folder / result_name(experiment.strategy, experiment.name, seed), _rates(config, experiment)
    train_config = _train_config(config, common, experiment, seed, folder / RUNS_FOLDER / result.stem)
    hashes = {name: common.budget[name] for name in ("train_sha256", "test_sha256", "backbone_sha256")}
    identity = {**learned_from(train_config), **hashes}
    if rates:
        identity["lr"] = {"search": list(rates), "seed": config.seeds[0], **_searched_on(common)}
    known = _known(experiment, seed, common, identity)
    return Job(f"{experiment.title}, seed {seed}", result, train_config, known)


def _search_clips(config: CompareConfig) -> dict[str, Any]:
    """The settings of a training in the search that say on which clips."""
    if config.search_data is None:
        return {"val_data": None, "val_fraction": config.search_fraction}
    return {"data": config.search_data[0], "val_data": config.search_data[1]}


def _searched_on(common: Common) -> dict[str, Any]:
    """Which clips the learning rate is searched on, so that a result tells it."""
    assert common.search_sets is not None
    return {"search_sha256": [clips.hash() for clips in common.search_sets]}


def _known(experiment: Experiment, seed: int, common: Common, identity: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "strategy": experiment.strategy,
        "name": experiment.name,
        "about": experiment.about,
        "seed": seed,
        "budget": common.budget,
        "identity": identity,
        "lr_search": None,
    }


def _search(
    config: CompareConfig, common: Common, experiment: Experiment, folder: Path, console: Console
) -> dict[str, Any]:
    """Try every learning rate on clips held out of the training data; what is there already is not tried again."""
    assert common.search_sets is not None
    part, held_out = common.search_sets
    found: dict[str, Any] = {"values": list(_rates(config, experiment)), "chosen": None, "errors": {}}
    found |= {"num_held_out_clips": len(held_out.entries), "held_out_sha256": held_out.hash()}
    found |= {name: {} for name in _SEARCH_FIGURES}
    tried: dict[float, dict[str, Any]] = {}
    for rate in found["values"]:
        stem = f"{experiment.stem}--lr{rate:g}"
        full = _train_config(config, common, experiment, config.seeds[0], folder / RUNS_FOLDER / SEARCH_FOLDER / stem)
        epochs = _epochs(math.ceil(config.steps / 3), part, config.batch_size)
        trial = replace(full, **_search_clips(config), epochs=epochs, lr=rate)
        identity = {**learned_from(trial), **_searched_on(common), "backbone_sha256": common.backbone_sha256}
        known = _known(experiment, config.seeds[0], common, identity)
        job = Job(f"{experiment.title}, learning rate {rate:g}", folder / SEARCH_FOLDER / f"{stem}.json", trial, known)
        if not _is_done(job):
            console.print(job.title, highlight=False)
            _run(job, console)
        result = json.loads(job.result.read_text(encoding="utf-8"))
        if "error" in result:
            found["errors"][f"{rate:g}"] = result["error"]
        else:
            tried[rate] = result
            found["steps"] = result["steps"]
            for name in _SEARCH_FIGURES:
                found[name][f"{rate:g}"] = result[name]
    found["chosen"] = choose_rate(tried) if tried else None
    return found


def _is_done(job: Job) -> bool:
    result = read_result(job.result)
    if result is None or "error" in result:
        return False
    return not changes(result["identity"], job.known["identity"])


def _job_file(job: Job) -> Path:
    return Path(job.config.out).with_name(f"{Path(job.config.out).name}.job.json")


def _refuse_other_settings(jobs: Sequence[Job]) -> None:
    for job in jobs:
        found = _identity_there(job)
        if found is not None and (changed := changes(found, job.known["identity"])):
            raise SettingsError(
                f"{job.result} was made with other settings: {listed(changed, 3)}; choose another --out, or do it "
                "again with --redo"
            )


def _identity_there(job: Job) -> dict[str, Any] | None:
    """Of the result that is there, or of an unfinished run; None where nothing would be lost."""
    result = read_result(job.result)
    if result is not None and "error" not in result:
        return dict(result["identity"])
    if (Path(job.config.out) / CHECKPOINT_NAME).is_file() and (unfinished := read_job(_job_file(job))):
        return unfinished[0]
    return None


def _refuse_other_budget(folder: Path, common: Common, jobs: Sequence[Job], *, redo: bool) -> None:
    """Results beside ours must have been made with our budget, or their table would compare what cannot be."""
    done_again = {job.result.name for job in jobs if redo or read_result(job.result) is None}
    for path, result in read_results(folder, but=done_again).items():
        found = result["budget"]
        if found != common.budget:
            changed = [name for name in common.budget if found.get(name) != common.budget[name]]
            told = ", ".join(f"{name} {found.get(name)!r}, now {common.budget[name]!r}" for name in changed)
            raise SettingsError(
                f"{path} was made with another budget: {told}; choose another --out, or do all again with --redo"
            )


def _run(job: Job, console: Console) -> None:
    """Train in a process of its own; its result, or its error, is on disk afterwards.

    Raises:
        KeyboardInterrupt: asked to stop; the training has been, and has left a checkpoint.
    """
    job_file, identity = _job_file(job), job.known["identity"]
    job_file.parent.mkdir(parents=True, exist_ok=True)
    job.result.parent.mkdir(parents=True, exist_ok=True)
    before = read_job(job_file)
    if before is None or changes(before[0], identity) or before[1] != job.config.lr:
        shutil.rmtree(job.config.out, ignore_errors=True)  # done again with other settings
    job.result.unlink(missing_ok=True)
    content = {"settings": settings_to_json(job.config), "known": job.known, "result": str(job.result.resolve())}
    write_result(job_file, content)
    code = _wait_for([sys.executable, "-m", "stadapter.comparison.child", str(job_file)])
    result = read_result(job.result)
    if result is None:
        _fail(job, _ending(code))
        result = {"error": _ending(code)}
    if "error" in result:
        console.print(f"{job.title} failed: {result['error']}", style="red", highlight=False, markup=False)


def _wait_for(command: Sequence[str]) -> int:
    """Run a command in a session of its own, so that Ctrl-C reaches it once, through us; its exit code.

    It holds the other end of a pipe, by which it notices that we have been killed.
    """
    child: subprocess.Popen[bytes] | None = None
    stopped = False
    theirs, ours = os.pipe()
    try:
        while True:
            try:
                child = child or subprocess.Popen(command, start_new_session=True, stdin=theirs)
                code = child.wait()
                break
            except KeyboardInterrupt:
                if child is None:
                    raise
                stopped = True
                child.send_signal(signal.SIGTERM)
            except BaseException:
                if child is not None:
                    child.kill()
                raise
    finally:
        os.close(theirs)
        os.close(ours)
    if stopped:
        raise KeyboardInterrupt
    return code


def _ending(code: int) -> str:
    if code >= 0:
        return f"the training process ended with exit code {code} and no result"
    advice = "; most likely memory did not suffice: lower --batch-size or --size" if code == -signal.SIGKILL else ""
    return f"the training process was ended by a signal ({signal.strsignal(-code)}){advice}"


def _fail(job: Job, error: str, lr_search: dict[str, Any] | None = None) -> None:
    write_result(job.result, {**job.known, "lr_search": lr_search, "error": error})
