"""How good a classifier is on labelled clips: accuracies and how sure they are, by class, for every clip, over time."""

# B batch, n clips, C classes, K heads

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from stadapter.clips import ClipConfig
from stadapter.dataset import Failure, VideoDataset, collate
from stadapter.errors import DataError, SettingsError
from stadapter.labels import ACTION, LabelSpace
from stadapter.machine import copies_beside_work, takes_turns
from stadapter.manifest import Entry, Manifest
from stadapter.model import ClipClassifier, check_finite_scores, label_space_of, scores_in_orders
from stadapter.processes import Turns, quiet_worker, workers_of
from stadapter.timecheck import CHANGED_ORDERS, ORDER_NAMES, Order, TimeCheck, frame_places, make_time_check
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
    """One for every class of every head."""
    reordered: tuple[tuple[int, ...], ...]
    """The class each head names with the frames in each of `CHANGED_ORDERS`; empty without a time check."""


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
    """What evaluating a model on labelled clips gave. Clips that could not be read are in `failures` only.

    Of a model with several heads it is the report on actions, combinations of one class of each head, and holds the
    report of each head: an action is right where every head is, its score is the product of its classes' scores, and
    its top 5 are the 5 largest products of all combinations, as in EPIC-Kitchens-100's own evaluation
    (github.com/epic-kitchens/C1-Action-Recognition, evaluate.py).
    """

    labels: tuple[str, ...]
    """The classes; of actions those that occur or were named."""
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
    """Mean of -log(score of the true class), in nats; with one view the cross-entropy, summed over the heads."""
    calibration_error: float
    """Expected calibration error: by how much the score of the named class and the share named right differ, 0 to 1,
    on average over clips sorted into `num_calibration_bins` equal bins by that score."""
    mean_score: float
    """Mean score of the named class: above `top1` the classifier claims too much, below too little."""
    per_class: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Numbers of clips; rows are the true classes, columns the predicted ones, in the order of `labels`; of actions
    empty: those of the heads say more."""
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
    heads: "dict[str, Report]" = field(default_factory=dict)
    """The report of each head by its name, where there are several."""

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types: dicts, lists, strings, numbers and None; the time check with its sentence."""
        report = asdict(replace(self, heads={}))
        if self.time_check is not None:
            report["time_check"]["sentence"] = self.time_check.sentence()
        report["failures"] = [{"name": name, "message": message} for name, message in self.failures]
        report["heads"] = {name: head.to_json() for name, head in self.heads.items()}
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
            is read once, and seen once by the frozen first blocks. Clips of one frame have no order, and no time check.

    Raises:
        SettingsError: a batch size below 1, or fewer than 0 workers.
        DataError: a clip without a label or with one the model does not know; not one clip could be read.
        TrainingError: a process that reads clips ended by itself.
        STAdapterError: the model's scores are not finite.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise SettingsError(f"{name} {value}: expected at least {least}")
    space = label_space_of(model)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    turns = Turns(are_taken=takes_turns(world, device_type=next(model.parameters()).device.type))
    dataset = VideoDataset(manifest, clip_config, labels=space, turns=turns)
    with _eval_mode(model):
        rows, failures = _classify(
            model,
            dataset,
            turns,
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
    return _report(dataset, space, rows, failures)


def tables(report: Report) -> Group:
    """The summary, the time check, the table by class and the confusion matrix, to be printed with rich.

    Of several heads each has all but the summary, which is one.
    """
    parts: list[RenderableType] = [summary_table(report)]
    for name, part in {ACTION: report, **report.heads}.items() if report.heads else [("", report)]:
        suffix = f", {name}" if name else ""
        if part.time_check is not None:
            parts.append(time_table(part.time_check, f" to the {name}" if name else ""))
        if part.confusion:
            parts += [class_table(part, suffix), confusion_table(part, suffix)]
    return Group(*parts)


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


def time_table(check: TimeCheck, suffix: str = "") -> Group:
    """The accuracies with the frames in order and not, and the sentence that says what they mean."""
    table = Table(title=f"Does time matter{suffix}?", title_justify="left")
    table.add_column("frames")
    for header in ("accuracy", f"{100 * CONFIDENCE:.0f} % interval"):
        table.add_column(header, justify="right")
    for order, name in ORDER_NAMES.items():
        table.add_row(name, percent(getattr(check, order)), interval_text(check.intervals[order]))
    return Group(table, Text(check.verdict()))


def class_table(report: Report, suffix: str = "") -> Table:
    """Clips, accuracy and precision of every class, and the class it is most often mistaken for."""
    table = Table(title=f"By class{suffix}", title_justify="left")
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


def confusion_table(report: Report, suffix: str = "") -> Table:
    """Rows are the true classes, columns the predicted ones; with many classes the largest errors instead."""
    if len(report.labels) > _MAX_MATRIX_CLASSES:
        return _error_table(report, suffix)
    table = Table(title=f"Confusion{suffix}: rows true, columns predicted", title_justify="left")
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


def _error_table(report: Report, suffix: str) -> Table:
    errors = largest_errors(report)
    shown = errors[:_MAX_MATRIX_CLASSES]
    table = Table(title=f"Largest errors{suffix}, {len(shown)} of {len(errors)}", title_justify="left")
    table.add_column("true")
    table.add_column("predicted")
    table.add_column("clips", justify="right")
    for count, true, predicted in shown:
        table.add_row(Text(true), Text(predicted), str(count))
    return table


def headline_figures(report: Report) -> list[tuple[str, float, Interval]]:
    """The accuracies over all clips: name, share of 1, interval; of several heads those of actions, then of each."""
    num_classes = math.prod(len(head.labels) for head in report.heads.values()) if report.heads else len(report.labels)
    figures = [
        ("top-1", report.top1, report.top1_interval),
        (f"top-{min(5, num_classes)}", report.top5, report.top5_interval),
        ("mean class accuracy", report.mean_class_accuracy, report.mean_class_accuracy_interval),
    ]
    if not report.heads:
        return figures
    parts = {ACTION: figures} | {name: headline_figures(head) for name, head in report.heads.items()}
    return [(f"{of} {name}", value, interval) for of, part in parts.items() for name, value, interval in part]


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
    turns: Turns,
    share: range,
    *,
    batch_size: int,
    num_workers: int,
    autocast_dtype: torch.dtype | None,
    orders: Sequence[Order],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Row], list[Failure]]:
    """What the model says of the readable clips among `share`, and the failures of the others."""

    space = label_space_of(model)

    loader = DataLoader(
        Subset(dataset, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=copies_beside_work(next(model.parameters()).device),
        persistent_workers=num_workers > 0,  # so that they can be ended
        worker_init_fn=quiet_worker,
    )
    rows: list[Row] = []
    failures: list[Failure] = []
    with workers_of(loader, turns):
        for batch in turns.over(loader):
            failures += batch["failures"]
            if len(batch["indices"]):
                indices = batch["indices"].tolist()
                names = [dataset.entries[index].name for index in indices]
                num_frames = batch["clips"].shape[2]
                scores, *reordered_scores = scores_in_orders(
                    model,
                    batch["clips"],
                    [frame_places(order, num_frames, names) for order in orders],
                    autocast_dtype=autocast_dtype,
                    views_at_once=batch_size,
                )  # (B, C) each
                changed = [space.named(each).tolist() for each in reordered_scores]
                reordered = zip(*changed, strict=True) if orders else [()] * len(indices)
                rows += map(Row, indices, scores.tolist(), reordered)
            if progress is not None:
                progress(len(rows) + len(failures), len(share))
    return rows, failures


def _report(dataset: VideoDataset, space: LabelSpace, rows: Sequence[Row], failures: Sequence[Failure]) -> Report:
    if not rows:
        name, message = failures[0] if failures else ("no clip", "the data is empty")
        raise DataError(f"none of {len(dataset)} clips could be read, first {name}: {message}")
    rows = sorted(rows)
    entries = [dataset.entries[row.position] for row in rows]
    targets = torch.tensor([dataset.targets[row.position] for row in rows])  # (n, K)
    scores = torch.tensor([row.scores for row in rows])  # (n, C)
    check_finite_scores(scores, [entry.name for entry in entries])
    named: dict[Order, Tensor] = {"as_is": space.named(scores)}  # (n, K) in every order
    if rows[0].reordered:
        named |= {order: torch.tensor([row.reordered[n] for row in rows]) for n, order in enumerate(CHANGED_ORDERS)}
    heads = {
        name: _figures(_answers_of_head(space, place, scores, targets, named), entries, failures, with_confusion=True)
        for place, name in enumerate(space.names)
    }
    if not space.heads:
        return heads[space.names[0]]
    answers = _answers_of_actions(space, scores, targets, named)
    actions = _figures(answers, entries, failures, with_confusion=False)  # there are thousands of combinations
    return replace(actions, heads=heads, loss=sum(head.loss for head in heads.values()))


class _Answers(NamedTuple):
    """What was said of n clips, by one head or by all together; classes are positions in `labels`."""

    labels: tuple[str, ...]
    targets: Tensor
    """The true classes, (n,)."""
    named: dict[Order, Tensor]
    """The classes named, (n,), with the frames in every order that was tried."""
    score: Tensor
    """Of the class named, (n,)."""
    true_score: Tensor
    """Of the true class, (n,)."""
    is_in_top5: Tensor
    """Whether the true class is among the 5 highest scores, bool (n,)."""


def _answers_of_head(
    space: LabelSpace, place: int, scores: Tensor, targets: Tensor, named: dict[Order, Tensor]
) -> _Answers:
    part, true = space.split(scores)[place], targets[:, place]  # (n, classes), (n,)
    return _Answers(
        labels=space.classes[place],
        targets=true,
        named={order: classes[:, place] for order, classes in named.items()},
        score=part.max(-1).values,
        true_score=part.gather(1, true[:, None])[:, 0],
        is_in_top5=(part.topk(min(5, part.shape[1])).indices == true[:, None]).any(-1),
    )


def _answers_of_actions(space: LabelSpace, scores: Tensor, targets: Tensor, named: dict[Order, Tensor]) -> _Answers:
    """The same for combinations of one class of each head: those that occur or were named are the classes."""
    actions, places = torch.unique(torch.cat([targets, *named.values()]), dim=0, return_inverse=True)
    true, *of_orders = places.split(len(targets))  # (n,) each
    parts = space.split(scores.double())
    return _Answers(
        labels=tuple(space.text(action) for action in actions.tolist()),
        targets=true,
        named=dict(zip(named, of_orders, strict=True)),
        score=torch.stack([part.max(-1).values for part in parts]).prod(0),
        true_score=torch.stack([part.gather(1, targets[:, [n]])[:, 0] for n, part in enumerate(parts)]).prod(0),
        is_in_top5=(space.likeliest(scores.double(), 5)[1] == targets[:, None]).all(-1).any(-1),
    )


def _figures(
    answers: _Answers, entries: Sequence[Entry], failures: Sequence[Failure], *, with_confusion: bool
) -> Report:
    from torchmetrics.functional.classification import multiclass_calibration_error

    targets, named = answers.targets, answers.named["as_is"]
    is_right = named == targets
    per_class = _per_class(answers.labels, targets, named)
    accuracies = [result.accuracy for result in per_class if result.accuracy is not None]
    # Of a score and whether it was right, as of two classes; an average of softmaxes may come out a hair above 1.
    sureness = torch.stack([answers.score.clamp(0, 1), torch.zeros_like(answers.score)], 1)
    calibration_error = multiclass_calibration_error(
        sureness, (~is_right).long(), num_classes=2, n_bins=CALIBRATION_BINS
    )
    true_score = answers.true_score.clamp_min(torch.finfo(torch.float32).tiny)
    return Report(
        labels=answers.labels,
        num_clips=len(entries),
        top1=float(is_right.double().mean()),
        top1_interval=bootstrap_interval(is_right.numpy()),
        top5=float(answers.is_in_top5.double().mean()),
        top5_interval=bootstrap_interval(answers.is_in_top5.numpy()),
        mean_class_accuracy=sum(accuracies) / len(accuracies),
        mean_class_accuracy_interval=bootstrap_interval(is_right.numpy(), groups=targets.numpy()),
        loss=float(-true_score.log().mean()),
        calibration_error=float(calibration_error),
        mean_score=float(answers.score.mean()),
        per_class=per_class,
        confusion=_confusion(answers.labels, targets, named) if with_confusion else (),
        predictions=_predictions(answers, entries),
        failures=tuple(sorted(failures)),
        time_check=_time_check(answers),
    )


def _predictions(answers: _Answers, entries: Sequence[Entry]) -> tuple[ClipPrediction, ...]:
    columns = (answers.targets, answers.named["as_is"], answers.score, answers.true_score)
    rows = zip(entries, *(column.tolist() for column in columns), strict=True)
    return tuple(
        ClipPrediction(
            name=entry.name,
            start_seconds=entry.start_seconds,
            end_seconds=entry.end_seconds,
            label=answers.labels[true],
            predicted=answers.labels[best],
            score=score,
            true_score=true_score,
            is_correct=best == true,
        )
        for entry, true, best, score, true_score in rows
    )


def _time_check(answers: _Answers) -> TimeCheck | None:
    if len(answers.named) == 1:
        return None
    labels = answers.labels
    predicted = {order: [labels[place] for place in named.tolist()] for order, named in answers.named.items()}
    return make_time_check([labels[place] for place in answers.targets.tolist()], predicted)


def _confusion(labels: Sequence[str], targets: Tensor, named: Tensor) -> tuple[tuple[int, ...], ...]:
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    matrix = multiclass_confusion_matrix(named, targets, num_classes=len(labels))  # rows true
    return tuple(tuple(row) for row in matrix.tolist())


def _per_class(labels: Sequence[str], targets: Tensor, named: Tensor) -> tuple[ClassResult, ...]:
    counted = (targets, named, targets[named == targets])
    clips, given, right = (which.bincount(minlength=len(labels)).tolist() for which in counted)
    return tuple(
        ClassResult(
            label=label,
            num_clips=clips[row],
            accuracy=right[row] / clips[row] if clips[row] else None,
            precision=right[row] / given[row] if given[row] else None,
        )
        for row, label in enumerate(labels)
    )
