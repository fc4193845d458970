"""stadapter convert: turns a checkpoint of the released code into a run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from stadapter.cli.flags import parse
from stadapter.cli.output import next_step, say
from stadapter.wording import counted


@dataclass(frozen=True)
class ConvertFlags:
    """Turn a checkpoint of the released ST-Adapter code (*.pth) into a run folder.

    The checkpoint does not say which clips it was tested with: name the published run it comes from with --recipe, or
    give frames and views.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """The checkpoint; no code in it is run."""
    out: str
    """Run folder to create; an existing one is refused."""
    recipe: str | None = None
    """The published run it comes from, such as k400-b16 or ssv2-b16; its trunk and views are the defaults below."""
    backbone: str | None = None
    """CLIP trunk it was trained on: a Hub id or a folder; default: the recipe's."""
    labels: str | None = None
    """Text file with the class names, one per line, in the order of the classes; default: 0, 1 and so on."""
    num_frames: int | None = None
    """Frames per clip; default: the recipe's, else 8."""
    size: int | None = None
    """Side of a clip in pixels; default: the trunk's own."""
    stride_frames: int | None = None
    """Distance between frames, in frames; default: the recipe's, else spread over the whole video."""
    num_temporal_views: int | None = None
    """Clips along time to average; default: the recipe's, else 1."""
    num_spatial_views: int | None = None
    """Crops to average, 1 or 3; default: the recipe's, else 1."""


def run(arguments: Sequence[str]) -> int:
    """stadapter convert"""
    flags = parse(ConvertFlags, "stadapter convert", arguments)
    from stadapter.artefact import read_spec
    from stadapter.convert import convert_released, read_labels

    settings = {**vars(flags), "labels": read_labels(flags.labels) if flags.labels is not None else None}
    folder = convert_released(settings.pop("checkpoint"), **settings)
    spec = read_spec(folder)
    say(
        [
            f"saved in {folder}: {counted(len(spec['labels']), 'class')}, {spec['parameters']['summary']}",
            f"tested with {_views(spec['clip'])}",
            next_step(folder),
        ]
    )
    return 0


def _views(clip: Mapping[str, Any]) -> str:
    """The test views of a run, in words."""
    stride = clip["stride_frames"]
    spread = f"{counted(stride, 'frame')} apart" if stride is not None else "spread over the video"
    return (
        f"{counted(clip['num_frames'], 'frame')} {spread}, {clip['size']} x {clip['size']} pixels: "
        f"{counted(clip['num_temporal_views'], 'temporal view')} x {counted(clip['num_spatial_views'], 'crop')}"
    )
