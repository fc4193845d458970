"""Every setting of a training run, with its limits."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stadapter.augmentation import Augmentation, Fit, check_spatial_views
from stadapter.errors import SettingsError
from stadapter.field_types import Limits, check_limits, check_types, from_json
from stadapter.hub import DEFAULT_BACKBONE
from stadapter.layouts import NUM_SPLITS, LabelKind
from stadapter.manifest.holdout import VAL_FRACTION
from stadapter.paths import expanded
from stadapter.tuning import STRATEGIES, STAdapter, Tuning, checked_tuning, tuning_from_json, tuning_to_json

FREE_SETTINGS = frozenset(
    (
        *("data", "video_root", "label_kind", "split_number", "backbone", "size", "precision"),
        *("out", "resume", "accept_changes", "device", "num_workers"),
        *("checkpoint_minutes", "view_store_megabytes", "max_bad_fraction", "validate_every_epochs"),
        *("gradient_checkpointing", "compile"),
        *("token_cache_gigabytes", "token_cache_folder"),
    )
)
"""May differ when a run is resumed: they change nothing that is learned, or the run's identity tells what they mean."""
FIXED_SETTINGS = {
    "tuning": "other weights would learn",
    "labels": "the classifier is made for its classes",
    "backbone_sha256": "what was learned is worth nothing on another trunk",
    "val_fraction": "clips that were trained on would count as held out",
}
"""Settings and parts of a run's identity that can never change on the way, and why."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything a training run is made of. The defaults are the `small` recipe: few clips, little compute."""

    data: str | Path
    """Folder with one sub-folder of videos per class, a list (CSV path,label[,start,end] or "<path> <number>"), or
    the annotations of Kinetics, Something-Something-v2, UCF101, HMDB51 or EPIC-Kitchens-100, file or folder."""
    out: str | Path
    """Run folder to make; an existing one is refused unless you resume."""
    backbone: str | Path = DEFAULT_BACKBONE
    """Image trunk: a Hub id, a local folder in Hugging Face layout, or tiny, which comes with the package."""
    tuning: Tuning = field(default_factory=STAdapter)
    """What learns."""
    val_data: str | Path | None = None
    """Held-out clips, laid out as the training data; default what the data itself tells (the folder val/ or test/
    beside train/, a list's column split, the validation part of annotations), else a share of each class."""
    val_fraction: float = VAL_FRACTION
    """Share of each class held out by a stable hash of the file's name, below 1; 0 trains on everything. Of a list with
    a column group whole groups are held out."""
    validate_every_epochs: int = 0
    """Look at the held-out clips after so many epochs, too; 0 at the end alone. The figures are shown and kept in
    metrics.jsonl and the report; the weights that are kept are the last ones all the same."""
    video_root: str | Path | None = None
    """Folder of the videos that a list names; default its own folder, or for a public data set the one above too."""
    label_kind: LabelKind = "action"
    """What EPIC-Kitchens clips are labelled with: an action is a verb and a noun as one class, verb+noun are two heads
    that learn together."""
    split_number: int = 1
    """Which of the three splits of UCF101 or HMDB51, where their folder is given."""
    num_frames: int = 8
    """Frames of a clip."""
    size: int | None = None
    """Side of a clip, pixels; default the trunk's own; on a CPU at most about 112."""
    stride_frames: int | None = None
    """Distance between frames, in frames; default spreads them over the whole video."""
    resize: Literal["fast", "released"] = "fast"
    """fast resizes bytes, antialiased; released is what released checkpoints were trained with (float, aliased)."""
    fit: Fit = "crop"
    """crop cuts the frame to a square; stretch squeezes the whole frame, so that nothing at its edges is lost."""
    short_clips: Literal["repeat", "error"] = "repeat"
    """What becomes of a video with fewer frames than a clip: its frames are repeated, or it counts as unreadable."""
    num_temporal_views: int = 1
    """Clips along time that are averaged when testing."""
    num_spatial_views: int | None = None
    """Crops averaged when testing, 1 (centre) or 3 (they show the whole frame); default 3, with stretch 1."""
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(colour_jitter=0.4))
    """How training clips are varied; no flip, which would confuse left with right (docs/log.md on the colours)."""
    views_per_clip: int | None = None
    """Different random views of each training clip, which come again in turn; default a fresh one in every epoch. The
    first blocks, where none of them learns, then see each view once: see token_cache_gigabytes."""
    epochs: int | None = None
    """Passes over the data; default as many as give 600 optimizer steps, at least 8."""
    batch_size: int = 8
    """Clips a step and process."""
    accumulation_steps: int = 1
    """Batches whose gradients are added up before the weights change."""
    balance_classes: bool = False
    """Every class comes equally often in an epoch, whatever its number of clips; else every clip comes once. With
    verb+noun it is their combinations that come equally often."""
    lr: float = 2e-3
    """Highest learning rate."""
    lr_clips: int | None = None
    """Clips a step that lr is meant for: it is scaled linearly to those there are; default not scaled."""
    weight_decay: float = 1e-2
    """AdamW's weight decay; biases and norms have none."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls along a cosine to 0."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, 0 to 1."""
    dropout: float = 0.0
    """Dropout before the classifier, 0 to below 1."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all trained weights; 0 does not clip."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the arithmetic; auto takes bf16 where the device computes in it. Trained weights stay fp32."""
    gradient_checkpointing: bool = False
    """Of most blocks keep the input alone and compute the rest again in the backward pass: much less memory for a
    third to a half more arithmetic, and the same result. The run says what it takes and saves when it starts."""
    compile: bool = False
    """Compile the trunk's blocks for training with torch.compile, which takes a minute or so; for GPUs, on a CPU it
    gains nothing. If it fails, the run says so and goes on without."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    num_workers: int | None = None
    """Processes that decode videos; default chosen from the machine, 0 decodes in the training process."""
    view_store_megabytes: int = 1024
    """Room for views drawn ahead, MiB on disk: a video is then decoded once for up to 8 epochs; 0 decodes each time."""
    token_cache_gigabytes: float | None = None
    """Room on disk for what frozen first blocks make of views_per_clip views (--tuning.last-blocks leaves some frozen);
    default 8, or 0 where there is nothing to keep. 0 computes it in every epoch: slower, and the same."""
    token_cache_folder: str | Path | None = None
    """Where that is kept, also for later runs on the same clips; default the user's cache folder, stadapter in it."""
    seed: int = 0
    """Of everything random."""
    max_bad_fraction: float = 0.1
    """The run stops when more than this share of the videos cannot be read, 0 to 1; one alone never stops it."""
    checkpoint_minutes: float = 5.0
    """Longest time between two checkpoints, minutes; 0 writes one after every step. There is also one after every
    epoch, though not within 10 seconds of the last, and on Ctrl-C, SIGTERM and a lost terminal."""
    resume: bool = False
    """Go on with the unfinished run in the run folder; refused when its settings or its data have changed."""
    accept_changes: bool = False
    """With resume: go on though settings or data have changed; the receipt then says so. Never accepted: another
    tuning, other classes, another trunk, another val_fraction."""

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "tuning", checked_tuning(self.tuning))
        if isinstance(self.backbone, Path):  # as a text, tiny would be the trunk that comes with the package
            object.__setattr__(self, "backbone", os.path.abspath(expanded(self.backbone)))
        for name in ("data", "out", "backbone", "val_data", "video_root", "token_cache_folder"):
            value = getattr(self, name)
            object.__setattr__(self, name, os.fspath(value) if value is not None else None)
        check_limits(self, _LIMITS, below=("dropout", "val_fraction"))
        check_spatial_views(self.num_spatial_views)
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"lr {self.lr}: expected a learning rate above 0, such as 2e-3")
        if self.accept_changes and not self.resume:
            raise SettingsError("accept_changes without resume: expected both, to go on with an unfinished run")


_LIMITS: Limits = {
    "num_frames": (1, math.inf),
    "size": (1, math.inf),
    "stride_frames": (1, math.inf),
    "num_temporal_views": (1, math.inf),
    "batch_size": (1, math.inf),
    "views_per_clip": (1, math.inf),
    "accumulation_steps": (1, math.inf),
    "lr_clips": (1, math.inf),
    "epochs": (1, math.inf),
    "validate_every_epochs": (0, math.inf),
    "num_workers": (0, 1024),
    "view_store_megabytes": (0, math.inf),
    "token_cache_gigabytes": (0, math.inf),
    "seed": (0, 2**63 - 1),
    "split_number": (1, NUM_SPLITS),
    "weight_decay": (0, math.inf),
    "gradient_clip": (0, math.inf),
    "checkpoint_minutes": (0, math.inf),
    "label_smoothing": (0, 1),
    "warmup_fraction": (0, 1),
    "max_bad_fraction": (0, 1),
    "dropout": (0, 1),
    "val_fraction": (0, 1),
}


def settings_to_json(config: TrainConfig) -> dict[str, Any]:
    """A run's settings as JSON values."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    values["tuning"] = tuning_to_json(config.tuning)
    values["augmentation"] = dataclasses.asdict(config.augmentation)
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def settings_from_json(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `settings_to_json`."""
    parts = {
        "tuning": tuning_from_json(values["tuning"]),
        "augmentation": from_json(Augmentation, values["augmentation"]),
    }
    return from_json(TrainConfig, {**values, **parts})


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON values, with the defaults of those that an older version of this program did not know."""
    defaults = settings_to_json(TrainConfig(data="-", out="-"))
    known = {part: values[part] for part in ("tuning", "augmentation") if isinstance(values.get(part), Mapping)}
    if "tuning" in known and (strategy := STRATEGIES.get(known["tuning"].get("name"))):
        defaults["tuning"] = tuning_to_json(strategy())
    return {**defaults, **values, **{part: {**defaults[part], **given} for part, given in known.items()}}
