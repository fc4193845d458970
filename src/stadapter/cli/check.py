"""stadapter check: what is wrong with a data set, before training on it."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from stadapter.cli.flags import parse
from stadapter.cli.output import check_writable, output_console, progress_bar, say, write_json
from stadapter.labels import LabelKind


@dataclass(frozen=True)
class CheckFlags:
    """Inspect every clip of a data set as training would, and report what is wrong with it. The exit code is 0 if
    training can start, otherwise 1."""

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Labelled clips: a folder with one sub-folder of videos per class, a list (CSV or "<path> <class
    number>"), or the annotations of a public data set."""
    val_data: str | None = None
    """Clips to validate on, in any of the same layouts; default: the folder val/ or test/ next to train/, else a share
    of each class."""
    val_fraction: float = 0.2
    """Share of each class that is held out if there are no validation clips; 0 trains on everything."""
    video_root: str | None = None
    """Folder of the videos a list names; default: the list's own folder, and for a public data set also its parent."""
    label_kind: LabelKind = "action"
    """Labels of EPIC-Kitchens clips: action is a verb and a noun as one class, verb+noun uses two heads."""
    split_number: int = 1
    """Which of the three splits of UCF101 or HMDB51 to use, if their folder is given."""
    deep: bool = False
    """Decode every frame: finds damage inside files, but takes much longer."""
    json: str | None = None
    """Write the whole report to this file, as JSON; - for standard output."""
    num_frames: int = 8
    """Frames per training clip; videos with fewer are reported."""
    max_bad_fraction: float = 0.1
    """Share of unreadable clips above which a training run stops, 0 to 1."""
    num_workers: int | None = None
    """Threads that read videos; default: chosen for the machine, at most 8."""


def run(arguments: Sequence[str]) -> int:
    """stadapter check"""
    flags = parse(CheckFlags, "stadapter check", arguments)
    from stadapter.check import check_data
    from stadapter.machine import default_workers

    if flags.json is not None and flags.json != "-":
        check_writable(flags.json, "--json")
    with progress_bar("checking") as progress:
        report = check_data(
            flags.data,
            val_data=flags.val_data,
            val_fraction=flags.val_fraction,
            video_root=flags.video_root,
            label_kind=flags.label_kind,
            split_number=flags.split_number,
            num_frames=flags.num_frames,
            max_bad_fraction=flags.max_bad_fraction,
            deep=flags.deep,
            num_workers=flags.num_workers if flags.num_workers is not None else default_workers(),
            progress=progress,
        )
    output_console(sys.stderr if flags.json == "-" else sys.stdout).print(report)
    if flags.json is not None:
        write_json(flags.json, report.to_json())
    if report.could_train:
        say(f"next: {training_command(flags)}")
    return 0 if report.could_train else 1


def training_command(flags: CheckFlags) -> str:
    """The command that trains on what was checked, with the same split, without settings that do not apply."""
    from stadapter.manifest import used_settings

    data = (flags.data,) if flags.val_data is None else (flags.data, flags.val_data)
    unused = {"video_root", "label_kind", "split_number"} - used_settings(*data, split_number=flags.split_number)
    words = ["stadapter", "train", "--data", flags.data]
    for field in dataclasses.fields(CheckFlags):
        value = getattr(flags, field.name)
        if value != field.default and field.name not in {"data", "deep", "json", "num_workers", *unused}:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--out", "runs/first"])
