"""What a classifier can name: the classes of one head, or of several side by side, such as verb and noun."""

# B batch, K heads, C classes of all heads together, n combinations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

from stadapter.errors import SettingsError
from stadapter.wording import counted

if TYPE_CHECKING:  # code that reads and checks data, or shows settings, needs no torch
    from torch import Tensor

ACTION = "action"
"""Name for the classes of all heads together: an action is right if every head is."""
SINGLE = "label"
"""Name of the head of a classifier that has only one."""
LabelKind = Literal["action", "verb", "noun", "verb+noun"]
"""What EPIC-Kitchens clips are labelled with: an action is a verb and a noun as one class, verb+noun is two heads."""
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
_MOST_COMPARED = 10**6
"""The most combinations that are compared with each other; with more, as in no data set, the check is skipped."""


@dataclass(frozen=True)
class LabelSpace:
    """The classes of every head; one head is the ordinary case.

    Several heads are one linear layer, with their outputs side by side; nothing else in a model knows of them:

        logits (B, C)    take  put  open │ plate  door  pan  tap
                         ───── verb ──── │ ──────── noun ───────
    """

    classes: tuple[tuple[str, ...], ...]
    """Class names of each head, in the order of its logits."""
    names: tuple[str, ...] = (SINGLE,)
    """Names of the heads."""

    @classmethod
    def of(cls, labels: "Labels") -> Self:
        """The space of a list of class names, or of a mapping from heads to such lists; a space stays as it is.

        Raises:
            SettingsError: anything else, such as a number of classes, or one text for several.

        >>> LabelSpace.of({"verb": ["take", "put"], "noun": ["door", "pan"]}).labels
        ('verb: take', 'verb: put', 'noun: door', 'noun: pan')
        """
        if isinstance(labels, LabelSpace):
            return cls(labels.classes, labels.names)
        heads = labels if isinstance(labels, Mapping) else {SINGLE: labels}
        for name, classes in heads.items():
            if isinstance(classes, str) or not isinstance(classes, Sequence):
                head = f" of the head {name}" if len(heads) > 1 else ""
                raise SettingsError(f"labels {classes!r}{head}: expected a list of at least two class names")
        classes_of_heads = tuple(tuple(classes) for classes in heads.values())
        return cls(classes_of_heads) if len(heads) == 1 else cls(classes_of_heads, tuple(heads))

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The inverse of `to_json`.

        Raises:
            TypeError, KeyError: the values have another form.
        """
        if values and isinstance(values[0], dict):
            heads = {str(head["name"]): [str(label) for label in head["classes"]] for head in values}
            return cls.of(heads)
        return cls.of([str(label) for label in values])

    def to_json(self) -> list[Any]:
        """The class names; for several heads a list of {name, classes}."""
        if self.num_heads == 1:
            return list(self.classes[0])
        return [{"name": name, "classes": list(classes)} for name, classes in self.heads.items()]

    @property
    def num_heads(self) -> int:
        """K, the number of heads."""
        return len(self.names)

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """Class names by the name of the head; empty if there is one head, whose name means nothing."""
        return dict(zip(self.names, self.classes, strict=True)) if self.num_heads > 1 else {}

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each head."""
        return tuple(map(len, self.classes))

    @property
    def num_actions(self) -> int:
        """Number of combinations of one class of each head; with one head, of its classes."""
        return math.prod(self.sizes)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every class in the order of the logits; with several heads each is prefixed by the name of its head."""
        return tuple(label for classes in self.labels_by_head for label in classes)

    @property
    def labels_by_head(self) -> tuple[tuple[str, ...], ...]:
        """The same, head by head."""
        if self.num_heads == 1:
            return self.classes
        return tuple(tuple(qualified(name, label) for label in classes) for name, classes in self.heads.items())

    def __str__(self) -> str:
        """How many classes there are, in words."""
        if self.num_heads == 1:
            return counted(self.sizes[0], "class")
        return " and ".join(f"{len(classes)} {name}" for name, classes in self.heads.items()) + " classes"

    def check(self) -> None:
        """Refuse classes that no classifier can be built on.

        Raises:
            SettingsError: a class that is no text, a head with fewer than two classes, a class twice in one head, an
                empty or repeated head name, or combinations of classes that read alike.
        """
        if not all(self.names) or len(set(self.names)) < len(self.names) or not self.names:
            raise SettingsError(f"heads {', '.join(map(repr, self.names))}: expected a name for each, all different")
        for name, classes in zip(self.names, self.classes, strict=True):
            head = f" of the head {name}" if self.num_heads > 1 else ""
            if others := [label for label in classes if not isinstance(label, str)]:
                raise SettingsError(f"label {others[0]!r}{head}: expected the name of a class, a text")
            if len(classes) < 2:
                raise SettingsError(f"labels {list(classes)!r}{head}: expected a list of at least two class names")
            if twice := sorted({label for label in classes if classes.count(label) > 1}):
                raise SettingsError(f"class names given twice{head}: {', '.join(twice)}; expected each once")
        if (alike := self._alike()) is not None:
            raise SettingsError(f"several combinations of classes read {alike!r}: expected names that tell them apart")
        if len(set(self.labels)) < len(self.labels):  # a class "b: c" of a head "a", and a class "c" of a head "a: b"
            raise SettingsError(f"heads {', '.join(self.names)}: expected names without a colon")

    def _alike(self) -> str | None:
        """The text shared by two combinations of classes, like "open" "door knob" and "open door" "knob", if any."""
        num_with_spaces = sum(any(" " in label for label in classes) for classes in self.classes)
        if num_with_spaces < 2 or self.num_actions > _MOST_COMPARED:
            return None
        texts = Counter(map(joined, product(*self.classes)))
        text, count = texts.most_common(1)[0]
        return text if count > 1 else None

    def split(self, outputs: "Tensor") -> "tuple[Tensor, ...]":
        """Split logits or scores (..., C) of all heads into those of each head."""
        import torch

        return torch.split(outputs, list(self.sizes), dim=-1)

    def loss(self, logits: "Tensor", targets: "Tensor", *, label_smoothing: float = 0.0) -> "Tensor":
        """The sum of the heads' cross-entropies, each averaged over the batch; logits (B, C), targets (B, K)."""
        import torch
        import torch.nn.functional as F

        parts = zip(self.split(logits), targets.unbind(-1), strict=True)
        return torch.stack([F.cross_entropy(part, of, label_smoothing=label_smoothing) for part, of in parts]).sum()

    def softmax(self, logits: "Tensor") -> "Tensor":
        """Logits (..., C) to probabilities: those of each head add up to 1."""
        import torch

        return torch.cat([part.softmax(-1) for part in self.split(logits)], -1)

    def named(self, outputs: "Tensor") -> "Tensor":
        """The class that each head names: logits or scores (..., C) to int64 (..., K)."""
        import torch

        return torch.stack([part.argmax(-1) for part in self.split(outputs)], -1)

    def likeliest(self, scores: "Tensor", count: int) -> "tuple[Tensor, Tensor]":
        """The combinations with the largest product of their classes' scores; with one head, its best classes.

        Every combination counts, even one that no clip shows: this is how EPIC-Kitchens-100 ranks actions
        (github.com/epic-kitchens/C1-Action-Recognition, utils/scoring.py, compute_action_scores).

        Args:
            scores: (B, C), as `softmax` gives them.
            count: how many; at most as many as there are.

        Returns:
            Their products (B, n), highest first, and their classes, int64 (B, n, K).
        """
        import torch

        first, *others = self.split(scores)
        best = first.topk(min(count, first.shape[-1]))
        products, places = best.values, best.indices[..., None]  # (B, n), (B, n, 1)
        for part in others:
            best = part.topk(min(count, part.shape[-1]))  # (B, m); anything else is in no best combination
            every = (products[:, :, None] * best.values[:, None]).flatten(1)  # (B, n*m)
            chosen = every.topk(min(count, every.shape[-1]))
            row, column = chosen.indices // best.values.shape[-1], chosen.indices % best.values.shape[-1]
            kept = places.gather(1, row[..., None].expand(-1, -1, places.shape[-1]))
            places = torch.cat([kept, best.indices.gather(1, column)[..., None]], -1)
            products = chosen.values
        return products, places

    def text(self, named: Sequence[int]) -> str:
        """One class of each head in words, such as "open door"."""
        return joined([classes[place] for classes, place in zip(self.classes, named, strict=True)])

    def unknown(self, others: "LabelSpace") -> list[str]:
        """The classes of another space that this one lacks, in its order."""
        known = set(self.labels)
        return [label for label in others.labels if label not in known]


Labels: TypeAlias = LabelSpace | Sequence[str] | Mapping[str, Sequence[str]]
"""Class names; or, for several heads, a mapping from each head's name to its class names."""


def qualified(head: str, label: str) -> str:
    """The name of a class of one of several heads."""
    return f"{head}: {label}"


def joined(classes: Sequence[str]) -> str:
    """The name of one class of each head, as a single name."""
    return " ".join(classes)
