"""stadapter predict: classified videos as a table, JSON lines or CSV."""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table
from rich.text import Text

from stadapter.cli.classifier import Precision, load_classifier
from stadapter.cli.flags import parse
from stadapter.cli.output import output_console, progress_bar, say
from stadapter.errors import DataError, SettingsError, VideoError
from stadapter.wording import counted, percent, printable

if TYPE_CHECKING:
    from stadapter.predict import Classifier, Prediction, PredictionFailure, VideoPart

    Row = str | VideoPart | PredictionFailure
    Result = Prediction | PredictionFailure


@dataclass(frozen=True)
class PredictFlags:
    """Classify videos. A video that cannot be read becomes a row with its error; the exit code is 0 unless none
    could be read."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder made by train or convert, or the Hub id of one."""
    videos: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO ...", help_behavior_hint="(required)")
    ]
    """Video files, folders of numbered images, folders to search for both, or lists of clips: a path in every line, or
    a CSV with the columns path,start,end."""
    format: Literal["table", "json", "csv"] = "table"
    """table for people, json for one JSON object per line, or csv."""
    top_k: int = 5
    """How many of the highest scores to show."""
    window_seconds: float | None = None
    """Cut every video file into windows of this many seconds and classify each; default: every video as a whole."""
    stride_seconds: float | None = None
    """Seconds from the start of one window to the start of the next; default: the window's length."""
    backbone: str | None = None
    """Where the trunk is now, a Hub id or a folder; default: where it was in training."""
    batch_size: int = 8
    """Videos read at once, and views run through the network at once."""
    precision: Precision = "fp32"
    """Precision of the arithmetic."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if there is one."""


def run(arguments: Sequence[str]) -> int:
    """stadapter predict"""
    flags = parse(PredictFlags, "stadapter predict", arguments)
    check(flags)
    classifier = load_classifier(flags.run, backbone=flags.backbone, precision=flags.precision, device=flags.device)
    rows = find_rows(flags)
    # Lines on a terminal already show how far it has come.
    with progress_bar("predicting", shown=flags.format == "table" or not sys.stdout.isatty()) as progress:
        results = Watched(predict_rows(classifier, rows, flags.batch_size), len(rows), progress)
        top_k, heads = min(flags.top_k, classifier.num_scores), classifier.model.label_space.heads
        if flags.format == "json":
            write_json_lines(results, top_k)
        elif flags.format == "csv":
            write_csv(results, top_k, heads, with_times=flags.window_seconds is not None or have_times(rows))
        else:
            table = results_table(results, top_k, heads)
    if flags.format == "table":
        output_console(sys.stdout).print(table)
    if results.num_failed:
        say(f"{results.num_failed} of {len(rows)} could not be read")
    return 1 if results.num_failed == len(rows) else 0


def check(flags: PredictFlags) -> None:
    """Refuse flags that make no sense, before anything is loaded.

    Raises:
        SettingsError: the message says which.
    """
    if not flags.videos:
        raise SettingsError("no videos given; expected files, folders or lists: stadapter predict RUN clip.mp4")
    if "" in flags.videos:
        raise SettingsError(
            "one of the videos has an empty name; expected files, folders or lists: is a variable unset?"
        )
    if flags.top_k < 1:
        raise SettingsError(f"top_k {flags.top_k}: expected at least 1 class to show")
    if flags.stride_seconds is not None and flags.window_seconds is None:
        raise SettingsError("--stride-seconds without --window-seconds: expected both, to cut videos into windows")


def find_rows(flags: PredictFlags) -> list["Row"]:
    """What is to be classified, in order, and what is known to be unreadable.

    Raises:
        SettingsError: windows are asked for, but a list already says which parts.
    """
    rows = list(find_inputs(flags.videos))
    if flags.window_seconds is None:
        return rows
    if have_times(rows):
        raise SettingsError(
            "--window-seconds with a list of starts and ends: windows are cut from whole videos; expected one of both"
        )
    return list(cut_into_windows(rows, flags.window_seconds, flags.stride_seconds))


def have_times(rows: Iterable["Row"]) -> bool:
    """Whether some are parts of videos."""
    from stadapter.predict import VideoPart

    return any(isinstance(row, VideoPart) for row in rows)


def find_inputs(given: Iterable[str]) -> Iterator["Row"]:
    """The videos that files, folders and lists stand for, in order; a folder or a list without any is a failure."""
    from stadapter.manifest import find_videos, is_list, looks_like_video
    from stadapter.predict import PredictionFailure

    for name in (os.path.expanduser(each) for each in given):
        folder = Path(os.path.abspath(name))
        if is_list(folder):
            yield from read_clips(name)
            continue
        if not folder.is_dir() or looks_like_video(folder):
            yield name
            continue
        problems: list[str] = []
        videos, others = find_videos(folder, on_problem=problems.append)
        if others:
            say(f"{name}: skipped {counted(len(others), 'file')} other than videos")
        yield from (PredictionFailure(name, problem) for problem in problems)
        if not videos and not problems:
            yield PredictionFailure(name, "no videos in this folder")
        yield from (str(Path(name) / video.relative_to(folder)) for video in videos)


def read_clips(name: str) -> Iterator["Row"]:
    """The clips of a list, in order; before them, as failures, the lines that cannot be understood."""
    from stadapter.manifest import absolute, read_unlabelled
    from stadapter.predict import PredictionFailure, VideoPart

    problems: list[str] = []
    try:
        entries = read_unlabelled(absolute(name), problems.append)
    except DataError as error:
        yield PredictionFailure(name, str(error))
        return
    yield from (PredictionFailure(name, problem) for problem in problems)
    if not entries and not problems:
        yield PredictionFailure(name, "no videos in this list")
    for entry in entries:
        path, times = str(Path(name).parent / entry.name), (entry.start_seconds, entry.end_seconds)
        yield path if times == (None, None) else VideoPart(path, *times)


def cut_into_windows(rows: "Iterable[Row]", window_seconds: float, stride_seconds: float | None) -> Iterator["Row"]:
    """The windows of every video, in order; one that cannot be cut becomes a failure, and failures pass through."""
    from stadapter.predict import PredictionFailure, video_windows

    for row in rows:
        if not isinstance(row, str):
            yield row
            continue
        try:
            yield from video_windows(row, window_seconds=window_seconds, stride_seconds=stride_seconds)
        except (VideoError, OSError) as error:
            yield PredictionFailure(row, str(error))


def predict_rows(classifier: "Classifier", rows: "Sequence[Row]", batch_size: int) -> Iterator["Result"]:
    """The answer for every row, in order; failures pass through."""
    from stadapter.predict import PredictionFailure

    videos = (row for row in rows if not isinstance(row, PredictionFailure))
    answers = classifier.predict_many(videos, batch_size=batch_size)
    return (row if isinstance(row, PredictionFailure) else next(answers) for row in rows)


class Watched:
    """Passes results on, counts those that failed, and updates a progress bar."""

    def __init__(self, results: Iterable["Result"], total: int, progress: Callable[[int, int], None]) -> None:
        self.num_failed = 0
        self._results, self._total, self._progress = results, total, progress

    def __iter__(self) -> Iterator["Result"]:
        from stadapter.predict import PredictionFailure

        for done, result in enumerate(self._results, start=1):
            self.num_failed += isinstance(result, PredictionFailure)
            self._progress(done, self._total)
            yield result


def results_table(results: Iterable["Result"], top_k: int, heads: Iterable[str] = ()) -> Table:
    """A table for people; for several heads it names the action and has a column per head."""
    from stadapter.labels import ACTION
    from stadapter.predict import PredictionFailure

    heads = list(heads)
    table = Table()
    table.add_column("video", overflow="fold")
    table.add_column(ACTION if heads else "class", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    for head in heads:
        table.add_column(head, overflow="fold")
    table.add_column("others", overflow="fold")
    for result in results:
        if isinstance(result, PredictionFailure):
            failed = Text(printable(result.error), "red")
            table.add_row(Text(printable(result.title)), Text("error", "red"), *[""] * (1 + len(heads)), failed)
            continue
        others = ", ".join(f"{label} {percent(score)}" for label, score in islice(result.top(top_k).items(), 1, None))
        of_heads = [f"{result.heads[head].label} {percent(result.heads[head].score)}" for head in heads]
        named = Text(printable(result.label), "bold")
        texts = [Text(printable(text)) for text in (*of_heads, others)]
        table.add_row(Text(printable(result.title)), named, percent(result.score), *texts)
    return table


def write_json_lines(results: Iterable["Result"], top_k: int) -> None:
    """One JSON object per line, as soon as it is known: video, label, score, scores; or video, error.

    For a part of a video also start_seconds and end_seconds. For several heads also heads: label, score and scores of
    each, by its name.
    """
    from stadapter.predict import Prediction

    for result in results:
        row: dict[str, Any] = {"video": result.video}
        if (result.start_seconds, result.end_seconds) != (None, None):
            row |= {"start_seconds": result.start_seconds, "end_seconds": result.end_seconds}
        row |= named(result, top_k) if isinstance(result, Prediction) else {"error": result.error}
        print(json.dumps(row), flush=True)


def named(prediction: "Prediction", top_k: int) -> dict[str, Any]:
    """A prediction without its video, as JSON values."""
    values = {"label": prediction.label, "score": prediction.score, "scores": prediction.top(top_k)}
    if prediction.heads:
        values["heads"] = {name: named(head, top_k) for name, head in prediction.heads.items()}
    return values


def write_csv(
    results: Iterable["Result"],
    top_k: int,
    heads: Mapping[str, Sequence[str]] | None = None,
    *,
    with_times: bool = False,
) -> None:
    """CSV with a header: the classes by rank with their scores, and the error if there is one.

    `with_times` adds the start and the end of the part after the video.

    For several heads, given with their classes: first the actions by rank, then the classes of each head.
    """
    from stadapter.predict import PredictionFailure

    parts = {"": top_k} | {f"{name}_": min(top_k, len(classes)) for name, classes in (heads or {}).items()}
    header = [
        f"{part}{name}_{rank}" if rank > 1 else f"{part}{name}"
        for part, count in parts.items()
        for rank in range(1, count + 1)
        for name in ("label", "score")
    ]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    times = ("start_seconds", "end_seconds") if with_times else ()
    writer.writerow(["video", *times, *header, "error"])
    for result in results:
        of = [result.video, *(getattr(result, name) for name in times)]
        if isinstance(result, PredictionFailure):
            writer.writerow([*of, *[""] * len(header), result.error])
        else:
            ranked = [
                each.top(count) for each, count in zip((result, *result.heads.values()), parts.values(), strict=True)
            ]
            cells = [cell for scores in ranked for label, score in scores.items() for cell in (label, f"{score:.6f}")]
            writer.writerow([*of, *cells, ""])
        sys.stdout.flush()
