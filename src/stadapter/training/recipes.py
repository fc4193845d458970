"""Published training runs by name: each function returns the whole configuration.

Each docstring says what is published and what is not. Every setting can still be changed:
`stadapter train --recipe ssv2-b16 --data … --out … --epochs 10`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from stadapter.augmentation import Augmentation
from stadapter.training.settings import TrainConfig
from stadapter.tuning import STAdapter

CLIP_B16 = "openai/clip-vit-base-patch16"
CLIP_L14 = "openai/clip-vit-large-patch14"


def small(data: str | Path, out: str | Path) -> TrainConfig:
    """Few clips and little compute: the defaults of `train`, chosen by measurement (docs/log.md, docs/results.md).

    stadapter train --data videos/ --out runs/first
    """
    return TrainConfig(data=data, out=out)


def k400_b16(data: str | Path, out: str | Path) -> TrainConfig:
    """Kinetics-400 on CLIP ViT-B/16, 8 frames, as the released script for "12x384" trains it.

    Source: the released implementation of Pan et al. (NeurIPS 2022, arXiv 2206.13559), train_k400_…_adapter12x384.sh.
    Published: 82.2 % top-1 (released checkpoint; 82.0 % in the paper), 3 temporal views of the centre crop.
    Hardware: 3 GPUs with 64 clips each; the paper's cost is 23 V100-hours.

    accelerate launch --num_processes 3 -m stadapter train --recipe k400-b16 --data kinetics/ --out runs/k400
    """
    return TrainConfig(
        data=data,
        out=out,
        backbone=CLIP_B16,
        tuning=STAdapter(width=384, before_attention=False, before_mlp=True, activation=None),
        num_frames=8,
        stride_frames=16,
        size=224,
        resize="released",
        num_temporal_views=3,
        num_spatial_views=1,
        augmentation=Augmentation(crop="short_side_jitter", scale=(1.0, 1.15), flip=True),
        epochs=12,
        batch_size=64,
        lr=1e-3,
        lr_clips=256,
        weight_decay=1e-2,
        warmup_fraction=2 / 12,
        dropout=0.5,
        gradient_clip=0.0,
    )


def ssv2_b16(data: str | Path, out: str | Path) -> TrainConfig:
    """Something-Something-v2 on CLIP ViT-B/16, 8 frames, as the released script for "24x384" trains it.

    Source: the released implementation of Pan et al. (NeurIPS 2022, arXiv 2206.13559), train_ssv2_…_adapter24x384.sh.
    Published: 66.9 % top-1 (released checkpoint), one temporal view, 3 crops.
    Hardware: 4 GPUs with 64 clips each.

    accelerate launch --num_processes 4 -m stadapter train --recipe ssv2-b16 --data ssv2/ --out runs/ssv2
    """
    return TrainConfig(
        data=data,
        out=out,
        backbone=CLIP_B16,
        tuning=STAdapter(width=384, before_attention=True, before_mlp=True, activation=None),
        num_frames=8,
        size=224,
        resize="released",
        num_temporal_views=1,
        num_spatial_views=3,
        augmentation=Augmentation(scale=(0.08, 1.0), rand_augment="rand-m7-n4-mstd0.5-inc1"),
        epochs=50,
        batch_size=64,
        lr=1e-3,
        lr_clips=256,
        weight_decay=1e-2,
        warmup_fraction=2 / 50,
        dropout=0.5,
        gradient_clip=0.0,
    )


def k400_l14(data: str | Path, out: str | Path) -> TrainConfig:
    """Kinetics-400 on CLIP ViT-L/14, 32 frames. Its accuracy is published, but not its training.

    Source: trunk, frames and views from Pan et al. (NeurIPS 2022, arXiv 2206.13559). One adapter of width 384 per block
    follows from the cost that later papers' tables give for it, 8,248 GFLOPs for three views: 7,783 for the trunk and
    465 for 24 such adapters.
    Published: 87.2 % top-1, 3 temporal views of the centre crop.
    Ours: everything else is as in k400-b16 (place of the adapter, augmentation, 12 epochs, 192 clips per step and their
    learning rate); the stride of 8 frames is that of the same authors' EVL (arXiv 2208.03550) for 32 frames.
    Hardware: 8 GPUs with 8 clips each, 3 batches per step.

    accelerate launch --num_processes 8 -m stadapter train --recipe k400-l14 --data kinetics/ --out runs/k400-l14
    """
    return replace(
        k400_b16(data, out), backbone=CLIP_L14, num_frames=32, stride_frames=8, batch_size=8, accumulation_steps=3
    )


def ssv2_l14(data: str | Path, out: str | Path) -> TrainConfig:
    """Something-Something-v2 on CLIP ViT-L/14, 32 frames. Its accuracy is published, but not its training.

    Source: trunk, frames and views from Pan et al. (NeurIPS 2022, arXiv 2206.13559).
    Published: 72.3 % top-1, one temporal view, 3 crops.
    Ours: everything else is as in ssv2-b16 (adapters before attention and MLP, augmentation, 50 epochs, 256 clips per
    step and their learning rate), with k400-l14's width of 384.
    Hardware: 8 GPUs with 8 clips each, 4 batches per step.

    accelerate launch --num_processes 8 -m stadapter train --recipe ssv2-l14 --data ssv2/ --out runs/ssv2-l14
    """
    return replace(ssv2_b16(data, out), backbone=CLIP_L14, num_frames=32, batch_size=8, accumulation_steps=4)


def ek100_b16(data: str | Path, out: str | Path) -> TrainConfig:
    """EPIC-Kitchens-100 on CLIP ViT-B/16: a head for verbs and one for nouns. Only its accuracy is published.

    Source: Pan et al. (NeurIPS 2022, arXiv 2206.13559), who give the trunk and both accuracies.
    Published: verb 67.6 %, noun 55.0 % top-1.
    Ours: everything else is as in ssv2-b16, the other data set in which motion is the class: 8 frames over the whole
    segment, adapters before attention and MLP, no flip, 50 epochs, one temporal view and 3 crops.
    Hardware: 4 GPUs with 64 clips each.

    accelerate launch --num_processes 4 -m stadapter train --recipe ek100-b16 --data epic/ --out runs/ek100
    """
    return replace(ssv2_b16(data, out), label_kind="verb+noun")


RECIPES: dict[str, Callable[[str | Path, str | Path], TrainConfig]] = {
    "small": small,
    "k400-b16": k400_b16,
    "k400-l14": k400_l14,
    "ssv2-b16": ssv2_b16,
    "ssv2-l14": ssv2_l14,
    "ek100-b16": ek100_b16,
}
"""The name of a recipe on the command line -> its function."""
