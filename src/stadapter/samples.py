"""One clip as read, and several as a batch."""

# B batch, V views, T frames, K heads, H W pixels, N tokens, D width

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

Failure = tuple[str, str]
"""Name of a clip that could not be read, and why."""


class Sample(TypedDict):
    """One clip."""

    clip: Tensor | None
    """(T, 3, H, W) in training, (V, T, 3, H, W) in evaluation; None if neither it nor a replacement could be read."""
    label: tuple[int, ...]
    """For each head, the position of the class among the head's classes."""
    index: int
    """Position of the clip in the manifest; of the replacement, if there was one."""
    failures: list[Failure]
    """Clips that could not be read on the way to this one."""
    key: NotRequired[str]
    """With a token cache: the name of this clip's tokens in it."""
    is_found: NotRequired[bool]
    """With a token cache: whether `clip` is these tokens (T, N, D) or (V, T, N, D), and nothing was decoded."""


class Batch(TypedDict):
    """The readable clips of several samples."""

    clips: Tensor
    """(B, T, 3, H, W) or (B, V, T, 3, H, W); of shape (0,) if no clip could be read, or all were found in the cache."""
    labels: Tensor
    """int64 (B, K)"""
    indices: Tensor
    """int64 (B,), positions in the manifest."""
    failures: list[Failure]
    """Clips that could not be read, from all the samples."""
    tokens: NotRequired[Tensor]
    """With a token cache: (C, T, N, D) or (C, V, T, N, D) of the clips that were found in it and so are not in `clips`;
    of shape (0,) if none was."""
    is_found: NotRequired[Tensor]
    """With a token cache: bool (B,), which of the clips were found in it."""
    keys: NotRequired[list[str]]
    """With a token cache: the names that the tokens of `clips` will have in it."""


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack the clips that could be read, and gather the failures of all samples.

    In a decoding process the tensors are moved to shared memory here: if that is full, the error reaches the training
    process. In the thread that sends them it would end the decoding process.
    """
    kept = [sample for sample in samples if sample["clip"] is not None]
    fresh = [sample for sample in kept if not sample.get("is_found")]
    batch = Batch(
        clips=_stack(fresh),
        labels=_shared(torch.tensor([sample["label"] for sample in kept], dtype=torch.int64)),  # (B, K)
        indices=_shared(torch.tensor([sample["index"] for sample in kept], dtype=torch.int64)),
        failures=[failure for sample in samples for failure in sample["failures"]],
    )
    if any("key" in sample for sample in kept):
        batch["tokens"] = _stack([sample for sample in kept if sample["is_found"]])
        batch["is_found"] = _shared(torch.tensor([sample["is_found"] for sample in kept]))
        batch["keys"] = [sample["key"] for sample in fresh]
    return batch


def all_tokens(batch: Batch, computed: Tensor | None) -> Tensor:
    """The tokens of all clips of a batch, in its order: those that were found, and those computed from `clips`, if any.

    They are on the device of the computed ones, or where the found ones are.
    """
    found, is_found = batch["tokens"], batch["is_found"]
    if computed is None:
        return found
    tokens = computed.new_empty(len(is_found), *computed.shape[1:])
    tokens[~is_found] = computed
    if len(found):
        tokens[is_found] = found.to(computed.device)
    return tokens


def _stack(samples: Sequence[Sample]) -> Tensor:
    """The samples' tensors, stacked; of shape (0,) if there are none."""
    clips = [sample["clip"] for sample in samples if sample["clip"] is not None]
    return _shared(torch.stack(clips) if clips else torch.empty(0))


def _shared(x: Tensor) -> Tensor:
    if get_worker_info() is not None:
        x.share_memory_()  # type: ignore[no-untyped-call]
    return x
