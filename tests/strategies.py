"""Every strategy with small settings, what each promises, and models built with them."""

import re
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stadapter.model import VideoClassifier, build_model
from stadapter.tuning import (
    AIM,
    AttentivePooling,
    BitFit,
    Bottleneck,
    Full,
    FullTemporal,
    LinearProbe,
    LoRA,
    Partial,
    Prompt,
    STAdapter,
    Temporal,
    Tuning,
)
from stadapter.vit import ImageViT
from trunks import make_trunk

LABELS = ("left", "right", "up")
CASES: dict[str, Tuning] = {
    "st-adapter": STAdapter(width=8),
    "st-adapter-both-3x3x3": STAdapter(width=8, kernel_size=(3, 3, 3), before_mlp=True, activation=None),
    "linear-probe": LinearProbe(),
    "attentive-pooling": AttentivePooling(num_frames=4, num_heads=2),
    "attentive-pooling-no-time": AttentivePooling(num_frames=None),
    "bitfit": BitFit(),
    "prompt": Prompt(num_prompts=2, dropout=0.0),
    "lora": LoRA(rank=2),
    "lora-last-block": LoRA(rank=2, alpha=3.5, dropout=0.25, last_blocks=1),
    "bottleneck": Bottleneck(width=8, before_mlp=True),
    "aim": AIM(width=8, num_frames=4),
    "aim-twice": AIM(width=8, num_frames=3, adapt_before_time=True),
    "temporal": Temporal(num_frames=4),
    "partial": Partial(last_blocks=2),
    "full": Full(),
    "full-temporal": FullTemporal(num_frames=4),
}
_POOLING = r"head\.(query|key|value|output|pooled_norm)"
_AIM = r"\.(time_embedding|adapter|adapter_in)\.|^trunk\.norm\."
PROMISED = {
    "st-adapter": r"\.before_attention\.",
    "st-adapter-both-3x3x3": r"\.before_(attention|mlp)\.",
    "linear-probe": r"^$",
    "attentive-pooling": rf"{_POOLING}|head\.time_embedding",
    "attentive-pooling-no-time": _POOLING,
    "bitfit": r"^trunk\..*\.bias$",
    "prompt": r"\.attention\.prompts$",
    "lora": r"\.lora_[AB]\.",
    "lora-last-block": r"blocks\.2\..*\.lora_[AB]\.",
    "bottleneck": r"\.before_(attention|mlp)\.",
    "aim": _AIM,
    "aim-twice": _AIM,
    "temporal": r"\.before_attention\.",
    "partial": r"^trunk\.(blocks\.[12]|norm)\.",
    "full": r"^trunk\.(?!.*mask_token)",
    "full-temporal": r"^trunk\.(?!.*mask_token)",
}
"""What of a model learns, as a pattern of names, beside the classifier, which always does."""
STARTS_OTHERWISE = {"prompt", "attentive-pooling", "attentive-pooling-no-time"}
"""Strategies that do not promise to start as the trunk with its frames averaged."""
SEES_TIME = {
    "st-adapter",
    "st-adapter-both-3x3x3",
    "attentive-pooling",
    "aim",
    "aim-twice",
    "temporal",
    "full-temporal",
}
"""Strategies whose answer depends on the order of frames."""


@cache
def shared_trunk(family: str) -> ImageViT:
    """One tiny trunk a family for many models, which must leave it as it is."""
    return make_trunk(family)


def build(family: str = "dinov2", strategy: str = "st-adapter", **settings: Any) -> VideoClassifier:
    return build_model(backbone=shared_trunk(family), tuning=CASES[strategy], labels=LABELS, **settings)


def learns(strategy: str, name: str) -> bool:
    """Whether a strategy promises to train the parameter of this name."""
    return name.startswith("head.classifier.") or re.search(PROMISED[strategy], name) is not None


def disturb(model: VideoClassifier, seed: int = 5) -> None:
    """Give all that learns other values, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trained_tensors().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def relative_error(ours: Tensor, expected: Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()
