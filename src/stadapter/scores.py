"""Scores of clips: all views through a model, averaged after softmax; also with frames in other orders."""

# B batch, V views, T frames, C classes, H W pixels

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from stadapter.clips import ClipConfig
from stadapter.errors import DivergedError, SettingsError
from stadapter.labels import LabelSpace
from stadapter.machine import copies_asynchronously
from stadapter.model import VideoClassifier
from stadapter.wording import listed

_SAME = 1e-6
"""Means and stds that differ by no more than this are the same, written with different digits."""


class ClipClassifier(Protocol):
    """What evaluation and prediction require of a model, an `nn.Module`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits. A model with several heads also has a `label_space`."""

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8 or float (..., T, 3, H, W) to normalised float of the same shape."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def __call__(self, clips: Tensor) -> Any:
        """Normalised float (B, T, 3, H, W) to logits (B, C)."""


def view_scores(model: ClipClassifier, clips: Tensor, *, views_at_once: int) -> Tensor:
    """The probability of every class for each clip, averaged over its views after softmax.

    Args:
        model: the classifier, in eval mode; it computes on its own device, in its own precision.
        clips: (B, V, T, 3, H, W), uint8 or normalised float, on any device.
        views_at_once: number of views put through the model at once, from one clip or several.

    Returns:
        fp32 (B, C) on the CPU, adding up to 1 in every head; not finite where the model's output is not, see
        `check_finite_scores`.
    """
    return scores_in_orders(model, clips, (), views_at_once=views_at_once)[0]


def scores_in_orders(
    model: ClipClassifier,
    clips: Tensor,
    orders: Sequence[Tensor],
    *,
    views_at_once: int,
) -> list[Tensor]:
    """`view_scores` of clips as they are, and again with their frames in other orders.

    Whatever sees each frame by itself, like the first frozen blocks, is computed once for all orders.

    Args:
        model, clips, views_at_once: as for `view_scores`.
        orders: each is int64 (B, T), the positions that the frames of every clip are taken from, in all its views.

    Returns:
        fp32 (B, C) on the CPU, first for the clips as they are, then for each order.
    """
    seen, rest = _as_is, partial(_logits, model)
    if orders and sees_frames_alone(model):
        seen = partial(_frozen_tokens, model)
        rest = partial(model.finish, height=clips.shape[-2], width=clips.shape[-1])
    return _scores_in_orders(model, clips, orders, seen, rest, views_at_once=views_at_once)


def frozen_tokens(model: VideoClassifier, clips: Tensor, *, views_at_once: int) -> Tensor:
    """What the frozen first blocks make of clips (B, V, T, 3, H, W), for `token_scores_in_orders`: (B, V, T, N, D)."""
    views = clips.flatten(0, 1)  # (B*V, T, 3, H, W)
    with torch.inference_mode():
        starts = range(0, len(views), views_at_once)
        tokens = torch.cat([_frozen_tokens(model, views[start : start + views_at_once]) for start in starts])
    return tokens.view(*clips.shape[:2], *tokens.shape[1:])


def token_scores_in_orders(
    model: VideoClassifier, tokens: Tensor, orders: Sequence[Tensor], *, size: int, views_at_once: int
) -> list[Tensor]:
    """`scores_in_orders` of clips of `size` pixels square, from their `frozen_tokens` (B, V, T, N, D)."""
    rest = partial(model.finish, height=size, width=size)
    return _scores_in_orders(model, tokens, orders, _as_is, rest, views_at_once=views_at_once)


def _scores_in_orders(
    model: ClipClassifier,
    clips: Tensor,
    orders: Sequence[Tensor],
    seen: Callable[[Tensor], Tensor],
    rest: Callable[[Tensor], Tensor],
    *,
    views_at_once: int,
) -> list[Tensor]:
    """Scores (B, C) of clips or tokens (B, V, T, …) in every order.

    Views (·, T, …) go through `seen` as they are, and frame by frame what it makes of them is put in other orders;
    from that, `rest` makes logits.
    """
    num_clips, num_views = clips.shape[:2]
    device = next(model.parameters()).device
    views = clips.flatten(0, 1)  # (B*V, T, …)
    places = [order.repeat_interleave(num_views, dim=0).to(device) for order in orders]  # (B*V, T)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(views), views_at_once):
            part = slice(start, start + views_at_once)
            frames = seen(views[part].to(device, non_blocking=copies_asynchronously(device)))
            row = torch.arange(len(frames), device=device)[:, None]
            parts.append([rest(frames), *(rest(frames[row, place[part]]) for place in places)])
        scores = [label_space_of(model).softmax(torch.cat(logits).float()) for logits in zip(*parts, strict=True)]
    return [each.reshape(num_clips, num_views, -1).mean(1).cpu() for each in scores]  # (B, C)


def _frozen_tokens(model: VideoClassifier, views: Tensor) -> Tensor:
    return model.frozen_tokens(model.normalise(views))


def _logits(model: ClipClassifier, views: Tensor) -> Tensor:
    logits: Tensor = model(model.normalise(views))
    return logits


def _as_is(views: Tensor) -> Tensor:
    return views


def sees_frames_alone(model: ClipClassifier) -> TypeGuard[VideoClassifier]:
    """Whether the model starts with blocks that see each frame by itself; one with its own `forward` may not."""
    return type(model) is VideoClassifier and model.trunk.num_frozen_blocks() > 0


def label_space_of(model: ClipClassifier) -> LabelSpace:
    """The classes of each head of a model; one that names no heads has one."""
    space: LabelSpace | None = getattr(model, "label_space", None)
    return space if space is not None else LabelSpace.of(model.labels)


def check_normalisation(model: ClipClassifier, clip_config: ClipConfig) -> None:
    """Refuse clips that are not normalised as the trunk of a model expects.

    Raises:
        SettingsError: on the released path, a mean or std other than the trunk's.
    """
    if not isinstance(model, VideoClassifier) or clip_config.resize != "released":
        return
    info = model.trunk.info
    for name, found, expected in (("mean", clip_config.mean, info.mean), ("std", clip_config.std, info.std)):
        if max(abs(ours - theirs) for ours, theirs in zip(found, expected, strict=True)) > _SAME:
            raise SettingsError(
                f'{name} {found} of a clip config with resize="released": expected {expected}, which the trunk '
                f"{info.name} was trained with; dataclasses.replace(clip_config, mean=…, std=…) sets both"
            )


def check_finite_scores(scores: Tensor, names: Sequence[str]) -> None:
    """Refuse scores (B, C) that are not all finite; `names` are those of the B clips.

    Raises:
        DivergedError: some are not finite; the message names their clips.
    """
    broken = [name for name, finite in zip(names, scores.isfinite().all(-1).tolist(), strict=True) if not finite]
    if broken:
        raise DivergedError(
            f"{listed(broken)}: the scores are not finite numbers; compute in float32, or train again: "
            "the weights may have diverged"
        )
