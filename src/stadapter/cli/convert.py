"""stadapter convert: a checkpoint of the released code as a run folder."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from stadapter.cli.output import next_step, say
from stadapter.errors import counted


@dataclass(frozen=True)
class ConvertFlags:
    """Turn a checkpoint of the released ST-Adapter code (*.pth) into a run folder.

    Released: for Kinetics-400 --stride-frames 16 --num-temporal-views 3, for Something-Something-v2
    --num-spatial-views 3.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """The checkpoint; no code in it is run."""
    backbone: str
    """CLIP trunk it was trained on: a Hub id or a folder, such as openai/clip-vit-base-patch16."""
    out: str
    """Run folder to make; an existing one is refused."""
    labels: str | None = None
    """Text file with the class names, one per line, in the order of the classes; default 0, 1 and so on."""
    num_frames: int = 8
    """Frames of a clip."""
    size: int | None = None
    """Side of a clip, pixels; default the trunk's own."""
    stride_frames: int | None = None
    """Distance between frames, in frames; default spreads them over the whole video."""
    num_temporal_views: int = 1
    """Clips along time that are averaged."""
    num_spatial_views: int = 1
    """Crops that are averaged, 1 or 3."""


def run(arguments: Sequence[str]) -> int:
    """stadapter convert"""
    flags = tyro.cli(ConvertFlags, prog="stadapter convert", args=arguments)
    from stadapter.artefact import read_spec
    from stadapter.convert import convert_released, read_labels

    settings = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}
    settings["labels"] = read_labels(flags.labels) if flags.labels is not None else None
    folder = convert_released(settings.pop("checkpoint"), **settings)
    spec = read_spec(folder)
    say(
        [
            f"saved in {folder}: {counted(len(spec['labels']), 'class')}, {spec['parameters']['summary']}",
            next_step(folder),
        ]
    )
    return 0
