"""stadapter export: a trained classifier as one file that runs without this program."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from stadapter.cli.flags import parse
from stadapter.cli.output import say
from stadapter.wording import bytes_text


@dataclass(frozen=True)
class ExportFlags:
    """Write a trained classifier, trunk included, as one file that runs without this program: an ONNX model or a
    PyTorch program.

    The file takes the test views of a video and returns the scores of each. It also describes its input and output, the
    classes, and how clips are made. Before it is kept, its scores are compared with the run's own.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder left by training, or the Hub id of one."""
    out: str
    """File to write, ending in .onnx (ONNX Runtime and others) or .pt2 (torch.export.load); an existing one is
    replaced."""
    backbone: str | None = None
    """Where the trunk is now, if not where it was in training: a Hub id or a folder."""


def run(arguments: Sequence[str]) -> int:
    """stadapter export"""
    flags = parse(ExportFlags, "stadapter export", arguments)
    from stadapter.export import export_model

    say(f"exporting {flags.run} …")
    exported = export_model(flags.run, flags.out, backbone=flags.backbone)
    takes, gives = exported.description["input"], exported.description["output"]
    say(
        [
            f"saved in {exported.path}: {bytes_text(exported.num_bytes)}, including the trunk",
            f"takes {takes['name']}, {takes['dtype']} {_shape(takes['shape'])}, returns {gives['name']}, "
            f"{gives['dtype']} {_shape(gives['shape'])}",
            f"checked on random clips: no score is more than {exported.largest_difference:.1e} from the run's own",
        ]
    )
    return 0


def _shape(sizes: Sequence[object]) -> str:
    return f"({', '.join(map(str, sizes))})"
