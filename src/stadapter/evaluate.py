"""How good a classifier is on labelled clips: accuracies, table by class, confusion matrix, every answer."""

# B batch, C classes

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from stadapter.clips import ClipConfig
from stadapter.dataset import Failure, Sample, VideoDataset, collate
from stadapter.errors import DataError, SettingsError
from stadapter.manifest import Manifest
from stadapter.model import ClipClassifier, check_finite_scores, view_scores

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

_MAX_MATRIX_CLASSES = 20

Row = tuple[int, list[float]]
"""Position of a clip in the manifest, and its score for every class."""


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


@dataclass(frozen=True)
class Report:
    """What evaluating a model on labelled clips gave. Clips that could not be read are in `failures` only."""

    labels: tuple[str, ...]
    num_clips: int
    """Clips that were read and classified."""
    top1: float
    """Fraction of clips whose highest score is the true class, 0 to 1."""
    top5: float
    """Fraction of clips with the true class among the 5 highest scores, or among all of fewer classes."""
    mean_class_accuracy: float
    """Mean of the accuracies of the classes that have clips."""
    loss: float
    """Mean of -log(score of the true class), in nats; with one view the cross-entropy."""
    per_class: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Numbers of clips; rows are the true classes, columns the predicted ones, in the order of `labels`."""
    predictions: tuple[ClipPrediction, ...]
    """One for every classified clip, in the order of the data."""
    failures: tuple[Failure, ...]
    """(name, reason) of every clip that could not be read."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types: dicts, lists, strings, numbers and None."""
        report = asdict(self)
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
) -> Report:
    """Classify every clip of a manifest with all its test views, on the device where the model is.

    Scores are averaged over the views after softmax. The model runs in eval mode and gets its modes back.

    Args:
        model: the classifier, not wrapped for distributed training.
        manifest: clips, all labelled with classes the model knows.
        clip_config: frames, size and views.
        batch_size: clips read at once, and views put through the model at once.
        num_workers: processes that read clips; 0 reads in this one.
        autocast_dtype: such as torch.bfloat16; None computes in the dtype of the model.
        accelerator: with several processes each classifies its share, and all get the whole report.
        progress: called with the number of clips done and to do by this process, after every batch.

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
    share = Subset(dataset, range(rank, len(dataset), world))
    with _eval_mode(model):
        rows, failures = _classify(
            model,
            share,
            batch_size=batch_size,
            num_workers=num_workers,
            autocast_dtype=autocast_dtype,
            progress=progress,
        )
    if accelerator is not None:
        from accelerate.utils.operations import gather_object

        rows, failures = gather_object(rows), gather_object(failures)
    return _report(dataset, model.labels, rows, failures)


def tables(report: Report) -> Group:
    """The summary, the table by class and the confusion matrix, to be printed with rich."""
    return Group(summary_table(report), class_table(report), confusion_table(report))


def summary_table(report: Report) -> Table:
    """The figures over all clips, and the first clips that could not be read."""
    table = Table(title="Evaluation", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("clips", str(report.num_clips))
    table.add_row("top-1", percent(report.top1))
    table.add_row(f"top-{min(5, len(report.labels))}", percent(report.top5))
    table.add_row("mean class accuracy", percent(report.mean_class_accuracy))
    table.add_row("loss", f"{report.loss:.4f}")
    table.add_row("clips that could not be read", str(len(report.failures)))
    for name, message in report.failures[:5]:
        table.add_row("", Text(message if name in message else f"{name}: {message}"))
    return table


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


def _error_table(report: Report) -> Table:
    errors = [
        (count, report.labels[true], report.labels[predicted])
        for true, row in enumerate(report.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    errors.sort(key=lambda error: (-error[0], error[1], error[2]))
    shown = errors[:_MAX_MATRIX_CLASSES]
    table = Table(title=f"Largest errors, {len(shown)} of {len(errors)}", title_justify="left")
    table.add_column("true")
    table.add_column("predicted")
    table.add_column("clips", justify="right")
    for count, true, predicted in shown:
        table.add_row(Text(true), Text(predicted), str(count))
    return table


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
    share: "Subset[Sample]",
    *,
    batch_size: int,
    num_workers: int,
    autocast_dtype: torch.dtype | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Row], list[Failure]]:
    """The scores of the readable clips among `share`, and the failures of the others."""
    loader = DataLoader(
        share,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=next(model.parameters()).is_cuda,
    )
    rows: list[Row] = []
    failures: list[Failure] = []
    for batch in loader:
        failures += batch["failures"]
        if len(batch["indices"]):
            scores = view_scores(model, batch["clips"], autocast_dtype=autocast_dtype, views_at_once=batch_size)
            rows += zip(batch["indices"].tolist(), scores.tolist(), strict=True)
        if progress is not None:
            progress(len(rows) + len(failures), len(share))
    return rows, failures


def _report(
    dataset: VideoDataset,
    labels: tuple[str, ...],
    rows: Sequence[Row],
    failures: Sequence[Failure],
) -> Report:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

    if not rows:
        name, message = failures[0] if failures else ("no clip", "the data is empty")
        raise DataError(f"none of {len(dataset)} clips could be read, first {name}: {message}")
    rows = sorted(rows)
    entries = [dataset.entries[index] for index, _ in rows]
    targets = torch.tensor([dataset.targets[index] for index, _ in rows])  # (B,)
    scores = torch.tensor([row for _, row in rows])  # (B, C)
    check_finite_scores(scores, [entry.name for entry in entries])
    best = scores.max(-1)
    confusion = multiclass_confusion_matrix(best.indices, targets, num_classes=len(labels))  # rows true
    per_class = _per_class(labels, confusion)
    accuracies = [result.accuracy for result in per_class if result.accuracy is not None]

    def top(k: int) -> float:
        return float(multiclass_accuracy(scores, targets, num_classes=len(labels), average="micro", top_k=k))

    true_scores = scores.gather(1, targets[:, None]).clamp_min(torch.finfo(scores.dtype).tiny)
    predictions = [
        ClipPrediction(entry.name, entry.start_seconds, entry.end_seconds, labels[target], labels[predicted], score)
        for entry, target, predicted, score in zip(
            entries, targets.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
    return Report(
        labels=tuple(labels),
        num_clips=len(rows),
        top1=top(1),
        top5=top(min(5, len(labels))),
        mean_class_accuracy=sum(accuracies) / len(accuracies),
        loss=float(-true_scores.log().mean()),
        per_class=per_class,
        confusion=tuple(tuple(row) for row in confusion.tolist()),
        predictions=tuple(predictions),
        failures=tuple(sorted(failures)),
    )


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
