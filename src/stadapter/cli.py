"""The verbs of the command line: flags in, results on standard output, messages on standard error."""

import csv
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stadapter.errors import DataError, SettingsError, STAdapterError, counted

if TYPE_CHECKING:
    import torch

    from stadapter.predict import Classifier, Prediction, PredictionFailure

    Result = Prediction | PredictionFailure

_PIPE_COLUMNS = 10_000
"""How wide a table may be that is not shown on a terminal: nothing of it is cut off."""
_Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class EvaluateFlags:
    """Measure a trained classifier on labelled clips: accuracies, a table by class, the confusion matrix."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder that train or convert made, or the Hub id of one."""
    data: str
    """Labelled clips: a folder with one sub-folder of videos per class, or a list (CSV or "<path> <class number>")."""
    json: str | None = None
    """File to write the whole report to, as JSON; - for standard output."""
    backbone: str | None = None
    """Where the trunk is now, a Hub id or a folder; default where it was in training."""
    num_temporal_views: int | None = None
    """Clips along time that are averaged; default as trained."""
    num_spatial_views: int | None = None
    """Crops that are averaged, 1 or 3; default as trained."""
    batch_size: int = 8
    """Clips read at once, and views put through the network at once."""
    num_workers: int | None = None
    """Processes that decode videos; default half the cores, at most 8; 0 decodes in this process."""
    precision: _Precision = "fp32"
    """Precision of the arithmetic."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""


@dataclass(frozen=True)
class PredictFlags:
    """Name what videos show. A video that cannot be read is a row with its error; the exit code is 0 unless none
    could be read."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder that train or convert made, or the Hub id of one."""
    videos: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO ...", help_behavior_hint="(required)")
    ]
    """Video files, folders of numbered images, or folders to search for both."""
    format: Literal["table", "json", "csv"] = "table"
    """table for people, json for one JSON object a line, csv."""
    top_k: int = 5
    """How many of the highest scores to show."""
    backbone: str | None = None
    """Where the trunk is now, a Hub id or a folder; default where it was in training."""
    batch_size: int = 8
    """Videos read at once, and views put through the network at once."""
    precision: _Precision = "fp32"
    """Precision of the arithmetic."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps; auto takes a GPU where there is one."""


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


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run one verb with its flags and return the exit code."""
    verbs: dict[str, Callable[[Sequence[str]], int]] = {
        "train": run_train,
        "evaluate": run_evaluate,
        "predict": run_predict,
        "convert": run_convert,
    }
    return verbs[verb](arguments)


def run_train(arguments: Sequence[str]) -> int:
    """stadapter train"""
    from stadapter.checkpoint import CHECKPOINT_NAME
    from stadapter.train import TrainConfig, prepare, train

    flags = parse_train_flags(arguments)
    config = TrainConfig(**{field.name: getattr(flags, field.name) for field in dataclasses.fields(TrainConfig)})
    if flags.dry_run:
        print("\n".join([*prepare(config).describe(), "dry run: nothing was trained or written"]))
        return 0
    try:
        result = train(config)
    except KeyboardInterrupt:
        if (Path(config.out).expanduser() / CHECKPOINT_NAME).is_file():
            again = [argument for argument in arguments if argument != "--resume"]
            say(f"\nstopped; go on with: stadapter train {shlex.join(again)} --resume")
        raise
    if os.environ.get("RANK", "0") != "0":
        return 0
    if result.report is not None:
        from stadapter.evaluate import tables

        output_console(sys.stdout).print(tables(result.report))
    say([f"saved in {result.folder}", next_step(result.folder)])
    return 0


def run_evaluate(arguments: Sequence[str]) -> int:
    """stadapter evaluate"""
    flags = tyro.cli(EvaluateFlags, prog="stadapter evaluate", args=arguments)
    from stadapter.evaluate import evaluate, tables
    from stadapter.machine import default_workers
    from stadapter.manifest import read_manifest

    if flags.json is not None:
        check_writable(flags.json)
    manifest = read_manifest(flags.data)
    say(manifest.notes())
    classifier = load_classifier(flags.run, flags)
    views = {name: getattr(flags, name) for name in ("num_temporal_views", "num_spatial_views")}
    clip_config = dataclasses.replace(
        classifier.clip_config, **{name: count for name, count in views.items() if count is not None}
    )
    with progress_bar("evaluating") as progress:
        report = evaluate(
            classifier.model,
            manifest,
            clip_config,
            batch_size=flags.batch_size,
            num_workers=flags.num_workers if flags.num_workers is not None else default_workers(),
            autocast_dtype=autocast_dtype(flags.precision),
            progress=progress,
        )
    output_console(sys.stderr if flags.json == "-" else sys.stdout).print(tables(report))
    if flags.json is not None:
        write_json(flags.json, report.to_json())
    return 0


def run_predict(arguments: Sequence[str]) -> int:
    """stadapter predict"""
    flags = tyro.cli(PredictFlags, prog="stadapter predict", args=arguments)
    if not flags.videos:
        raise SettingsError("no videos given; expected files or folders: stadapter predict RUN clip.mp4")
    if "" in flags.videos:
        raise SettingsError("one of the videos is an empty name; expected files or folders: is a variable not set?")
    if flags.top_k < 1:
        raise SettingsError(f"top_k {flags.top_k}: expected at least 1 class to show")
    classifier = load_classifier(flags.run, flags)
    rows = list(find_inputs(flags.videos))
    # Lines on a terminal show by themselves how far it has come.
    with progress_bar("predicting", shown=flags.format == "table" or not sys.stdout.isatty()) as progress:
        results = Watched(predict_rows(classifier, rows, flags.batch_size), len(rows), progress)
        top_k = min(flags.top_k, len(classifier.labels))
        if flags.format == "json":
            write_json_lines(results, top_k)
        elif flags.format == "csv":
            write_csv(results, top_k)
        else:
            table = results_table(results, top_k)
    if flags.format == "table":
        output_console(sys.stdout).print(table)
    if results.num_failed:
        say(f"{results.num_failed} of {len(rows)} could not be read")
    return 1 if results.num_failed == len(rows) else 0


def run_convert(arguments: Sequence[str]) -> int:
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


def parse_train_flags(arguments: Sequence[str]) -> Any:
    """A `TrainConfig` with the flags of the chosen strategy, unchecked, and what only the command line has."""
    from stadapter.train import TrainConfig
    from stadapter.tuning import STRATEGIES

    strategy = chosen_strategy(arguments, tuple(STRATEGIES))
    check_strategy_flags(arguments, strategy, STRATEGIES)
    choices: Any = tyro.extras.literal_type_from_choices(STRATEGIES)
    named = tyro.conf.arg(name="tuning", help="What learns. Name one before --help to see its flags.")
    recipe = tyro.conf.arg(help="Named settings; small is for few clips and little compute.")
    dry_run = tyro.conf.arg(help="Say what would be trained, for how many steps, and stop.")
    kind = dataclasses.make_dataclass(
        "TrainFlags",
        [
            ("strategy", Annotated[choices, named], strategy),
            ("recipe", Annotated[Literal["small"], recipe], "small"),
            ("dry_run", Annotated[bool, dry_run], False),
            ("tuning", STRATEGIES[strategy], dataclasses.field(default_factory=STRATEGIES[strategy])),
        ],
        bases=(TrainConfig,),
        # The settings are checked when the TrainConfig proper is made, where errors are ours to report.
        namespace={"__post_init__": lambda flags: None, "__doc__": "Train a video classifier on labelled clips."},
        frozen=True,
        kw_only=True,
    )
    return tyro.cli(kind, prog="stadapter train", args=arguments)


def chosen_strategy(arguments: Sequence[str], names: Sequence[str]) -> str:
    """The last value of --tuning; the first name where there is none, or none that is known (tyro refuses that)."""
    chosen = names[0]
    for position, argument in enumerate(arguments):
        value = "".join(arguments[position + 1 : position + 2]) if argument == "--tuning" else argument
        if argument == "--tuning" or argument.startswith("--tuning="):
            chosen = value.removeprefix("--tuning=")
    return chosen if chosen in names else names[0]


def check_strategy_flags(arguments: Sequence[str], strategy: str, strategies: Mapping[str, type[Any]]) -> None:
    """Refuse a flag that only another strategy has, by the name of that strategy.

    Raises:
        SettingsError: there is one. Flags that no strategy has are left to tyro.
    """
    fields = {name: {field.name for field in dataclasses.fields(kind)} for name, kind in strategies.items()}
    for argument in arguments:
        flag, dot, setting = argument.partition("=")[0].partition(".")
        setting = setting.removeprefix("no-").replace("-", "_")
        if flag != "--tuning" or not dot or setting in fields[strategy]:
            continue
        if owners := [name for name in fields if setting in fields[name]]:
            raise SettingsError(f"{argument} is a flag of {' and '.join(owners)}; add --tuning {owners[0]}, or drop it")


def load_classifier(run_folder: str, flags: EvaluateFlags | PredictFlags) -> "Classifier":
    """The classifier that the flags of a verb ask for."""
    from stadapter.predict import Classifier

    return Classifier.load(
        run_folder, device=flags.device, dtype=autocast_dtype(flags.precision), backbone=flags.backbone
    )


def autocast_dtype(precision: str) -> "torch.dtype | None":
    """What to compute in beside fp32; None is fp32 alone."""
    import torch

    return torch.bfloat16 if precision == "bf16" else None


def find_inputs(given: Iterable[str]) -> Iterator["str | PredictionFailure"]:
    """The videos that files and folders stand for, in order; a folder without any is a failure."""
    from stadapter.manifest import find_videos
    from stadapter.predict import PredictionFailure
    from stadapter.video import is_video

    for name in given:
        folder = Path(os.path.abspath(Path(name).expanduser()))
        if not folder.is_dir() or is_video(folder):
            yield name
            continue
        try:
            videos, others = find_videos(folder)
        except DataError as error:
            yield PredictionFailure(name, str(error))
            continue
        if others:
            say(f"{name}: {counted(len(others), 'file')} passed over, no video")
        if not videos:
            yield PredictionFailure(name, "no videos in this folder")
        yield from (str(Path(name) / video.relative_to(folder)) for video in videos)


def predict_rows(
    classifier: "Classifier", rows: "Sequence[str | PredictionFailure]", batch_size: int
) -> Iterator["Result"]:
    """The answer for every row, in order; failures pass."""
    answers = classifier.predict_many((row for row in rows if isinstance(row, str)), batch_size=batch_size)
    return (next(answers) if isinstance(row, str) else row for row in rows)


class Watched:
    """Passes results on, counts those that failed, and tells a progress bar."""

    def __init__(self, results: Iterable["Result"], total: int, progress: Callable[[int, int], None]) -> None:
        self.num_failed = 0
        self._results, self._total, self._progress = results, total, progress

    def __iter__(self) -> Iterator["Result"]:
        from stadapter.predict import PredictionFailure

        for done, result in enumerate(self._results, start=1):
            self.num_failed += isinstance(result, PredictionFailure)
            self._progress(done, self._total)
            yield result


def results_table(results: Iterable["Result"], top_k: int) -> Table:
    """A table for people."""
    from stadapter.evaluate import percent
    from stadapter.predict import PredictionFailure

    table = Table()
    table.add_column("video", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("others", overflow="fold")
    for result in results:
        if isinstance(result, PredictionFailure):
            table.add_row(Text(result.video), Text("error", "red"), "", Text(result.error, "red"))
            continue
        others = ", ".join(f"{label} {percent(score)}" for label, score in islice(result.top(top_k).items(), 1, None))
        table.add_row(Text(result.video), Text(result.label, "bold"), percent(result.score), Text(others))
    return table


def write_json_lines(results: Iterable["Result"], top_k: int) -> None:
    """One JSON object a line, as soon as it is known: video, label, score, scores; or video, error."""
    from stadapter.predict import Prediction

    for result in results:
        row = dataclasses.asdict(result)
        if isinstance(result, Prediction):
            row["scores"] = result.top(top_k)
        print(json.dumps(row), flush=True)


def write_csv(results: Iterable["Result"], top_k: int) -> None:
    """CSV with a header: the classes by rank with their scores, and the error where there is one."""
    from stadapter.predict import PredictionFailure

    ranks = ["", *(f"_{rank}" for rank in range(2, top_k + 1))]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["video", *(name + rank for rank in ranks for name in ("label", "score")), "error"])
    for result in results:
        if isinstance(result, PredictionFailure):
            writer.writerow([result.video, *[""] * (2 * top_k), result.error])
        else:
            cells = [cell for label, score in result.top(top_k).items() for cell in (label, f"{score:.6f}")]
            writer.writerow([result.video, *cells, ""])
        sys.stdout.flush()


def check_writable(target: str) -> None:
    """Refuse a file that `write_json` could not write, before there is anything to lose.

    Raises:
        SettingsError: its folder is not there or cannot be written to, or it is a folder itself.
    """
    path = Path(target).expanduser()
    if target == "-" or (os.access(path, os.W_OK) and not path.is_dir()):
        return
    if path.exists() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise SettingsError(f"cannot write {target}; expected --json to name a file in an existing, writable folder")


def next_step(folder: Path) -> str:
    """What to type after a run folder has been made."""
    return f"next: stadapter predict {shlex.quote(str(folder))} clip.mp4"


def write_json(target: str, content: dict[str, Any]) -> None:
    """Write JSON to a file, or to standard output for "-"."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    try:
        Path(target).expanduser().write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise STAdapterError(f"cannot write {target}: {error.strerror}; choose another --json file") from error


def output_console(stream: IO[str]) -> Console:
    """Where tables go: as wide as the terminal, or as wide as they are where there is none."""
    return Console(file=stream, width=None if stream.isatty() else _PIPE_COLUMNS)


def say(lines: str | Iterable[str]) -> None:
    """Messages for people, on standard error."""
    for line in [lines] if isinstance(lines, str) else lines:
        print(line, file=sys.stderr)


@contextmanager
def progress_bar(title: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A function to be called with (done, total), which moves a bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (shown and console.is_terminal)
    # What is printed meanwhile is for standard output, and would be redirected to the console of the bar.
    with Progress(*columns, console=console, transient=True, disable=hidden, redirect_stdout=False) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
