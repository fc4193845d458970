"""Does time matter? The same clips with their frames in other orders, and what the accuracies then show."""

# B batch, T frames

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from stadapter.uncertainty import Difference, Interval, bootstrap_interval, paired_difference
from stadapter.wording import counted, percent

Order: TypeAlias = Literal["as_is", "shuffled", "reversed", "single_frame"]
CHANGED_ORDERS: tuple[Order, ...] = ("shuffled", "reversed", "single_frame")
ORDER_NAMES: dict[Order, str] = {
    "as_is": "as they are",
    "shuffled": "frames shuffled",
    "reversed": "played backwards",
    "single_frame": "one frame repeated",
}
"""The orders in words."""
_CLEAR = 0.005
"""A difference whose interval reaches below this, half a point, is not clear."""
_LITTLE = 0.05
"""A difference in accuracy within this counts as little."""


@dataclass(frozen=True)
class TimeCheck:
    """Accuracies on the same clips with their frames in order, and in other orders. Each clip was decoded once."""

    num_clips: int
    as_is: float
    """Fraction of clips classified correctly with their frames in order, 0 to 1."""
    shuffled: float
    """The same with the frames in a random order, different for every clip, never the true one."""
    reversed: float
    """The same played backwards."""
    single_frame: float
    """The same with the middle frame repeated: no motion at all."""
    most_common: float
    """Share of the most common class: what always predicting it would reach."""
    intervals: dict[Order, Interval]
    """Intervals of the four accuracies."""
    differences: dict[Order, Difference]
    """By how much the accuracy with the frames as is exceeds that in each other order, paired by clip."""
    predicted: dict[Order, tuple[str, ...]]
    """The class predicted for every clip, in the order of the report's predictions."""

    def __repr__(self) -> str:
        """A summary, without what was predicted for every clip."""
        return f"TimeCheck({self.num_clips} clips: {self.sentence()})"

    def sentence(self) -> str:
        """What the four accuracies say, in words; "cannot tell" if there are too few clips."""
        return f"{self.verdict()} {self._figures()}"

    def verdict(self) -> str:
        """The same without the four accuracies."""
        clips, single = counted(self.num_clips, "clip"), self.differences["single_frame"]
        shuffled = f"with the frames shuffled, accuracy {_change(self.differences['shuffled'])}"
        if self.intervals["as_is"].low <= self.most_common:
            return (
                f"Cannot tell whether time matters: on {clips} the classifier is not clearly better than always "
                f"predicting the most common class ({percent(self.most_common, 0)})."
            )
        if self.differences["shuffled"].interval.low > _CLEAR:
            return f"Time matters: {shuffled}."
        if self.differences["reversed"].interval.low > _CLEAR:
            return f"Time matters: played backwards, accuracy {_change(self.differences['reversed'])}."
        if single.interval.low > _CLEAR:
            return (
                f"Several frames matter: with one frame repeated, accuracy {_change(single)}. {clips} do not show that "
                f"their order matters: {shuffled}."
            )
        ends = [end for change in self.differences.values() for end in (change.interval.low, change.interval.high)]
        if max(map(abs, ends)) <= _LITTLE:
            most = counted(math.ceil(100 * max(map(abs, ends))), "point")
            return f"Time matters little: no change to the frames moves accuracy by more than {most}."
        return f"Cannot tell from {clips} whether time matters: {shuffled}."

    def _figures(self) -> str:
        named = ", ".join(f"{name} {percent(getattr(self, order), 0)}" for order, name in ORDER_NAMES.items())
        return f"Correct: {named}."


def make_time_check(labels: Sequence[str], predicted: Mapping[Order, Sequence[str]]) -> TimeCheck:
    """The check from the true class of every clip, and the class predicted for it in each of the four orders.

    Both are in the order of the clips, of which there is at least one.
    """
    right = {
        order: np.array([name == label for name, label in zip(predicted[order], labels, strict=True)])
        for order in ORDER_NAMES
    }
    accuracies = {order: float(right[order].mean()) for order in ORDER_NAMES}
    return TimeCheck(
        num_clips=len(labels),
        **accuracies,
        most_common=Counter(labels).most_common(1)[0][1] / len(labels),
        intervals={order: bootstrap_interval(right[order]) for order in ORDER_NAMES},
        differences={order: paired_difference(right["as_is"], right[order]) for order in CHANGED_ORDERS},
        predicted={order: tuple(predicted[order]) for order in ORDER_NAMES},
    )


def frame_places(order: Order, num_frames: int, names: Sequence[str]) -> Tensor:
    """The places (B, T), int64, from which the frames of B clips with these names are taken to put them in this order.

    A shuffled order is a pure function of (name, T), the same in all views of a clip.
    """
    frames = list(range(num_frames))
    if order == "shuffled":
        return torch.tensor([shuffled_order(num_frames, name) for name in names])
    places = {"as_is": frames, "reversed": frames[::-1], "single_frame": [num_frames // 2] * num_frames}[order]
    return torch.tensor([places] * len(names))


def shuffled_order(num_frames: int, name: str, *, seed: int = 0) -> list[int]:
    """A random permutation of the frames of one clip, never the order they have.

    >>> shuffled_order(2, "a.mp4"), shuffled_order(1, "a.mp4")
    ([1, 0], [0])
    """
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).digest()
    generator = np.random.default_rng((seed, *digest))
    in_order = list(range(num_frames))
    places = in_order
    while places == in_order and num_frames > 1:
        places = [int(place) for place in generator.permutation(num_frames)]
    return places


def _change(difference: Difference) -> str:
    low, high = round(100 * difference.interval.low), round(100 * difference.interval.high)
    if difference.mean < 0:
        return f"rises by {_hundredths(-difference.mean)} (95 % interval {-high} to {-low})"
    return f"falls by {_hundredths(difference.mean)} (95 % interval {low} to {high})"


def _hundredths(share: float) -> str:
    return counted(round(100 * share), "point")
