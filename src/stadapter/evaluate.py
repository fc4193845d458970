"""How good a classifier is on labelled clips: accuracies and how sure they are, by class, for every clip, over time."""

# B batch, C classes

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from stadapter.clips import ClipConfig
from stadapter.dataset import Failure, VideoDataset, collate
from stadapter.errors import DataError, SettingsError
from stadapter.manifest import Manifest
from stadapter.model import ClipClassifier, check_finite_scores, view_scores
from stadapter.processes import quiet_worker, workers_of
from stadapter.timecheck import CHANGED_ORDERS, ORDER_NAMES, Order, TimeCheck, make_time_check, reorder
from stadapter.uncertainty import CONFIDENCE, NUM_RESAMPLES, Interval, bootstrap_interval

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

CALIBRATION_BINS = 15
_MAX_MATRIX_CLASSES = 20


class Row(NamedTuple):
    """What the model said of one clip."""

    position: int
    """In the manifest."""
    scores: list[float]
    """One for every class."""
    reordered: tuple[int, ...]
    """The class named with the frames in each of `CHANGED_ORDERS`; empty without a time check."""


@dataclass(frozen=True)
class ClassResult:
    """One line of the table by class."""

    label: str
    num_clips: int
    """Clips of this class."""
    accuracy: float | None
    """Fraction of the clips of this class that were named right; None without clips."""
    precision: float | None
    """Fraction of the clips given this name that are of this class; None if the name was never given."""


@dataclass(frozen=True)
class ClipPrediction:
    """The answer for one clip."""

    name: str
    """Path relative to the data folder."""
    start_seconds: float | None
    end_seconds: float | None
    label: str
    """The true class."""
    predicted: str
    """The class with the highest score."""
    score: float
    """Probability given to `predicted`, 0 to 1, averaged over the views."""
    true_score: float
    """Probability given to `label`."""
    is_correct: bool
    """Whether `predicted` is `label`."""


@dataclass(frozen=True)
class Report:
    """What evaluating a model on labelled clips gave. Clips that could not be read are in `failures` only."""

    labels: tuple[str, ...]
    num_clips: int
    """Clips that were read and classified."""
    top1: float
    """Fraction of clips whose highest score is the true class, 0 to 1."""
    top1_interval: Interval
    """Bootstrap interval of `top1`, clips drawn with replacement; the other intervals likewise."""
    top5: float
    """Fraction of clips with the true class among the 5 highest scores, or among all of fewer classes."""
    top5_interval: Interval
    mean_class_accuracy: float
    """Mean of the accuracies of the classes that have clips."""
    mean_class_accuracy_interval: Interval
    loss: float
    """Mean of -log(score of the true class), in nats; with one view the cross-entropy."""
    calibration_error: float
    """Expected calibration error: by how much the score of the named class and the share named right differ, 0 to 1,
    on average over clips sorted into `num_calibration_bins` equal bins by that score."""
    mean_score: float
    """Mean score of the named class: above `top1` the classifier claims too much, below too little."""
    per_class: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Numbers of clips; rows are the true classes, columns the predicted ones, in the order of `labels`."""
    predictions: tuple[ClipPrediction, ...]
    """One for every classified clip, in the order of the data."""
    failures: tuple[Failure, ...]
    """(name, reason) of every clip that could not be read."""
    time_check: TimeCheck | None = None
    """The same clips with their frames in other orders, if that was asked for."""
    confidence: float = CONFIDENCE
    """Of the intervals."""
    num_resamples: int = NUM_RESAMPLES
    """Of the bootstrap."""
    num_calibration_bins: int = CALIBRATION_BINS

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types: dicts, lists, strings, numbers and None; the time check with its sentence."""
        report = asdict(self)
        if self.time_check is not None:
            report["time_check"]["sentence"] = self.time_check.sentence()
        report["failures"] = [{"name": name, "message": message} for name, message in self.failures]
        plain: dict[str, Any] = json.loads(json.dumps(report))
        return plain


def evaluate(
    model: ClipClassifier,
    manifest: Manifest,
    clip_config: ClipConfig,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    accelerator: "Accelerator | None" = None,
    progress: Callable[[int, int], None] | None = None,
    time_check: bool = False,
) -> Report:
    """Classify every clip of a manifest with all its test views, on the device where the model is.

    Scores are averaged over the views after softmax. The model runs in eval mode and gets its modes back. A clip that
    cannot be read, also one that has vanished since, is among the failures.

    Args:
        model: the classifier, not wrapped for distributed training.
        manifest: clips, all labelled with classes the model knows.
        clip_config: frames, size and views.
        batch_size: clips read at once, and views put through the model at once.
        num_workers: processes that read clips; 0 reads in this one.
        autocast_dtype: such as torch.bfloat16; None computes in the dtype of the model.
        accelerator: with several processes each classifies its share, and all get the whole report.
        progress: called with the number of clips done and to do by this process, after every batch.
        time_check: classify every clip three times more, with its frames shuffled, reversed, and one repeated; it
            is read once. Clips of one frame have no order, and no time check.

    Raises:
        SettingsError: a batch size below 1, or fewer than 0 workers.
        DataError: a clip without a label or with one the model does not know; not one clip could be read.
        STAdapterError: the model's scores are not finite.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise SettingsError(f"{name} {value}: expected at least {least}")
    dataset = VideoDataset(manifest, clip_config, labels=model.labels)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    with _eval_mode(model):
        rows, failures = _classify(
            model,
            dataset,
            range(rank, len(dataset), world),
            batch_size=batch_size,
            num_workers=num_workers,
            autocast_dtype=autocast_dtype,
            orders=CHANGED_ORDERS if time_check and clip_config.num_frames > 1 else (),
            progress=progress,
        )
    if accelerator is not None:
        from accelerate.utils.operations import gather_object

        rows, failures = [Row(*row) for row in gather_object(rows)], gather_object(failures)
    return _report(dataset, model.labels, rows, failures)


def tables(report: Report) -> Group:
    """The summary, the time check, the table by class and the confusion matrix, to be printed with rich."""
    check = [time_table(report.time_check)] if report.time_check is not None else []
    return Group(summary_table(report), *check, class_table(report), confusion_table(report))


def summary_table(report: Report) -> Table:
    """The figures over all clips, and the first clips that could not be read."""
    table = Table(title="Evaluation", title_justify="left")
    table.add_column("")
    table.add_column("value", justify="right")
    table.add_column(f"{100 * report.confidence:.0f} % interval", justify="right")
    table.add_row("clips", str(report.num_clips))
    for name, value, interval in headline_figures(report):
        table.add_row(name, percent(value), interval_text(interval))
    table.add_row("loss", f"{report.loss:.4f}")
    table.add_row("calibration error", percent(report.calibration_error))
    table.add_row("clips that could not be read", str(len(report.failures)))
    for name, message in report.failures[:5]:
        table.add_row("", Text(message if name in message else f"{name}: {message}"))
    return table


def time_table(check: TimeCheck) -> Group:
    """The accuracies with the frames in order and not, and the sentence that says what they mean."""
    table = Table(title="Does time matter?", title_justify="left")
    table.add_column("frames")
    for header in ("accuracy", f"{100 * CONFIDENCE:.0f} % interval"):
        table.add_column(header, justify="right")
    for order, name in ORDER_NAMES.items():
        table.add_row(name, percent(getattr(check, order)), interval_text(check.intervals[order]))
    return Group(table, Text(check.verdict()))


def class_table(report: Report) -> Table:
    """Clips, accuracy and precision of every class, and the class it is most often mistaken for."""
    table = Table(title="By class", title_justify="left")
    table.add_column("class")
    for header in ("clips", "accuracy", "precision"):
        table.add_column(header, justify="right")
    table.add_column("most often mistaken for")
    for position, result in enumerate(report.per_class):
        errors = [0 if column == position else count for column, count in enumerate(report.confusion[position])]
        worst = max(errors)
        mistaken = f"{report.labels[errors.index(worst)]} ({worst})" if worst else ""
        table.add_row(
            Text(result.label),
            str(result.num_clips),
            percent(result.accuracy),
            percent(result.precision),
            Text(mistaken),
        )
    return table


def confusion_table(report: Report) -> Table:
    """Rows are the true classes, columns the predicted ones; with many classes the largest errors instead."""
    if len(report.labels) > _MAX_MATRIX_CLASSES:
        return _error_table(report)
    table = Table(title="Confusion: rows true, columns predicted", title_justify="left")
    table.add_column("true")
    for label in report.labels:
        table.add_column(Text(label), justify="right")
    for label, row in zip(report.labels, report.confusion, strict=True):
        table.add_row(Text(label), *(str(count) if count else "·" for count in row))
    return table


def largest_errors(report: Report) -> list[tuple[int, str, str]]:
    """Every pair of classes that were taken for each other: number of clips, true class, named class; most first."""
    errors = [
        (count, report.labels[true], report.labels[predicted])
        for true, row in enumerate(report.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(errors, key=lambda error: (-error[0], error[1], error[2]))


def _error_table(report: Report) -> Table:
    errors = largest_errors(report)
    shown = errors[:_MAX_MATRIX_CLASSES]
    table = Table(title=f"Largest errors, {len(shown)} of {len(errors)}", title_justify="left")
    table.add_column("true")
    table.add_column("predicted")
    table.add_column("clips", justify="right")
    for count, true, predicted in shown:
        table.add_row(Text(true), Text(predicted), str(count))
    return table


def headline_figures(report: Report) -> list[tuple[str, float, Interval]]:
    """The accuracies over all clips: name, share of 1, interval."""
    return [
        ("top-1", report.top1, report.top1_interval),
        (f"top-{min(5, len(report.labels))}", report.top5, report.top5_interval),
        ("mean class accuracy", report.mean_class_accuracy, report.mean_class_accuracy_interval),
    ]


def interval_text(interval: Interval) -> str:
    """An interval of shares of 1, as people read it."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"


def percent(fraction: float | None) -> str:
    """A share of 1, as people read it; nothing for None."""
    return "" if fraction is None else f"{100 * fraction:.1f} %"


@contextmanager
def _eval_mode(model: ClipClassifier) -> Iterator[None]:
    """Eval mode; every module gets back the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _classify(
    model: ClipClassifier,
    dataset: VideoDataset,
    share: range,
    *,
    batch_size: int,
    num_workers: int,
    autocast_dtype: torch.dtype | None,
    orders: Sequence[Order],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Row], list[Failure]]:
    """What the model says of the readable clips among `share`, and the failures of the others."""

    def scored(clips: Tensor) -> Tensor:
        return view_scores(model, clips, autocast_dtype=autocast_dtype, views_at_once=batch_size)

    loader = DataLoader(
        Subset(dataset, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=next(model.parameters()).is_cuda,
        persistent_workers=num_workers > 0,  # so that they can be ended
        worker_init_fn=quiet_worker,
    )
    rows: list[Row] = []
    failures: list[Failure] = []
    with workers_of(loader):
        for batch in loader:
            failures += batch["failures"]
            if len(batch["indices"]):
                indices = batch["indices"].tolist()
                names = [dataset.entries[index].name for index in indices]
                scores = scored(batch["clips"])  # (B, C)
                changed = [scored(reorder(batch["clips"], order, names)).argmax(-1).tolist() for order in orders]
                reordered = zip(*changed, strict=True) if orders else [()] * len(indices)
                rows += map(Row, indices, scores.tolist(), reordered)
            if progress is not None:
                progress(len(rows) + len(failures), len(share))
    return rows, failures


def _report(
    dataset: VideoDataset,
    labels: tuple[str, ...],
    rows: Sequence[Row],
    failures: Sequence[Failure],
) -> Report:
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_calibration_error,
        multiclass_confusion_matrix,
    )

    if not rows:
        name, message = failures[0] if failures else ("no clip", "the data is empty")
        raise DataError(f"none of {len(dataset)} clips could be read, first {name}: {message}")
    rows = sorted(rows)
    targets = torch.tensor([dataset.targets[row.position] for row in rows])  # (B,)
    scores = torch.tensor([row.scores for row in rows])  # (B, C)
    check_finite_scores(scores, [dataset.entries[row.position].name for row in rows])
    best, num_best = scores.max(-1), min(5, len(labels))
    hits = scores.topk(num_best).indices == targets[:, None]  # (B, 5)
    confusion = multiclass_confusion_matrix(best.indices, targets, num_classes=len(labels))  # rows true
    per_class = _per_class(labels, confusion)
    predictions = _predictions(dataset, labels, rows, best.indices.tolist())
    accuracies = [result.accuracy for result in per_class if result.accuracy is not None]

    def top(k: int) -> float:
        return float(multiclass_accuracy(scores, targets, num_classes=len(labels), average="micro", top_k=k))

    true_scores = scores.gather(1, targets[:, None]).clamp_min(torch.finfo(scores.dtype).tiny)
    # An average of softmaxes may come out a hair above 1, which torchmetrics would take for logits.
    calibration_error = multiclass_calibration_error(
        scores.clamp(0, 1), targets, num_classes=len(labels), n_bins=CALIBRATION_BINS
    )
    return Report(
        labels=tuple(labels),
        num_clips=len(rows),
        top1=top(1),
        top1_interval=bootstrap_interval((best.indices == targets).numpy()),
        top5=top(num_best),
        top5_interval=bootstrap_interval(hits.any(-1).numpy()),
        mean_class_accuracy=sum(accuracies) / len(accuracies),
        mean_class_accuracy_interval=bootstrap_interval((best.indices == targets).numpy(), groups=targets.numpy()),
        loss=float(-true_scores.log().mean()),
        calibration_error=float(calibration_error),
        mean_score=float(best.values.mean()),
        per_class=per_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        predictions=predictions,
        failures=tuple(sorted(failures)),
        time_check=_time_check(labels, rows, predictions),
    )


def _predictions(
    dataset: VideoDataset, labels: Sequence[str], rows: Sequence[Row], named: Sequence[int]
) -> tuple[ClipPrediction, ...]:
    predictions = []
    for row, best in zip(rows, named, strict=True):
        entry, target = dataset.entries[row.position], dataset.targets[row.position]
        predictions.append(
            ClipPrediction(
                name=entry.name,
                start_seconds=entry.start_seconds,
                end_seconds=entry.end_seconds,
                label=labels[target],
                predicted=labels[best],
                score=row.scores[best],
                true_score=row.scores[target],
                is_correct=best == target,
            )
        )
    return tuple(predictions)


def _time_check(labels: Sequence[str], rows: Sequence[Row], predictions: Sequence[ClipPrediction]) -> TimeCheck | None:
    if not rows[0].reordered:
        return None
    predicted: dict[Order, list[str]] = {"as_is": [prediction.predicted for prediction in predictions]}
    for place, order in enumerate(CHANGED_ORDERS):
        predicted[order] = [labels[row.reordered[place]] for row in rows]
    return make_time_check([prediction.label for prediction in predictions], predicted)


def _per_class(labels: Sequence[str], confusion: Tensor) -> tuple[ClassResult, ...]:
    right = confusion.diagonal().tolist()
    clips, given = confusion.sum(1).tolist(), confusion.sum(0).tolist()
    return tuple(
        ClassResult(
            label=label,
            num_clips=clips[row],
            accuracy=right[row] / clips[row] if clips[row] else None,
            precision=right[row] / given[row] if given[row] else None,
        )
        for row, label in enumerate(labels)
    )
