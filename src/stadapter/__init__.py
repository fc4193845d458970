"""Turn a pre-trained image model into a video classifier by training a few million parameters.

Everything a user needs is an attribute of this package; a name is imported when it is first used, so that
`import stadapter` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stadapter.augmentation import Augmentation as Augmentation
    from stadapter.backbones import load_backbone as load_backbone
    from stadapter.check import DataReport as DataReport
    from stadapter.check import check_data as check_data
    from stadapter.clips import ClipConfig as ClipConfig
    from stadapter.clips import load_clip as load_clip
    from stadapter.comparison.config import CompareConfig as CompareConfig
    from stadapter.comparison.runner import compare as compare
    from stadapter.comparison.summary import Comparison as Comparison
    from stadapter.convert import convert_released as convert_released
    from stadapter.errors import ArtefactError as ArtefactError
    from stadapter.errors import BackboneError as BackboneError
    from stadapter.errors import DataError as DataError
    from stadapter.errors import DivergedError as DivergedError
    from stadapter.errors import SettingsError as SettingsError
    from stadapter.errors import STAdapterError as STAdapterError
    from stadapter.errors import TrainingError as TrainingError
    from stadapter.errors import VideoError as VideoError
    from stadapter.evaluation import Report as Report
    from stadapter.evaluation import evaluate as evaluate
    from stadapter.export import Exported as Exported
    from stadapter.export import export_model as export_model
    from stadapter.manifest import Entry as Entry
    from stadapter.manifest import Manifest as Manifest
    from stadapter.manifest import read_manifest as read_manifest
    from stadapter.manifest import read_splits as read_splits
    from stadapter.model import VideoClassifier as VideoClassifier
    from stadapter.model import build_model as build_model
    from stadapter.predict import Classifier as Classifier
    from stadapter.predict import Prediction as Prediction
    from stadapter.predict import PredictionFailure as PredictionFailure
    from stadapter.predict import VideoPart as VideoPart
    from stadapter.predict import video_windows as video_windows
    from stadapter.sampling import dense_indices as dense_indices
    from stadapter.sampling import random_dense_indices as random_dense_indices
    from stadapter.sampling import random_uniform_indices as random_uniform_indices
    from stadapter.sampling import uniform_indices as uniform_indices
    from stadapter.training.loop import TrainResult as TrainResult
    from stadapter.training.loop import train as train
    from stadapter.training.settings import TrainConfig as TrainConfig
    from stadapter.tuning import AIM as AIM
    from stadapter.tuning import AttentivePooling as AttentivePooling
    from stadapter.tuning import BitFit as BitFit
    from stadapter.tuning import Bottleneck as Bottleneck
    from stadapter.tuning import Full as Full
    from stadapter.tuning import FullTemporal as FullTemporal
    from stadapter.tuning import LinearProbe as LinearProbe
    from stadapter.tuning import LoRA as LoRA
    from stadapter.tuning import Partial as Partial
    from stadapter.tuning import Prompt as Prompt
    from stadapter.tuning import STAdapter as STAdapter
    from stadapter.tuning import Temporal as Temporal
    from stadapter.tuning import Tuning as Tuning
    from stadapter.video import read_frames as read_frames
    from stadapter.vit import ImageViT as ImageViT

__version__ = "0.1.0"

_NAMES = {
    "augmentation": ("Augmentation",),
    "backbones": ("load_backbone",),
    "check": ("DataReport", "check_data"),
    "clips": ("ClipConfig", "load_clip"),
    "comparison.config": ("CompareConfig",),
    "comparison.runner": ("compare",),
    "comparison.summary": ("Comparison",),
    "convert": ("convert_released",),
    "errors": (
        "ArtefactError",
        "BackboneError",
        "DataError",
        "DivergedError",
        "STAdapterError",
        "SettingsError",
        "TrainingError",
        "VideoError",
    ),
    "evaluation": ("Report", "evaluate"),
    "export": ("Exported", "export_model"),
    "manifest": ("Entry", "Manifest", "read_manifest", "read_splits"),
    "model": ("VideoClassifier", "build_model"),
    "predict": ("Classifier", "Prediction", "PredictionFailure", "VideoPart", "video_windows"),
    "sampling": ("dense_indices", "random_dense_indices", "random_uniform_indices", "uniform_indices"),
    "training.settings": ("TrainConfig",),
    "training.loop": ("TrainResult", "train"),
    "tuning": (
        "AIM",
        "AttentivePooling",
        "BitFit",
        "Bottleneck",
        "Full",
        "FullTemporal",
        "LinearProbe",
        "LoRA",
        "Partial",
        "Prompt",
        "STAdapter",
        "Temporal",
        "Tuning",
    ),
    "video": ("read_frames",),
    "vit": ("ImageViT",),
}
"""Room -> the public names in it."""
_ROOM_OF = {name: room for room, names in _NAMES.items() for name in names}

__all__ = ["__version__", *_ROOM_OF]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
