"""A run laid out in advance: steps, batches, learning rates."""

import math

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard

from stadapter.training.schedule import EpochBatches, learning_rate_share, make_optimizer, make_plan, seed_dropout


def test_only_matrices_are_decayed() -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(dict(layer.named_parameters()), lr=1e-3, weight_decay=0.5)
    assert [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 1), (0.0, 1)]


def test_the_optimizer_steps_as_adamw_is_defined() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    optimizers = [make_optimizer({"a": ours}, lr=0.1, weight_decay=0.5)]
    optimizers.append(torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.5, foreach=False, fused=False))
    for step in range(3):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = torch.full_like(parameter, 0.3 - step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_what_is_added_to_tokens_is_not_decayed() -> None:
    shapes = {"trunk.blocks.0.before_attention.time_embedding.weight": (8, 4), "trunk.embeddings.cls_token": (1, 1, 4)}
    trained = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
    trained["head.classifier.weight"] = torch.nn.Parameter(torch.zeros(2, 4))
    decayed, others = make_optimizer(trained, lr=1e-3, weight_decay=0.5).param_groups
    assert decayed["params"] == [trained["head.classifier.weight"]]
    assert len(others["params"]) == 2


def test_the_learning_rate_rises_then_falls_to_almost_nothing() -> None:
    rates = [learning_rate_share(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
    assert learning_rate_share(0, 10, 0) == 1


@pytest.mark.parametrize(("num_clips", "epochs"), [(149, 32), (8, 600), (5000, 8)])
def test_few_clips_get_more_epochs(num_clips: int, epochs: int) -> None:
    plan = make_plan(num_clips=num_clips, batch_size=8)
    assert plan.epochs == epochs
    assert plan.total_steps >= 600


def test_an_epoch_can_start_in_its_middle() -> None:
    batches = EpochBatches(10, batch_size=4, seed=0)
    batches.start(3, 0)
    whole = list(batches)
    batches.start(3, 1)
    assert list(batches) == whole[1:]
    assert len(batches) == 2
    assert sorted(index for batch in whole for index in batch) == list(range(10))


def test_balanced_batches_draw_a_rare_class_as_often_as_a_common_one() -> None:
    batches = EpochBatches(10, batch_size=4, seed=0, balanced_targets=[(0,)] * 8 + [(1,)] * 2)
    batches.start(3, 0)
    whole = list(batches)
    batches.start(3, 2)
    assert list(batches) == whole[2:]
    drawn = [index % 10 for batch in whole for index in batch]
    assert (len(drawn), sum(index >= 8 for index in drawn)) == (10, 5)


def test_accumulation_and_processes_divide_the_steps() -> None:
    assert make_plan(num_clips=100, batch_size=4, epochs=2).total_steps == 50
    assert make_plan(num_clips=100, batch_size=4, epochs=2, accumulation_steps=3).steps_per_epoch == 9
    assert make_plan(num_clips=100, batch_size=4, epochs=2, num_processes=2).steps_per_epoch == 13


def test_dropout_is_a_function_of_its_key() -> None:
    with torch.random.fork_rng():
        draws = []
        for key in ((0, 1, 2), (0, 1, 2), (0, 1, 3)):
            seed_dropout(*key)
            draws.append(torch.rand(4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("num_clips", [3, 8, 10, 21])
def test_several_processes_have_as_many_whole_batches_each_and_the_same_after_a_resume(num_clips: int) -> None:
    def shares(first_batch: int) -> list[list[list[int]]]:
        batches = EpochBatches(num_clips, batch_size=4, seed=0, num_processes=2)
        batches.start(1, first_batch)
        return [list(BatchSamplerShard(batches, num_processes=2, process_index=index)) for index in (0, 1)]

    whole = shares(0)
    assert (
        len(whole[0]) == len(whole[1]) == make_plan(num_clips=num_clips, batch_size=4, num_processes=2).steps_per_epoch
    )
    assert {len(batch) for share in whole for batch in share} == {4}
    assert {index for share in whole for batch in share for index in batch} == set(range(num_clips))
    assert shares(2) == [share[1:] for share in whole]


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(12, 7), (50, 3)])
def test_the_learning_rate_is_released_one_step_early_during_warm_up_and_equal_after_it(
    epochs: int, steps_per_epoch: int
) -> None:
    def released(step: int) -> float:
        """As `main.py` of the released code computes it, with two epochs of warm-up."""
        epoch = step / steps_per_epoch
        return epoch / 2 if epoch < 2 else 0.5 + 0.5 * math.cos((epoch - 2) / (epochs - 2) * math.pi)

    warmup, total = 2 * steps_per_epoch, epochs * steps_per_epoch
    for step in range(total):
        ours = learning_rate_share(step, total, 2 / epochs)
        assert ours == pytest.approx(released(step + 1 if step < warmup else step), abs=1e-12)
