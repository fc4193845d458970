"""The figures that follow from what a classifier said about labelled clips: accuracies, by class, for every clip."""

# n clips, C classes, K heads

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from stadapter.evaluation.timecheck import Order, TimeCheck, make_time_check
from stadapter.labels import ACTION, LabelSpace
from stadapter.manifest import Entry
from stadapter.uncertainty import CONFIDENCE, NUM_RESAMPLES, Interval, bootstrap_interval
from stadapter.video.segment import Segment

if TYPE_CHECKING:
    from rich.console import Group

CALIBRATION_BINS = 15
_MOST_CONFUSED = 1000


@dataclass(frozen=True)
class ClassResult:
    """One line of the table by class."""

    label: str
    num_clips: int
    """Clips of this class."""
    accuracy: float | None
    """Fraction of the clips of this class classified correctly; None without clips."""
    precision: float | None
    """Fraction of the clips given this prediction that are of this class; None if it was never predicted."""


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

    @property
    def segment(self) -> Segment:
        """Which part of the video the clip is."""
        return Segment(self.start_seconds, self.end_seconds)


@dataclass(frozen=True)
class ClipFailure:
    """A clip that could not be read."""

    name: str
    """Path relative to the data folder."""
    start_seconds: float | None
    end_seconds: float | None
    error: str
    """Why."""

    @property
    def title(self) -> str:
        """Its name, and its segment if it is one."""
        return Segment(self.start_seconds, self.end_seconds).titled(self.name)


@dataclass(frozen=True)
class Report:
    """The result of evaluating a model on labelled clips. Clips that could not be read are in `failures` only.

    For a model with several heads it is the report on actions, combinations of one class of each head, and holds the
    report of each head: an action is correct if every head is, its score is the product of its classes' scores, and
    its top 5 are the 5 largest products of all combinations, as in EPIC-Kitchens-100's own evaluation
    (github.com/epic-kitchens/C1-Action-Recognition, evaluate.py).
    """

    labels: tuple[str, ...]
    """The classes; for actions those that occur or were predicted."""
    num_clips: int
    """Clips that were read and classified."""
    top1: float
    """Fraction of clips whose highest score is the true class, 0 to 1."""
    top1_interval: Interval
    """Bootstrap interval of `top1`, clips drawn with replacement; the other intervals likewise."""
    top5: float
    """Fraction of clips with the true class among the 5 highest scores, or among all if there are fewer classes."""
    top5_interval: Interval
    mean_class_accuracy: float
    """Mean of the accuracies of the classes that have clips."""
    mean_class_accuracy_interval: Interval
    loss: float
    """Mean of -log(score of the true class), in nats; with one view the cross-entropy, summed over the heads."""
    calibration_error: float
    """Expected calibration error: by how much the score of the predicted class and the share of correct predictions
    differ, 0 to 1, on average over clips sorted into `num_calibration_bins` equal bins by that score."""
    mean_score: float
    """Mean score of the predicted class: above `top1` the classifier is overconfident, below it underconfident."""
    per_class: tuple[ClassResult, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Numbers of clips; rows are the true classes, columns the predicted ones, in the order of `labels`; empty for
    actions: the matrices of the heads say more."""
    predictions: tuple[ClipPrediction, ...]
    """One per classified clip, in the order of the data."""
    failures: tuple[ClipFailure, ...]
    """Every clip that could not be read, sorted by name."""
    time_check: TimeCheck | None = None
    """The same clips with their frames in other orders, if that was asked for."""
    confidence: float = CONFIDENCE
    """Confidence level of the intervals."""
    num_resamples: int = NUM_RESAMPLES
    """Resamples of the bootstrap."""
    num_calibration_bins: int = CALIBRATION_BINS
    heads: "dict[str, Report]" = field(default_factory=dict)
    """The report of each head by its name, if there are several."""

    @property
    def num_classes(self) -> int:
        """Classes there are to choose from; for actions, all combinations."""
        return math.prod(len(head.labels) for head in self.heads.values()) if self.heads else len(self.labels)

    def __repr__(self) -> str:
        """A summary, without what it says about every clip."""
        return f"Report({self.num_clips} clips, {len(self.labels)} classes, top1={self.top1:.3f}, loss={self.loss:.4g})"

    def __rich__(self) -> "Group":
        from stadapter.evaluation.tables import tables

        return tables(self)

    def to_json(self) -> dict[str, Any]:
        """The same as JSON types: dicts, lists, strings, numbers and None; the time check with its sentence.

        Without the confusion matrix for more than 1,000 classes: nearly all zeros, and implied by the predictions.
        """
        report = asdict(replace(self, heads={}, confusion=()))
        if len(self.labels) <= _MOST_CONFUSED:
            report["confusion"] = self.confusion
        if self.time_check is not None:
            report["time_check"]["sentence"] = self.time_check.sentence()
        report["heads"] = {name: head.to_json() for name, head in self.heads.items()}
        plain: dict[str, Any] = json.loads(json.dumps(report))
        return plain


def headline_figures(report: Report) -> list[tuple[str, float, Interval]]:
    """The accuracies over all clips: name, share of 1, interval; with several heads, of actions, then of each head.

    With five classes or fewer the true one is always among five: no such figure.
    """
    figures = [
        ("top-1", report.top1, report.top1_interval),
        *([("top-5", report.top5, report.top5_interval)] if report.num_classes > 5 else []),
        ("mean class accuracy", report.mean_class_accuracy, report.mean_class_accuracy_interval),
    ]
    if not report.heads:
        return figures
    parts = {ACTION: figures} | {name: headline_figures(head) for name, head in report.heads.items()}
    return [(f"{of} {name}", value, interval) for of, part in parts.items() for name, value, interval in part]


def headline(report: Report) -> dict[str, float]:
    """The figures of a report that fit on a line, those of several heads prefixed with their names."""
    figures = {
        "top1": report.top1,
        "top5": report.top5,
        "mean_class_accuracy": report.mean_class_accuracy,
        "loss": report.loss,
    }
    for head, its in report.heads.items():
        figures |= {f"{head}_{name}": value for name, value in headline(its).items()}
    return figures


def largest_errors(report: Report) -> list[tuple[int, str, str]]:
    """Every pair of classes that were confused: number of clips, true class, predicted class; most first."""
    errors = [
        (count, report.labels[true], report.labels[predicted])
        for true, row in enumerate(report.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    return sorted(errors, key=lambda error: (-error[0], error[1], error[2]))


def most_mistaken(report: Report, position: int) -> tuple[int, str]:
    """The class for which clips of the class at `position` are most often mistaken: how many, or 0, and its name."""
    row = report.confusion[position]
    errors = ((count, -column) for column, count in enumerate(row) if count and column != position)
    count, column = max(errors, default=(0, 0))
    return count, report.labels[-column]


def by_head(report: Report) -> dict[str, Report]:
    """The report on actions and those of the heads, by name; one for a single head has no name."""
    return {ACTION: report, **report.heads} if report.heads else {"": report}


def make_report(
    space: LabelSpace,
    entries: Sequence[Entry],
    *,
    scores: Tensor,
    targets: Tensor,
    named: dict[Order, Tensor],
    failures: Sequence[ClipFailure],
) -> Report:
    """All figures of n clips.

    Args:
        space: the classes of every head.
        entries: the clips.
        scores: one per class of every head (n, C), averaged over the views.
        targets: the true class of every head (n, K).
        named: the predicted classes (n, K), with the frames in every order tried.
        failures: the clips that could not be read.
    """
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
    """What was said about n clips, by one head or by all together; classes are positions in `labels`."""

    labels: tuple[str, ...]
    targets: Tensor
    """The true classes, (n,)."""
    named: dict[Order, Tensor]
    """The predicted classes, (n,), with the frames in every order tried."""
    score: Tensor
    """Score of the predicted class, (n,)."""
    true_score: Tensor
    """Score of the true class, (n,)."""
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
    """The same for combinations of one class of each head: the classes are those that occur or were predicted."""
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
    answers: _Answers, entries: Sequence[Entry], failures: Sequence[ClipFailure], *, with_confusion: bool
) -> Report:
    from torchmetrics.functional.classification import multiclass_calibration_error

    targets, named = answers.targets, answers.named["as_is"]
    is_right = named == targets
    per_class = _per_class(answers.labels, targets, named)
    accuracies = [result.accuracy for result in per_class if result.accuracy is not None]
    # A score and whether it was right, taken as two classes; an average of softmaxes may come out a hair above 1.
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
        failures=tuple(sorted(failures, key=lambda failure: failure.title)),
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
