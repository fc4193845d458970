"""How good a classifier is on labelled clips: accuracies with uncertainty, by class, for every clip, over time."""

# B batch, n clips, C classes, K heads

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from stadapter.clips import ClipConfig
from stadapter.dataset import EvaluationClips
from stadapter.errors import DataError, SettingsError
from stadapter.evaluation.figures import ClipFailure, Report, make_report
from stadapter.evaluation.timecheck import CHANGED_ORDERS, Order, frame_places
from stadapter.labels import LabelSpace
from stadapter.machine import copies_asynchronously, takes_turns
from stadapter.manifest import Manifest
from stadapter.processes import Turns, quiet_worker, workers_of
from stadapter.samples import Batch, Failure, all_tokens, collate
from stadapter.scores import (
    ClipClassifier,
    check_finite_scores,
    check_normalisation,
    frozen_tokens,
    label_space_of,
    scores_in_orders,
    sees_frames_alone,
    token_scores_in_orders,
)
from stadapter.token_cache import TokenCache

if TYPE_CHECKING:
    from accelerate.accelerator import Accelerator

__all__ = ["Report", "evaluate"]


class Answers(NamedTuple):
    """What the model said about some clips. As tensors: Python numbers would take nine times the memory."""

    positions: Tensor
    """Their positions in the manifest, int64 (n,)."""
    scores: Tensor
    """The probability of every class of every head, (n, C)."""
    reordered: Tensor
    """The class that each head predicts with the frames in each of `CHANGED_ORDERS`, int64 (orders, n, K); of no order
    without a time check."""


def evaluate(
    model: ClipClassifier,
    manifest: Manifest,
    clip_config: ClipConfig,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    accelerator: "Accelerator | None" = None,
    progress: Callable[[int, int], None] | None = None,
    time_check: bool = False,
    tokens: TokenCache | None = None,
) -> Report:
    """Classify every clip of a manifest with all its test views, on the model's device and in its precision.

    Scores are averaged over the views after softmax. The model runs in eval mode and gets its modes back afterwards;
    the global random state is left alone. A clip that cannot be read, or no longer exists, is among the failures.

    Args:
        model: the classifier, not wrapped for distributed training.
        manifest: clips, all labelled with classes the model knows.
        clip_config: frames, size and views.
        batch_size: clips read at once, and views run through the model at once.
        num_workers: processes that read clips; 0 reads in this one.
        accelerator: with several processes, each classifies its share and all get the whole report.
        progress: called after every batch with this process's number of clips done and its total.
        time_check: also classify every clip three more times, with its frames shuffled, reversed, and one repeated; it
            is read only once, and seen once by the frozen first blocks. Not for clips of one frame: they have no order.
        tokens: where to keep what the frozen first blocks make of the clips, so that the next call neither decodes
            them nor runs these blocks; its scope must determine the clip config and these blocks.

    Raises:
        SettingsError: an argument of another type, a batch size below 1, fewer than 0 workers, clips not normalised
            like the trunk's, or tokens to be kept of a model that has no frozen first blocks.
        DataError: a clip without a label or with one the model does not know; or no clip could be read.
        TrainingError: a process that reads clips died.
        STAdapterError: the model's scores are not finite.
    """
    _check_kinds(model, manifest, clip_config)
    for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise SettingsError(f"{name} {value}: expected at least {least}")
    if tokens is not None and not sees_frames_alone(model):
        raise SettingsError("tokens can be kept only for a VideoClassifier whose first blocks are frozen")
    check_normalisation(model, clip_config)
    space = label_space_of(model)
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    turns = Turns(are_taken=takes_turns(world, device_type=next(model.parameters()).device.type))
    dataset = EvaluationClips(manifest, clip_config, labels=space, tokens=tokens, turns=turns)
    with _eval_mode(model):
        answers, failures = _classify(
            model,
            dataset,
            turns,
            range(rank, len(dataset), world),
            batch_size=batch_size,
            num_workers=num_workers,
            orders=CHANGED_ORDERS if time_check and clip_config.num_frames > 1 else (),
            progress=progress,
        )
    if accelerator is not None:
        from accelerate.utils.operations import gather_object

        answers, failures = [Answers(*each) for each in gather_object(answers)], gather_object(failures)
    return _report(dataset, space, answers, failures)


def _check_kinds(model: object, manifest: object, clip_config: object) -> None:
    """Refuse arguments of another type: from Python, each is easily taken for something near it."""
    if not isinstance(model, nn.Module):
        raise SettingsError(f"{model!r}: expected a network such as classifier.model; Classifier.evaluate takes data")
    if not isinstance(manifest, Manifest):
        raise SettingsError(f"{manifest!r}: expected what read_manifest returns")
    if not isinstance(clip_config, ClipConfig):
        raise SettingsError(f"{clip_config!r}: expected a ClipConfig, such as classifier.clip_config")


@contextmanager
def _eval_mode(model: ClipClassifier) -> Iterator[None]:
    """Eval mode; every module gets its mode back afterwards."""
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
    dataset: EvaluationClips,
    turns: Turns,
    share: range,
    *,
    batch_size: int,
    num_workers: int,
    orders: Sequence[Order],
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Answers], list[Failure]]:
    """What the model says about the readable clips among `share`, by batch, and the failures of the others."""
    space = label_space_of(model)
    loader = DataLoader(
        Subset(dataset, share),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=copies_asynchronously(next(model.parameters()).device),
        persistent_workers=num_workers > 0,  # so that they can be ended
        worker_init_fn=quiet_worker,
        generator=torch.Generator(),  # nothing is random: without one, a loader still draws from the global one
    )
    answers: list[Answers] = []
    failures: list[Failure] = []
    num_answers = 0
    with workers_of(loader, turns):
        for batch in turns.over(loader):
            failures += batch["failures"]
            if len(batch["indices"]):
                names = [dataset.entries[index].title for index in batch["indices"].tolist()]
                places = [frame_places(order, dataset.clip_config.num_frames, names) for order in orders]
                scores, *reordered_scores = _scores(model, batch, dataset, places, views_at_once=batch_size)
                none = torch.empty(0, *batch["labels"].shape, dtype=torch.int64)
                reordered = torch.stack([space.named(each) for each in reordered_scores]) if orders else none
                # Copied: what a decoding process sends keeps a file open for as long as it lasts.
                answers.append(Answers(batch["indices"].clone(), scores, reordered))
                num_answers += len(names)
            if progress is not None:
                progress(num_answers + len(failures), len(share))
    return answers, failures


def _scores(
    model: ClipClassifier, batch: Batch, dataset: EvaluationClips, orders: Sequence[Tensor], *, views_at_once: int
) -> list[Tensor]:
    """The scores (B, C) of a batch as it is and in every order; tokens that its cache lacks are added to it."""
    if dataset.tokens is None:
        return scores_in_orders(model, batch["clips"], orders, views_at_once=views_at_once)
    assert sees_frames_alone(model)
    computed = None
    if batch["keys"]:
        computed = frozen_tokens(model, batch["clips"], views_at_once=views_at_once)
        dataset.tokens.put(batch["keys"], computed)
    tokens = all_tokens(batch, computed)  # (B, V, T, N, D)
    return token_scores_in_orders(model, tokens, orders, size=dataset.clip_config.size, views_at_once=views_at_once)


def _report(
    dataset: EvaluationClips, space: LabelSpace, answers: Sequence[Answers], failures: Sequence[Failure]
) -> Report:
    if not answers:
        name, message = failures[0] if failures else ("no clip", "the data is empty")
        raise DataError(f"none of {len(dataset)} clips could be read, first {name}: {message}")
    by_title = {entry.title: entry for entry in dataset.entries}
    unreadable = []
    for title, message in failures:
        entry = by_title[title]
        unreadable.append(ClipFailure(entry.name, entry.start_seconds, entry.end_seconds, message))
    positions, order = torch.cat([each.positions for each in answers]).sort()  # (n,) each
    entries = [dataset.entries[position] for position in positions.tolist()]
    targets = torch.tensor([dataset.targets[position] for position in positions.tolist()])  # (n, K)
    scores = torch.cat([each.scores for each in answers])[order]  # (n, C)
    check_finite_scores(scores, [entry.name for entry in entries])
    reordered = torch.cat([each.reordered for each in answers], 1)[:, order]  # (orders, n, K)
    named: dict[Order, Tensor] = {"as_is": space.named(scores)}  # (n, K) in every order
    named |= dict(zip(CHANGED_ORDERS, reordered, strict=False))
    return make_report(space, entries, scores=scores, targets=targets, named=named, failures=unreadable)
