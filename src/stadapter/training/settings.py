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
from stadapter.labels import LabelKind
from stadapter.layouts import NUM_SPLITS
from stadapter.manifest.holdout import VAL_FRACTION
from stadapter.paths import expanded
from stadapter.tuning import STRATEGIES, STAdapter, Tuning, check_json, checked_tuning, tuning_from_json, tuning_to_json

FREE_SETTINGS = frozenset(
    (
        *("data", "video_root", "label_kind", "split_number", "backbone", "size", "precision"),
        *("out", "resume", "accept_changes", "device", "num_workers"),
        *("checkpoint_minutes", "view_store_megabytes", "max_bad_fraction", "validate_every_epochs"),
        *("gradient_checkpointing", "compile"),
        *("token_cache_gigabytes", "token_cache_folder"),
    )
)
"""May differ when a run is resumed: they do not change what is learned, or the run's identity records their effect."""
FIXED_SETTINGS = {
    "tuning": "other weights would be trained",
    "labels": "the classifier is made for its classes",
    "backbone_sha256": "what was learned is useless on another trunk",
    "val_fraction": "clips that were trained on would count as held out",
}
"""Settings and parts of a run's identity that can never change along the way, and why."""
_AUGMENTATION = Augmentation(colour_jitter=0.4)


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training run. The defaults are the `small` recipe: few clips, little compute."""

    data: str | Path
    """Folder with one sub-folder of videos per class, a list (CSV path,label[,start,end] or "<path> <number>"), or
    the annotations of Kinetics, Something-Something-v2, UCF101, HMDB51 or EPIC-Kitchens-100, as a file or folder."""
    out: str | Path
    """Run folder to create; an existing one is refused unless you resume."""
    backbone: str | Path = DEFAULT_BACKBONE
    """Image trunk: a Hub id, a local folder in Hugging Face layout, or tiny, which comes with the package."""
    tuning: Tuning = field(default_factory=STAdapter)
    """What is trained."""
    val_data: str | Path | None = None
    """Held-out clips, laid out like the training data; default: what the data itself defines (the folder val/ or test/
    next to train/, a list's split column, the validation part of annotations), else a share of each class."""
    val_fraction: float = VAL_FRACTION
    """Share of each class held out by a stable hash of the file's name, below 1; 0 trains on everything. In a list with
    a group column, whole groups are held out."""
    validate_every_epochs: int = 0
    """Also evaluate on the held-out clips every this many epochs; 0: only at the end. The figures are shown, and kept
    in metrics.jsonl and the report; the weights kept are the last ones in any case."""
    video_root: str | Path | None = None
    """Folder of the videos a list names; default: the list's own folder, and for a public data set also its parent."""
    label_kind: LabelKind = "action"
    """Labels of EPIC-Kitchens clips: action is a verb and a noun as one class, verb+noun uses two heads that are
    trained together."""
    split_number: int = 1
    """Which of the three splits of UCF101 or HMDB51 to use, if their folder is given."""
    num_frames: int = 8
    """Frames per clip."""
    size: int | None = None
    """Side of a clip in pixels; default: the trunk's own, but on a CPU at most about 112."""
    stride_frames: int | None = None
    """Distance between frames, in frames; default: spread over the whole video."""
    resize: Literal["fast", "released"] = "fast"
    """fast resizes bytes, antialiased; released is what released checkpoints were trained with (float, aliased)."""
    fit: Fit = "crop"
    """crop cuts the frame to a square; stretch squeezes the whole frame, so that nothing at its edges is lost."""
    short_clips: Literal["repeat", "error"] = "repeat"
    """What to do with a video that has fewer frames than a clip: repeat its frames, or count it as unreadable."""
    num_temporal_views: int = 1
    """Clips along time to average when testing."""
    num_spatial_views: int | None = None
    """Crops to average when testing, 1 (centre) or 3 (together the whole frame); default: 3, but 1 with stretch."""
    augmentation: Augmentation = _AUGMENTATION
    """How training clips are varied; no flip, which would confuse left and right (on the colours, see docs/log.md)."""
    views_per_clip: int | None = None
    """Number of random views per training clip, reused in rotation; default: a fresh view every epoch. Frozen first
    blocks then run once per view: see token_cache_gigabytes."""
    epochs: int | None = None
    """Passes over the data; default: as many as give 600 optimizer steps, at least 8."""
    batch_size: int = 8
    """Clips per batch and process; a step takes accumulation_steps batches."""
    accumulation_steps: int = 1
    """Batches whose gradients are accumulated before the weights change; all their clips count the same."""
    balance_classes: bool = False
    """Show every class equally often per epoch, however many clips it has; otherwise every clip once. With verb+noun,
    their combinations are balanced."""
    lr: float = 2e-3
    """Highest learning rate."""
    lr_clips: int | None = None
    """Clips per step that lr is meant for: lr is scaled linearly to the actual number; default: not scaled."""
    weight_decay: float = 1e-2
    """AdamW's weight decay; not applied to biases, norms and embeddings, such as those of time."""
    warmup_fraction: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls to 0 along a cosine."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, 0 to 1."""
    dropout: float = 0.0
    """Dropout before the classifier, 0 to below 1."""
    gradient_clip: float = 1.0
    """Clip the gradient norm over all trained weights to this; 0 disables clipping."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the arithmetic; auto takes bf16 if the device supports it. Trained weights stay fp32."""
    gradient_checkpointing: bool = False
    """Keep only the input of most blocks and recompute the rest in the backward pass: much less memory for a third to a
    half more arithmetic, with the same result. The run reports cost and saving when it starts."""
    compile: bool = False
    """Compile the trunk's blocks for training with torch.compile, which takes a minute or so; meant for GPUs, no gain
    on a CPU. If it fails, the run says so and continues without."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    num_workers: int | None = None
    """Processes that decode videos; default: chosen for the machine; 0 decodes in the training process."""
    view_store_megabytes: int = 1024
    """MiB on disk for views drawn ahead: a video is then decoded once for up to 8 epochs; 0 decodes it every epoch."""
    token_cache_gigabytes: float | None = None
    """Gigabytes on disk for the output of frozen first blocks for views_per_clip views (some are frozen with
    --tuning.last-blocks); default: 8, or 0 if there is nothing to keep. 0 recomputes it every epoch: slower, with the
    same result."""
    token_cache_folder: str | Path | None = None
    """Folder for that output, reused by later runs on the same clips; default: stadapter in the user's cache folder."""
    seed: int = 0
    """Seed of everything random."""
    max_bad_fraction: float = 0.1
    """Stop the run when more than this share of the videos cannot be read, 0 to 1; a single one never stops it."""
    checkpoint_minutes: float = 5.0
    """Longest time between two checkpoints, in minutes; 0 writes one after every step. There is also one after every
    epoch, unless the last is less than 10 seconds old, and on Ctrl-C, SIGTERM and a lost terminal."""
    resume: bool = False
    """Resume the unfinished run in the run folder; refused if its settings or data have changed."""
    accept_changes: bool = False
    """With resume: continue although settings or data have changed; the receipt records it. Never accepted: another
    tuning, other classes, another trunk, another val_fraction."""

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "tuning", checked_tuning(self.tuning))
        check_json(self.tuning)
        if isinstance(self.backbone, Path):  # as text, tiny would mean the trunk that comes with the package
            object.__setattr__(self, "backbone", os.path.abspath(expanded(self.backbone)))
        for name in ("data", "out", "backbone", "val_data", "video_root", "token_cache_folder"):
            value = getattr(self, name)
            object.__setattr__(self, name, os.fspath(value) if value is not None else None)
        check_limits(self, _LIMITS, below=("dropout", "val_fraction"))
        check_spatial_views(self.num_spatial_views)
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"lr {self.lr}: expected a learning rate above 0, such as 2e-3")
        if self.accept_changes and not self.resume:
            raise SettingsError("accept_changes without resume: expected both, to continue an unfinished run")


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
    parts = {"tuning": tuning_to_json(config.tuning), "augmentation": dataclasses.asdict(config.augmentation)}
    plain: dict[str, Any] = json.loads(json.dumps({**vars(config), **parts}))
    return plain


def settings_from_json(values: Mapping[str, Any]) -> TrainConfig:
    """The inverse of `settings_to_json`."""
    parts = {
        "tuning": tuning_from_json(values["tuning"]),
        "augmentation": from_json(Augmentation, values["augmentation"]),
    }
    return from_json(TrainConfig, {**values, **parts})


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON values, with the defaults of those unknown to an older version of this program."""
    defaults = settings_to_json(TrainConfig(data="-", out="-"))
    known = {part: values[part] for part in ("tuning", "augmentation") if isinstance(values.get(part), Mapping)}
    if "tuning" in known and (strategy := STRATEGIES.get(known["tuning"].get("name"))):
        defaults["tuning"] = tuning_to_json(strategy())
    return {**defaults, **values, **{part: {**defaults[part], **given} for part, given in known.items()}}
