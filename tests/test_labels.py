"""Classes of one head or of several side by side: a concatenation that must equal the heads it stands for."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stadapter.errors import SettingsError
from stadapter.labels import LabelSpace
from stadapter.model import build_model
from stadapter.tuning import STAdapter
from trunks import make_clips, make_trunk

VERBS, NOUNS = ["take", "put"], ["plate", "door", "pan"]
SPACE = LabelSpace.of({"verb": VERBS, "noun": NOUNS})


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_one_layer_of_two_heads_equals_two_layers_with_their_losses_added(label_smoothing: float) -> None:
    features, targets = random(4, 8), torch.tensor([[0, 2], [1, 0], [1, 1], [0, 0]])
    both = nn.Linear(8, 5)
    verb, noun = nn.Linear(8, 2), nn.Linear(8, 3)
    with torch.no_grad():
        for name in ("weight", "bias"):
            together = getattr(both, name)
            getattr(verb, name).copy_(together[:2])
            getattr(noun, name).copy_(together[2:])
    together, apart = features.clone().requires_grad_(), features.clone().requires_grad_()
    loss = SPACE.loss(both(together), targets, label_smoothing=label_smoothing)
    expected = F.cross_entropy(verb(apart), targets[:, 0], label_smoothing=label_smoothing)
    expected = expected + F.cross_entropy(noun(apart), targets[:, 1], label_smoothing=label_smoothing)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(together.grad, apart.grad)
    for name in ("weight", "bias"):
        parts = torch.cat([getattr(verb, name).grad, getattr(noun, name).grad])
        torch.testing.assert_close(getattr(both, name).grad, parts)


def test_with_one_head_everything_is_as_without_heads() -> None:
    space, logits, targets = LabelSpace.of(NOUNS), random(4, 3), torch.tensor([2, 0, 1, 1])
    assert torch.equal(space.loss(logits, targets[:, None]), F.cross_entropy(logits, targets))
    assert torch.equal(space.softmax(logits), logits.softmax(-1))
    assert torch.equal(space.named(logits)[:, 0], logits.argmax(-1))
    best = space.likeliest(logits.softmax(-1), 2)
    assert torch.equal(best[0], logits.softmax(-1).topk(2).values)
    assert torch.equal(best[1][..., 0], logits.topk(2).indices)
    assert (space.labels, space.heads, space.num_actions, str(space)) == (tuple(NOUNS), {}, 3, "3 classes")
    assert space.to_json() == NOUNS
    assert LabelSpace.of({"noun": NOUNS}) == space  # the name of an only head means nothing


def test_the_probabilities_of_each_head_add_up_to_one_whatever_the_other_says() -> None:
    logits = random(4, 5)
    scores = SPACE.softmax(logits)
    verb, noun = SPACE.split(scores)
    torch.testing.assert_close(verb.sum(-1), torch.ones(4))
    torch.testing.assert_close(noun.sum(-1), torch.ones(4))
    torch.testing.assert_close(SPACE.softmax(torch.cat([logits[:, :2], 100 * logits[:, 2:]], -1))[:, :2], verb)


@pytest.mark.parametrize("sizes", [(2, 3), (7, 9), (3, 2, 4)])
@pytest.mark.parametrize("count", [1, 5, 24])
def test_the_likeliest_actions_are_the_largest_products_of_all_combinations(sizes: tuple[int, ...], count: int) -> None:
    space = LabelSpace.of({str(head): [str(label) for label in range(size)] for head, size in enumerate(sizes)})
    scores = space.softmax(random(6, sum(sizes), seed=3).double())
    products, places = space.likeliest(scores, count)
    for row, parts in enumerate(zip(*space.split(scores), strict=True)):
        every = itertools.product(*(range(size) for size in sizes))
        by_product = {
            action: torch.stack([p[n] for p, n in zip(parts, action, strict=True)]).prod() for action in every
        }
        expected = sorted(by_product, key=lambda action: -by_product[action])[:count]
        assert [tuple(action) for action in places[row].tolist()] == expected
        torch.testing.assert_close(products[row], torch.stack([by_product[action] for action in expected]))


def test_a_space_survives_json_with_the_order_of_its_heads() -> None:
    reordered = LabelSpace.of({"noun": NOUNS, "verb": VERBS})
    assert LabelSpace.from_json(SPACE.to_json()) == SPACE
    assert LabelSpace.from_json(reordered.to_json()) == reordered != SPACE
    assert LabelSpace.from_json(["a", "b"]) == LabelSpace.of(("a", "b"))
    assert SPACE.text([1, 2]) == "put pan"
    assert str(SPACE) == "2 verb and 3 noun classes"
    assert SPACE.labels == ("verb: take", "verb: put", "noun: plate", "noun: door", "noun: pan")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"verb": ["take"], "noun": NOUNS}, r"labels \['take'\] of the head verb: expected a list of at least two"),
        ({"verb": VERBS, "noun": ["pan", "pan"]}, "given twice of the head noun: pan"),
        ({"a": ["b: c", "d"], "a: b": ["c", "d"]}, "heads a, a: b: expected names without a colon"),
        ({"verb": ["open", "open door"], "noun": ["door knob", "knob"]}, "classes read 'open door knob': expected"),
        ({"": VERBS, "noun": NOUNS}, "expected a name for each, all different"),
        ({}, "expected a name"),
        ({"verb": VERBS, "noun": "pan"}, "labels 'pan' of the head noun: expected a list of at least two class names"),
        ({"verb": VERBS, "noun": ["pan", None]}, "label None of the head noun: expected the name of a class, a text"),
        ([0, 1], "label 0: expected the name of a class, a text"),
    ],
)
def test_heads_that_no_classifier_can_be_built_on_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build_model(backbone=make_trunk("vit"), labels=labels)


@pytest.mark.parametrize("labels", [10, "left", None])
def test_what_names_no_classes_is_refused(labels: Any) -> None:
    with pytest.raises(SettingsError, match=f"labels {labels!r}: expected a list of at least two class names"):
        LabelSpace.of(labels)


def test_two_heads_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="heads 'verb', 'verb': expected a name for each, all different"):
        LabelSpace((tuple(VERBS), tuple(NOUNS)), ("verb", "verb")).check()


def test_unknown_classes_are_told_in_their_order() -> None:
    assert SPACE.unknown(LabelSpace.of({"verb": ["wash", "take"], "noun": ["pot", "door", "cup"]})) == [
        "verb: wash",
        "noun: pot",
        "noun: cup",
    ]


def test_one_class_name_may_be_in_two_heads() -> None:
    model = build_model(
        backbone=make_trunk("vit"),
        labels={"verb": ["water", "cut"], "noun": ["water", "pan"]},
        tuning=STAdapter(width=4),
    )
    assert model.labels == ("verb: water", "verb: cut", "noun: water", "noun: pan")
    assert model(make_clips(batch=2)).shape == (2, 4)
