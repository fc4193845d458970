"""stadapter evaluate: figures on labelled clips, as tables and as JSON."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from stadapter import __version__
from stadapter.cli.classifier import Precision, load_classifier
from stadapter.cli.flags import parse
from stadapter.cli.output import check_writable, output_console, progress_bar, say, write_json
from stadapter.errors import STAdapterError
from stadapter.labels import LABEL_KINDS, LabelKind
from stadapter.wording import counted, listed

if TYPE_CHECKING:
    from stadapter.clips import ClipConfig
    from stadapter.manifest import Manifest


@dataclass(frozen=True)
class EvaluateFlags:
    """Measure a trained classifier on labelled clips: accuracies with their uncertainty, whether time matters to it, a
    table by class, and the confusion matrix."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder made by train or convert, or the Hub id of one."""
    data: str
    """Labelled clips: a folder with one sub-folder of videos per class, a list (CSV or "<path> <class
    number>"), or the annotations of a public data set."""
    video_root: str | None = None
    """Folder of the videos a list names; default: the list's own folder, and for a public data set also its parent."""
    label_kind: LabelKind | None = None
    """Labels of EPIC-Kitchens clips; default: as trained."""
    split_number: int = 1
    """Which of the three splits of UCF101 or HMDB51 to use, if their folder is given."""
    json: str | None = None
    """Write the whole report to this file, as JSON; - for standard output."""
    report: str | None = None
    """Write the report to this file as an HTML page, such as report.html; it holds frames of some of the clips."""
    time_check: bool = True
    """Also classify every clip with its frames shuffled, reversed, and one repeated, to see whether time matters. Takes
    four times the arithmetic, except in frozen first blocks; clips are read only once."""
    backbone: str | None = None
    """Where the trunk is now, a Hub id or a folder; default: where it was in training."""
    num_temporal_views: int | None = None
    """Clips along time to average; default: as trained."""
    num_spatial_views: int | None = None
    """Crops to average, 1 or 3; default: as trained."""
    batch_size: int = 8
    """Clips read at once, and views run through the network at once."""
    num_workers: int | None = None
    """Processes that decode videos; default: chosen for the machine; 0 decodes in this process."""
    precision: Precision = "fp32"
    """Precision of the arithmetic."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""


def run(arguments: Sequence[str]) -> int:
    """stadapter evaluate"""
    flags = parse(EvaluateFlags, "stadapter evaluate", arguments)
    from stadapter.artefact import find_run, read_spec
    from stadapter.evaluation import evaluate
    from stadapter.evaluation.tables import tables
    from stadapter.machine import default_workers
    from stadapter.manifest import read_manifest, unused_settings

    if flags.json not in (None, "-"):
        check_writable(flags.json, "--json")
    if flags.report is not None:
        check_writable(flags.report, "--report")
    folder = find_run(flags.run)
    spec = read_spec(folder)
    manifest = read_manifest(
        flags.data,
        video_root=flags.video_root,
        label_kind=flags.label_kind or trained_label_kind(spec),
        split_number=flags.split_number,
    )
    classifier = load_classifier(str(folder), backbone=flags.backbone, precision=flags.precision, device=flags.device)
    manifest = manifest.named(classifier.labels)
    unused = unused_settings(
        flags.data,
        video_root=flags.video_root,
        label_kind=flags.label_kind or "action",
        split_number=flags.split_number,
    )
    say([*manifest.notes(), *unused, *_trained_on(spec, flags.data, manifest)])
    clip_config = _with_views(classifier.clip_config, flags)
    workers = flags.num_workers
    if workers is None:
        workers = default_workers(device_type=classifier.model.mean.device.type)
    with progress_bar("evaluating") as progress:
        report = evaluate(
            classifier.model,
            manifest,
            clip_config,
            batch_size=flags.batch_size,
            num_workers=workers,
            progress=progress,
            time_check=flags.time_check,
        )
    output_console(sys.stderr if flags.json == "-" else sys.stdout).print(tables(report))
    command = shlex.join(["stadapter", "evaluate", *arguments])
    if flags.json is not None:
        of = {"command": command, "run": str(folder), "data": flags.data, "data_sha256": manifest.hash()}
        how = {"clip": dataclasses.asdict(clip_config), "precision": flags.precision, "stadapter": __version__}
        write_json(flags.json, {"evaluation": {**of, **how}, **report.to_json()})
    if flags.report is not None:
        from stadapter.report import write_report

        written = write_report(
            flags.report, report, run=folder, manifest=manifest, clip_config=clip_config, command=command
        )
        say(f"wrote {written}")
    return 0


def _with_views(clip_config: "ClipConfig", flags: EvaluateFlags) -> "ClipConfig":
    """The clips of training, with the numbers of views that the flags set."""
    views = {name: getattr(flags, name) for name in ("num_temporal_views", "num_spatial_views")}
    return dataclasses.replace(clip_config, **{name: count for name, count in views.items() if count is not None})


def trained_label_kind(spec: Mapping[str, Any]) -> LabelKind:
    """What the clips a run was trained on were labelled with, according to its stadapter.json."""
    settings = spec.get("receipt", {}).get("settings", {})
    return next((kind for kind in LABEL_KINDS if kind == settings.get("label_kind")), "action")


def _trained_on(spec: Mapping[str, Any], data: str, manifest: "Manifest") -> list[str]:
    """A note if a run was trained on some clips of the very data it is evaluated on."""
    from stadapter.manifest import absolute, read_splits

    receipt = spec.get("receipt", {})
    settings, up_to = receipt.get("settings", {}), receipt.get("held_out_up_to")
    layout = ("val_fraction", "val_data", "video_root", "label_kind", "split_number")
    with suppress(STAdapterError, OSError, TypeError, KeyError):  # it is gone, or has changed
        if absolute(settings["data"]) == absolute(data):
            known = {name: settings[name] for name in layout if name in settings}
            train_set, _ = read_splits(data, **known, held_out_up_to=up_to)
            if shared := train_set.shared_with(manifest):
                # Nobody has seen clips that were added since then.
                at_most = "" if train_set.hash() == receipt.get("data_sha256") else "up to "
                return [
                    f"{at_most}{len(shared)} of {counted(len(manifest.entries), 'clip')} were trained on, so the "
                    f"accuracy will be too high: {listed(shared)}"
                ]
    return []
