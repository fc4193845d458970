"""report.html: a run and its evaluation as one page that needs no network and runs no script."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stadapter.artefact import SPEC_NAME, WEIGHTS_NAME, read_spec
from stadapter.clips import ClipConfig
from stadapter.durable import write_where_told
from stadapter.evaluation.figures import Report, by_head, headline_figures, largest_errors
from stadapter.evaluation.timecheck import TimeCheck
from stadapter.field_types import known_from_json
from stadapter.labels import ACTION, LabelSpace
from stadapter.manifest import Manifest
from stadapter.paths import expanded
from stadapter.report.charts import Bar, HeatMap, class_bars, heat_map, time_bars
from stadapter.report.curves import read_curves
from stadapter.report.filmstrips import Filmstrip, make_filmstrips
from stadapter.wording import bytes_text, counted, duration

REPORT_NAME = "report.html"
_NUM_FILMSTRIPS = 6
_NUM_ERRORS = 20
_WIDE = 0.2
"""A wider interval says little."""

Line = tuple[str, str]
"""A name and its value."""


@dataclass(frozen=True)
class HeadFigures:
    """What the page shows of the classes of one head."""

    name: str
    """Empty if there is only one head."""
    bars: Sequence[Bar]
    heat_map: HeatMap
    errors: Sequence[tuple[int, str, str]]
    num_errors: int


@dataclass(frozen=True)
class Figures:
    """The part of the page that comes from an evaluation."""

    report: Report
    headlines: Sequence[tuple[str, float, Any]]
    num_right: int
    calibration: str
    heads: Sequence[HeadFigures]
    times: Sequence[tuple[str, TimeCheck, Sequence[Bar]]]
    """The time check of actions and of each head, by name; without a name if there is only one head."""
    hits: Sequence[Filmstrip]
    misses: Sequence[Filmstrip]


def write_report(
    path: str | os.PathLike[str],
    report: Report | None,
    *,
    run: str | os.PathLike[str],
    manifest: Manifest | None = None,
    clip_config: ClipConfig | None = None,
    command: str | None = None,
) -> Path:
    """Write a page that shows how a run was trained and how its evaluation went; written whole or not at all.

    Pictures, style and figures are all in this one file. It holds frames of the evaluated clips if `manifest` is given.

    Args:
        path: the file to write; an existing one is replaced.
        report: the evaluation; None leaves the training curves and the receipt.
        run: the run folder, for its receipt and its metrics.jsonl.
        manifest: the evaluated clips, for filmstrips of some; one that is gone is named instead of shown.
        clip_config: which of their frames were looked at; default: those of the run.
        command: the command of the evaluation, if that was not the training command.

    Raises:
        ArtefactError: `run` is not a run folder, or the file cannot be written.
    """
    path, folder = expanded(path), expanded(run)
    spec = read_spec(folder)
    config = clip_config if clip_config is not None else known_from_json(ClipConfig, spec.get("clip", {}))
    page = _template().render(
        title=folder.resolve().name,
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        spec=spec,
        classes=str(LabelSpace.from_json(spec["labels"])),
        figures=_figures(report, manifest, config) if report is not None else None,
        curves=read_curves(folder),
        unreadable=_unreadable(spec, report),
        notes=manifest.notes() if manifest is not None else [],
        receipt=_receipt(folder, spec),
        evaluation=_evaluation(report, manifest, config, command) if report is not None else [],
        settings=json.dumps(spec.get("receipt", {}).get("settings", {}), indent=1, ensure_ascii=False),
    )
    write_where_told(path, page.encode(errors="backslashreplace"))
    return path


def shown(value: object) -> object:
    """What the page prints for a value: bytes that are not text and control characters are made visible.

    >>> print(shown("a\\nb\\udce9"))
    a\\nb\\xe9
    """
    if type(value) is not str:  # Markup is a string that has been through this already
        return value
    try:
        text = value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        text = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.translate(_VISIBLE)


def brief(text: str, limit: int = 60) -> str:
    """A text of at most `limit` characters: its start and its end, if it is longer.

    >>> brief("a" * 50 + "b" * 50, 11)
    'aaaaa…bbbbb'
    """
    kept = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:kept]}…{text[-kept:]}"


_CONTROLS = (*range(32), *range(127, 160), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = {code: repr(chr(code))[1:-1] for code in _CONTROLS}
"""Characters that end lines, or reverse the direction of what follows, as Python writes them."""


def _template() -> Any:
    """The page with its filters; everything filled in is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stadapter.report", "."),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
    environment.filters["between"] = lambda interval: (
        f"{100 * interval.low:.0f} to {100 * interval.high:.0f}\N{NO-BREAK SPACE}%"
    )
    environment.filters["brief"] = brief
    environment.filters["prose"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.filters["counted"] = counted
    return environment.get_template("page.html")


def _figures(report: Report, manifest: Manifest | None, config: ClipConfig) -> Figures:
    hits, misses = make_filmstrips(report, manifest, config, limit=_NUM_FILMSTRIPS)
    parts = by_head(report)
    return Figures(
        report=report,
        headlines=headline_figures(report),
        num_right=sum(prediction.is_correct for prediction in report.predictions),
        calibration=_calibration(report),
        heads=[_head_figures(name, head) for name, head in (report.heads or parts).items()],
        times=[
            (name, part.time_check, time_bars(part.time_check))
            for name, part in parts.items()
            if part.time_check is not None
        ],
        hits=hits,
        misses=misses,
    )


def _head_figures(name: str, report: Report) -> HeadFigures:
    errors = largest_errors(report)
    return HeadFigures(name, class_bars(report), heat_map(report), errors[:_NUM_ERRORS], len(errors))


def _calibration(report: Report) -> str:
    """How reliable the scores are, in words."""
    low, high = report.top1_interval.low, report.top1_interval.high
    what = ACTION if report.heads else "class"
    meaning = f"Overall they are neither over- nor underconfident, as far as {counted(report.num_clips, 'clip')} show."
    if high - low > _WIDE:
        meaning = f"{counted(report.num_clips, 'clip')} are too few to tell whether they are over- or underconfident."
    if report.mean_score > high:
        meaning = "Overall they are overconfident."
    elif report.mean_score < low:
        meaning = "Overall they are underconfident."
    return (
        f"The score of the predicted {what} is {100 * report.mean_score:.0f} % on average, and "
        f"{100 * report.top1:.0f} % of the predictions are correct. {meaning} Among clips of similar score the two are "
        f"{counted(round(100 * report.calibration_error), 'point')} apart (expected calibration error, "
        f"{report.num_calibration_bins} bins; with few clips much of that is chance)."
    )


def _unreadable(spec: Mapping[str, Any], report: Report | None) -> list[tuple[str, str, str]]:
    """(where it occurred, name, reason) of every clip that could not be read."""
    trained = spec.get("receipt", {}).get("unreadable", {}).items()
    evaluated = report.failures if report is not None else ()
    told = [("evaluation", failure.title, failure.error) for failure in evaluated]
    return told + [("training", name, reason) for name, reason in trained]


def _receipt(folder: Path, spec: Mapping[str, Any]) -> list[Line]:
    """How the classifier was made, as far as its run folder says."""
    receipt, backbone = spec.get("receipt", {}), spec.get("backbone", {})
    settings = receipt.get("settings", {})
    sizes = [item.stat().st_size for name in (WEIGHTS_NAME, SPEC_NAME) if (item := folder / name).is_file()]
    versions = ", ".join(f"{name} {version}" for name, version in receipt.get("versions", {}).items())
    lines = {
        "command": receipt.get("command"),
        "trained parameters": spec.get("parameters", {}).get("summary"),
        "strategy": json.dumps(spec.get("tuning", {})),
        "trunk": backbone.get("name"),
        "trunk revision": backbone.get("revision"),
        "trunk sha256": backbone.get("sha256"),
        "data": settings.get("data"),
        "data sha256": receipt.get("data_sha256"),
        "clips trained on": _trained_on(receipt),
        "seed": settings.get("seed"),
        "optimizer steps": receipt.get("steps"),
        "changed along the way": "; ".join(receipt.get("changes", ())) or None,
        "precision": receipt.get("precision"),
        "processes": receipt.get("num_processes"),
        "hardware": receipt.get("hardware"),
        "time": duration(receipt["seconds"]) if "seconds" in receipt else None,
        "versions": versions or None,
        "run folder": f"{bytes_text(sum(sizes))}, not including the trunk" if sizes else None,
    }
    return [(name, str(value)) for name, value in lines.items() if value is not None]


def _trained_on(receipt: Mapping[str, Any]) -> str | None:
    """How many clips there were to train on, and how many of them could be read."""
    total, num_unreadable = receipt.get("num_train_clips"), len(receipt.get("unreadable", ()))
    if total is None or not num_unreadable:
        return total
    return f"{total - num_unreadable} of {total}: the others could not be read"


def _evaluation(report: Report, manifest: Manifest | None, config: ClipConfig, command: str | None) -> list[Line]:
    views = counted(config.num_views, "view")
    lines = {
        "command": command,
        "data sha256": manifest.hash() if manifest is not None else None,
        "clips": f"{report.num_clips} classified, {len(report.failures)} could not be read",
        "each clip": f"{config.num_frames} frames of {config.size} x {config.size} pixels, {views}",
        "intervals": f"{100 * report.confidence:.0f} %, percentile bootstrap over clips, "
        f"{report.num_resamples:,} resamples",
    }
    return [(name, value) for name, value in lines.items() if value is not None]
