"""The blocks that training leaves alone: how many there are, and that stopping behind them changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from stadapter.layers import BottleneckMLP
from stadapter.model import VideoClassifier, build_model
from stadapter.scores import scores_in_orders, view_scores
from stadapter.tuning import Bottleneck, LoRA, Partial, STAdapter, Tuning
from stadapter.vit import ImageViT
from strategies import CASES, LABELS, build, disturb, learns, shared_trunk
from trunks import FAMILIES, NUM_BLOCKS, make_clips

FROZEN_BLOCKS = {
    **dict.fromkeys(CASES, 0),
    **dict.fromkeys(("linear-probe", "attentive-pooling", "attentive-pooling-no-time"), NUM_BLOCKS),
    "lora-last-block": NUM_BLOCKS - 1,
    "partial": NUM_BLOCKS - 2,
}
LAST_BLOCKS: dict[str, Tuning] = {
    "st-adapter": STAdapter(width=8, last_blocks=2),
    "st-adapter-before-mlp": STAdapter(width=8, last_blocks=2, before_attention=False, before_mlp=True),
    "bottleneck": Bottleneck(width=8, last_blocks=2),
    "lora": LoRA(rank=2, last_blocks=2),
    "partial": Partial(last_blocks=2),
}


@pytest.mark.parametrize("strategy", CASES)
def test_every_strategy_leaves_as_many_first_blocks_alone_as_it_promises(strategy: str) -> None:
    assert build(strategy=strategy).trunk.num_frozen_blocks() == FROZEN_BLOCKS[strategy]


@pytest.mark.parametrize("strategy", CASES)
def test_nothing_learns_in_the_blocks_that_are_left_alone(strategy: str) -> None:
    trunk = build(strategy=strategy).trunk
    frozen = [trunk.embeddings, trunk.pre_norm, *trunk.block_list()[: trunk.num_frozen_blocks()]]
    if trunk.num_frozen_blocks():
        assert not any(parameter.requires_grad for module in frozen for parameter in module.parameters())
    else:
        first = [f"trunk.{part}." for part in ("embeddings", "pre_norm", "blocks.0")]
        named = build(strategy=strategy).named_parameters()
        assert any(learns(strategy, name) for name, _ in named if name.startswith(tuple(first)))


def same_in_two_parts(model: VideoClassifier) -> None:
    """Compare tokens and logits of clips that are not square, and gradients, with those in two parts."""
    disturb(model)
    clips = make_clips(batch=2, num_frames=5, height=20, width=12)
    logits = model(clips)
    tokens = model.frozen_tokens(clips)
    assert not tokens.requires_grad
    finished = model.finish(tokens, height=20, width=12)
    assert torch.equal(finished, logits)
    for name, parameter in model.trained_tensors().items():
        whole, in_two = (
            torch.autograd.grad(answer.square().sum(), parameter, retain_graph=True, allow_unused=True)[0]
            for answer in (logits, finished)
        )
        assert (whole is None) == (in_two is None), name
        assert whole is None or torch.equal(whole, in_two), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", LAST_BLOCKS)
def test_last_blocks_on_the_tokens_of_the_first_give_the_same_bits(family: str, strategy: str) -> None:
    model = build_model(backbone=shared_trunk(family), tuning=LAST_BLOCKS[strategy], labels=LABELS)
    assert model.trunk.num_frozen_blocks() == NUM_BLOCKS - 2
    same_in_two_parts(model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["linear-probe", "attentive-pooling"])
def test_a_head_on_the_tokens_of_the_whole_trunk_gives_the_same_bits(family: str, strategy: str) -> None:
    model = build(family, strategy)
    same_in_two_parts(model)
    tokens = model.frozen_tokens(make_clips())
    reads_all = model.head.reads_patches
    assert tokens.shape[2] == (model.trunk.num_prefix + 16 if reads_all else model.trunk.num_prefix)


def test_a_dropout_that_a_strategy_put_into_a_block_ends_the_frozen_ones() -> None:
    trunk: ImageViT = build(strategy="linear-probe").trunk
    dropout = nn.Dropout(0.5)
    trunk.block_list()[1].mlp.add_module("dropout", dropout)
    assert trunk.num_frozen_blocks() == NUM_BLOCKS
    trunk.inserted.append(dropout)
    assert trunk.num_frozen_blocks() == 1


def test_what_stands_at_an_insertion_point_ends_the_frozen_ones_whether_it_learns_or_not() -> None:
    trunk: ImageViT = build(strategy="linear-probe").trunk
    trunk.block_list()[2].before_mlp = BottleneckMLP(width=8, bottleneck=2).requires_grad_(False)
    assert trunk.num_frozen_blocks() == 2


@pytest.mark.parametrize("part", ["embeddings", "pre_norm"])
def test_no_block_is_frozen_where_what_enters_the_first_learns(part: str) -> None:
    trunk: ImageViT = build("clip", "linear-probe").trunk
    next(trunk.get_submodule(part).parameters()).requires_grad_(True)
    assert trunk.num_frozen_blocks() == 0


@pytest.mark.parametrize("strategy", CASES)
def test_scores_with_frames_in_other_orders_are_those_of_clips_in_these_orders(strategy: str) -> None:
    model = build(strategy=strategy).eval()
    disturb(model)
    clips = torch.stack([make_clips(batch=2, num_frames=4, seed=seed) for seed in range(3)])  # (B, V, T, 3, H, W)
    orders = [torch.tensor([[1, 3, 0, 2], [3, 2, 1, 0], [2, 2, 2, 2]]), torch.tensor([[0, 0, 0, 0]] * 3)]
    found = scores_in_orders(model, clips, orders, views_at_once=4)
    for order, scores in zip([torch.arange(4).repeat(3, 1), *orders], found, strict=True):
        changed = torch.stack([clip[:, places] for clip, places in zip(clips, order, strict=True)])
        assert torch.equal(scores, view_scores(model, changed, views_at_once=4))


def test_frozen_blocks_see_the_frames_once_for_all_orders() -> None:
    tuning = STAdapter(width=8, last_blocks=1)
    model = build_model(backbone=shared_trunk("dinov2"), tuning=tuning, labels=LABELS).eval()
    calls = [0] * NUM_BLOCKS

    def count(place: int) -> None:
        calls[place] += 1

    for place, block in enumerate(model.trunk.block_list()):
        block.register_forward_pre_hook(lambda *_, place=place: count(place))
    clips = make_clips(batch=2, num_frames=4)[:, None]  # (B, V, T, 3, H, W)
    orders = [torch.arange(4).flip(0).repeat(2, 1)] * 3
    scores_in_orders(model, clips, orders, views_at_once=2)
    assert calls == [1] * (NUM_BLOCKS - 1) + [4]


def test_a_model_that_reads_time_when_it_normalises_is_given_frames_in_the_other_order() -> None:
    class Differences(VideoClassifier):
        def normalise(self, clips: Tensor) -> Tensor:
            return super().normalise(clips).diff(dim=1)

    model = build(strategy="linear-probe").eval()
    clips = make_clips(batch=2, num_frames=4)[:, None]  # (B, V, T, 3, H, W)
    order = torch.tensor([[3, 1, 0, 2]] * 2)
    model.__class__ = Differences
    scores = scores_in_orders(model, clips, [order], views_at_once=2)[1]
    changed = clips[:, :, order[0]]
    assert torch.equal(scores, view_scores(model, changed, views_at_once=2))


def test_a_model_with_a_forward_of_its_own_is_scored_by_it() -> None:
    class Turned(VideoClassifier):
        def forward(self, clips: Tensor) -> Tensor:
            return -super().forward(clips)

    model = build(strategy="linear-probe").eval()
    disturb(model)
    model.__class__ = Turned
    clips, order = make_clips(batch=2, num_frames=4)[:, None], torch.arange(4).repeat(2, 1)
    expected = view_scores(model, clips, views_at_once=2)
    for scores in scores_in_orders(model, clips, [order], views_at_once=2):
        assert torch.equal(scores, expected)
