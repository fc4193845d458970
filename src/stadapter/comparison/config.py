"""The settings of a comparison: the experiments, and what is the same for all of them."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stadapter.augmentation import Augmentation, Fit
from stadapter.comparison.experiments import Experiment, read_experiments
from stadapter.errors import SettingsError
from stadapter.field_types import check_at_least_1, check_types
from stadapter.hub import DEFAULT_BACKBONE
from stadapter.labels import LabelKind
from stadapter.paths import expanded
from stadapter.training.settings import TrainConfig
from stadapter.tuning import STRATEGIES

_NONE = tyro.conf.arg(help_behavior_hint="(default: none)")
_ALL = tyro.conf.arg(help_behavior_hint="(default: all)")


@dataclass(frozen=True)
class CompareConfig:
    """Train and test several strategies, or settings of one, with the same data, steps, batch and frames, and say which
    is better, what each costs, and when there are too few test clips to tell."""

    data: str
    """Clips to train on: a folder with one sub-folder of videos per class, a list (CSV or "<path> <class number>"), or
    the annotations of a public data set; all of them are trained on."""
    test: str
    """Clips to test on, in any of the same layouts; none may be among those to train on."""
    out: str = "results/compare"
    """Folder for the results, with the run folders in runs/ below it. Results already there are not computed again."""
    experiments: Annotated[tuple[str, ...], _NONE] = ()
    """Folders of <strategy>/<name>.json with the settings that differ from the defaults, or single such files."""
    strategies: Annotated[tuple[str, ...], _ALL] = ()
    """Only these strategies; without experiments, each with its default settings."""
    video_root: str | None = None
    """Folder of the videos a list names, for training and test; default: the list's own folder, and for a public data
    set also its parent."""
    label_kind: LabelKind = "action"
    """Labels of EPIC-Kitchens clips: action is a verb and a noun as one class, verb+noun uses two heads that are
    trained together."""
    split_number: int = 1
    """Which of the three splits of UCF101 or HMDB51 to use, if their folder is given."""
    backbone: str = DEFAULT_BACKBONE
    """Image trunk: a Hub id, a local folder in Hugging Face layout, or tiny, which comes with the package."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each experiment is run once with each."""
    steps: int = 600
    """Optimizer steps of every run, rounded up to whole passes over the training clips."""
    batch_size: int = 8
    """Clips per step, the same for all."""
    num_frames: int = 8
    """Frames per clip; only an experiment about frames has another number."""
    size: int | None = None
    """Side of a clip in pixels, the same for all; default: the trunk's own, but on a CPU at most about 112."""
    fit: Fit = "crop"
    """crop cuts the frame to a square; stretch squeezes the whole frame, so that nothing at its edges is lost."""
    num_spatial_views: int | None = None
    """Crops to average when testing, 1 (centre) or 3 (together the whole frame); default: 3, but 1 with stretch."""
    augmentation: Augmentation = TrainConfig.augmentation
    """How training clips are varied, the same for all."""
    lr: float = TrainConfig.lr
    """Highest learning rate of the experiments that name none."""
    lr_search: Annotated[tuple[float, ...], _NONE] = ()
    """Learning rates to try for every experiment, with the first seed and a third of the steps, on clips held out of
    the training data; the best one is used. Default: no search, each experiment's own rate or lr. The experiment files
    of strategies that train the trunk's weights have other rates, equally many."""
    search_fraction: float = 0.2
    """Share of each class of the training data held out in the search, above 0 to 1."""
    search_data: tuple[str, str] | None = None
    """Clips to train on and clips to hold out in the search, both from the training data and laid out likewise, if a
    share by name will not do, for example because clips come in groups; default: a share, search_fraction."""
    reference: str = "st-adapter/default"
    """The experiment the others are compared with, clip by clip, as strategy/name."""
    redo: bool = False
    """Run again what was made with other settings; without this, that is refused."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the arithmetic; auto takes bf16 if the device supports it. Trained weights stay fp32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    num_workers: int | None = None
    """Processes that decode videos; default: chosen for the machine; 0 decodes in the training process."""
    checkpoint_minutes: float = 5.0
    """Longest time between two checkpoints of a run, in minutes."""

    def __post_init__(self) -> None:
        if isinstance(self.backbone, Path):  # as a text, tiny would be the trunk that comes with the package
            object.__setattr__(self, "backbone", os.path.abspath(expanded(self.backbone)))
        check_types(self)
        check_at_least_1(self, "steps", "batch_size", "num_frames")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"seeds {self.seeds}: expected at least one, and none twice")
        if unknown := [name for name in self.strategies if name not in STRATEGIES]:
            raise SettingsError(f"unknown strategy {', '.join(unknown)}; expected some of {', '.join(STRATEGIES)}")
        if self.reference.count("/") != 1 or self.reference.partition("/")[0] not in STRATEGIES:
            raise SettingsError(f"reference {self.reference!r}: expected strategy/name, such as st-adapter/default")
        if bad := [rate for rate in (self.lr, *self.lr_search) if not 0 < rate < math.inf]:
            raise SettingsError(f"lr or lr_search {bad[0]:g}: expected learning rates above 0")
        if not 0 < self.search_fraction < 1:
            raise SettingsError(f"search_fraction {self.search_fraction:g}: expected a share above 0 and below 1")
        if self.search_data is not None and not self.lr_search:
            raise SettingsError("search_data without lr_search: expected learning rates to search as well")


def choose_experiments(config: CompareConfig) -> list[Experiment]:
    """The experiments that a comparison asks for.

    Raises:
        SettingsError: there are none, or files that cannot be understood.
    """
    if not config.experiments:
        return [Experiment(name) for name in config.strategies or STRATEGIES]
    found = read_experiments(config.experiments)
    chosen = [item for item in found if not config.strategies or item.strategy in config.strategies]
    if not chosen:
        raise SettingsError(f"no experiment with {', '.join(config.strategies)} in {', '.join(config.experiments)}")
    return chosen
