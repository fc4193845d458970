"""Intervals hold the truth as often as they say, and do not claim what the clips cannot show."""

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest

from stadapter.errors import SettingsError
from stadapter.uncertainty import (
    Interval,
    bootstrap_interval,
    difference_over_seeds,
    interval_over_seeds,
    paired_difference,
)


def test_an_interval_agrees_with_the_normal_one_for_many_clips() -> None:
    values = np.arange(1000) < 800  # 80 % right
    half = 1.96 * (0.8 * 0.2 / 1000) ** 0.5
    interval = bootstrap_interval(values)
    assert interval.low == pytest.approx(0.8 - half, abs=0.003)
    assert interval.high == pytest.approx(0.8 + half, abs=0.003)


def test_95_percent_of_the_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(0)
    samples = generator.random((300, 60)) < 0.7
    intervals = [bootstrap_interval(sample, num_resamples=500, seed=seed) for seed, sample in enumerate(samples)]
    assert 0.91 <= np.mean([interval.low <= 0.7 <= interval.high for interval in intervals]) <= 0.98


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [1, 0, 1, 1, 0, 1, 1, 0.5]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(np.array(values) * 0.9, seed=3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 1, 1, 1], Interval(0.025 ** (1 / 4), 1.0)),
        ([0, 0, 0, 0], Interval(0.0, 1 - 0.025 ** (1 / 4))),
        ([1], Interval(0.025, 1.0)),
    ],
)
def test_values_that_are_all_the_same_are_not_taken_for_certainty(values: list[float], expected: Interval) -> None:
    """The exact binomial (Clopper-Pearson) bound for n of n and 0 of n."""
    interval = bootstrap_interval(values)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_mean_over_groups_weighs_every_group_the_same() -> None:
    values, groups = [1.0] * 90 + [0.0] * 10, [0] * 90 + [1] * 10
    plain, grouped = bootstrap_interval(values), bootstrap_interval(values, groups=groups)
    assert plain.low < 0.9 < plain.high
    assert (grouped.low, grouped.high) == (0.5, 0.5)  # group 0 always 1, group 1 always 0


def test_an_empty_group_number_counts_for_nothing() -> None:
    values = [1, 0, 1, 1, 0, 1]
    assert bootstrap_interval(values, groups=[0, 0, 1, 1, 1, 0]) == bootstrap_interval(
        values, groups=[0, 0, 7, 7, 7, 0]
    )


def test_many_clips_are_drawn_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("stadapter.uncertainty._DRAWS_AT_ONCE", 300)
    assert bootstrap_interval(values) == whole


def test_a_paired_difference_is_narrower_than_the_two_intervals_suggest() -> None:
    first = np.arange(100) < 60
    second = np.arange(100) < 50  # right on 50 of the same 60 clips
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(0.1)
    assert 0 < difference.interval.low < 0.1 < difference.interval.high < 0.2
    assert bootstrap_interval(first).low < bootstrap_interval(second).high


def test_no_difference_on_few_clips_may_still_be_one() -> None:
    difference = paired_difference([1, 0, 1, 1], [1, 0, 1, 1])
    bound = 1 - 0.025 ** (1 / 4)
    assert (difference.interval.low, difference.interval.high) == pytest.approx((-bound, bound))


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ([], {}, "at least one clip"),
        ([1, 0], {"groups": [0]}, r"groups \(1,\)"),
        ([1, 0], {"num_resamples": 0}, "num_resamples 0"),
    ],
)
def test_what_has_no_interval_is_refused(values: list[float], settings: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        bootstrap_interval(values, **settings)  # type: ignore[arg-type]


def test_a_difference_of_other_clips_is_refused() -> None:
    with pytest.raises(SettingsError, match="same clips"):
        paired_difference([1, 0, 1], [1, 0])


def test_drawing_kinds_of_clips_is_drawing_clips() -> None:
    """Against the plain way: n clips with replacement, then the mean of the means of the classes."""
    generator = np.random.default_rng(1)
    values, groups = generator.random(60) < 0.6, generator.integers(4, size=60)
    drawn = generator.integers(60, size=(20000, 60))
    per_group = [
        (values[drawn] * (groups[drawn] == group)).sum(1) / (groups[drawn] == group).sum(1) for group in range(4)
    ]
    low, high = np.quantile(np.mean(per_group, axis=0), [0.025, 0.975])
    interval = bootstrap_interval(values, groups=groups, num_resamples=20000)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)


def test_a_class_that_a_resample_does_not_hold_is_not_counted_in_it() -> None:
    values, groups = np.array([1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1.0]), np.arange(12) // 2
    drawn = np.random.default_rng(1).integers(12, size=(20000, 12))
    plain = [np.mean([values[row][groups[row] == group].mean() for group in set(groups[row])]) for row in drawn]
    low, high = np.quantile(plain, [0.025, 0.975])
    interval = bootstrap_interval(values, groups=groups, num_resamples=20000)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.01)


def test_thousands_of_classes_take_no_table_of_every_kind_of_clip_by_class() -> None:
    groups = np.arange(8000) // 2
    tracemalloc.start()
    try:
        bootstrap_interval(groups % 3 == 0, groups=groups, num_resamples=10)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20  # such a table would take 8 bytes x 4000 x 4000


def trainings(generator: np.random.Generator, count: int, hardness: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Answers (s, n) of trainings of one kind, which are not equally lucky, to clips that are not equally hard."""
    luck = generator.normal(0, 1, (count, 1))
    return generator.random((count, len(hardness))) < 1 / (1 + np.exp(hardness - luck - 0.5))


def test_an_interval_over_seeds_covers_what_seeds_do_and_one_over_clips_does_not() -> None:
    generator = np.random.default_rng(0)
    over_seeds, over_clips = [], []
    for _ in range(200):
        hardness = generator.normal(0, 1, 40)
        first, second = (trainings(generator, 5, hardness) for _ in range(2))  # of the same kind: no difference
        whole = difference_over_seeds(first, second, num_resamples=400).interval
        alone = paired_difference(first.mean(0), second.mean(0), num_resamples=400).interval
        over_seeds.append(whole.low <= 0 <= whole.high)
        over_clips.append(alone.low <= 0 <= alone.high)
    assert np.mean(over_seeds) >= 0.9
    assert np.mean(over_clips) <= 0.65


def test_one_seed_leaves_the_interval_over_clips() -> None:
    generator = np.random.default_rng(1)
    first, second = (trainings(generator, 1, generator.normal(0, 1, 40)) for _ in range(2))
    assert interval_over_seeds(first) == bootstrap_interval(first[0])
    assert difference_over_seeds(first, second) == paired_difference(first[0], second[0])


def test_seeds_that_agree_widen_nothing_and_never_narrow() -> None:
    right = np.arange(40) < 30
    same, none = np.stack([right] * 3), np.zeros((3, 40), bool)
    clips = bootstrap_interval(right)
    assert (interval_over_seeds(same).low, interval_over_seeds(same).high) == pytest.approx(
        (clips.low, clips.high), abs=0.03
    )
    assert interval_over_seeds(none) == bootstrap_interval(none[0])  # the bound for 0 of n
    assert difference_over_seeds(same, none).mean == 0.75
    one = difference_over_seeds(same, none[:1]).interval
    assert one.low <= paired_difference(right, none[0]).interval.low


def test_a_seed_that_learned_nothing_reaches_the_end_of_an_interval_over_seeds() -> None:
    right, wrong = np.ones((2, 40), bool), np.zeros((1, 40), bool)
    interval = difference_over_seeds(right, np.concatenate([right[:1], wrong])).interval
    assert (interval.low, interval.high) == (0, 1)


def test_clips_that_are_hard_in_every_training_do_not_widen_a_difference_over_seeds() -> None:
    first = np.stack([np.repeat([0.0, 0.0, 1.0], [10, 10, 20])] * 2)
    second = np.stack([np.repeat([0.0, 0.01, 1.0], [10, 10, 20])] * 2)
    interval = difference_over_seeds(first, second).interval
    assert -0.01 <= interval.low < interval.high <= 0


def test_seeds_of_other_clips_are_refused() -> None:
    with pytest.raises(SettingsError, match="same clips"):
        difference_over_seeds(np.ones((2, 3)), np.ones((2, 4)))
