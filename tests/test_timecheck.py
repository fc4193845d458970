"""The time check changes nothing but the order of frames, and says no more than the clips can show."""

from collections.abc import Sequence

import pytest

from stadapter.evaluation.timecheck import ORDER_NAMES, Order, TimeCheck, frame_places, make_time_check, shuffled_order


def checked(num_clips: int, **right: int) -> TimeCheck:
    """Two classes in turn; in each order the first `right` clips are named right."""
    labels = ["left" if clip % 2 else "right" for clip in range(num_clips)]
    other = {"left": "right", "right": "left"}

    def named(count: int) -> Sequence[str]:
        return [label if clip < count else other[label] for clip, label in enumerate(labels)]

    predicted: dict[Order, Sequence[str]] = {order: named(right[order]) for order in ORDER_NAMES}
    return make_time_check(labels, predicted)


def test_figures_are_counted_by_order() -> None:
    check = checked(40, as_is=38, shuffled=20, reversed=2, single_frame=18)
    assert (check.as_is, check.shuffled, check.reversed, check.single_frame) == (0.95, 0.5, 0.05, 0.45)
    assert check.most_common == 0.5
    assert check.differences["reversed"].mean == pytest.approx(0.9)
    assert check.predicted["as_is"].count("left") == check.predicted["as_is"].count("right") == 20


@pytest.mark.parametrize(
    ("num_clips", "right", "verdict"),
    [
        (40, (38, 20, 2, 18), "Time matters: with the frames shuffled, accuracy falls by 45 points (95 % interval "),
        (40, (38, 37, 2, 37), "Time matters: played backwards, accuracy falls by 90 points"),
        (40, (38, 37, 37, 20), "Several frames matter: with one frame repeated, accuracy falls by 45 points"),
        (
            12,
            (11, 9, 10, 9),
            "Cannot tell from 12 clips whether time matters: with the frames shuffled, accuracy falls",
        ),
        (
            12,
            (10, 11, 10, 10),
            "Cannot tell from 12 clips whether time matters: with the frames shuffled, accuracy rises by 8 points "
            "(95 % interval 0 to 25).",
        ),
        (
            1000,
            (800, 900, 900, 900),
            "Cannot tell from 1000 clips whether time matters: with the frames shuffled, accuracy rises by 10 points "
            "(95 % interval 8 to 12).",
        ),
        (12, (12, 12, 12, 12), "Cannot tell from 12 clips whether time matters: "),
        (40, (22, 20, 20, 20), "Cannot tell whether time matters: on 40 clips the classifier is not clearly better "),
        (
            1000,
            (900, 899, 899, 898),
            "Time matters little: no change to the frames moves accuracy by more than 1 point.",
        ),
        (
            1000,
            (900, 900, 900, 900),
            "Time matters little: no change to the frames moves accuracy by more than 1 point.",
        ),
    ],
)
def test_the_verdict_says_what_the_clips_can_show(num_clips: int, right: tuple[int, ...], verdict: str) -> None:
    check = checked(num_clips, **dict(zip(ORDER_NAMES, right, strict=True)))
    assert check.verdict().startswith(verdict), check.verdict()


def test_the_sentence_has_all_four_accuracies() -> None:
    sentence = checked(40, as_is=38, shuffled=20, reversed=2, single_frame=18).sentence()
    assert sentence.endswith(
        "Correct: as they are 95 %, frames shuffled 50 %, played backwards 5 %, one frame repeated 45 %."
    )


def test_one_clip_can_show_nothing() -> None:
    assert checked(1, as_is=1, shuffled=0, reversed=0, single_frame=0).verdict().startswith("Cannot tell")


def test_places_of_the_frames_in_every_order() -> None:
    names = ["a.mp4", "b.mp4"]
    assert frame_places("as_is", 5, names).tolist() == [[0, 1, 2, 3, 4]] * 2
    assert frame_places("reversed", 5, names).tolist() == [[4, 3, 2, 1, 0]] * 2
    assert frame_places("single_frame", 5, names).tolist() == [[2] * 5] * 2
    assert frame_places("shuffled", 5, names).tolist() == [shuffled_order(5, name) for name in names]


def test_a_shuffled_order_depends_on_seed_and_name_only_and_is_never_the_true_one() -> None:
    names = [f"clip {number}.mp4" for number in range(200)]
    orders = [shuffled_order(3, name) for name in names]
    assert orders == [shuffled_order(3, name) for name in names]
    assert len({tuple(order) for order in orders}) == 5  # all permutations of three but one
    assert [0, 1, 2] not in orders
    assert orders != [shuffled_order(3, name, seed=1) for name in names]
    assert shuffled_order(8, "caf\udce9.mp4") == shuffled_order(8, "caf\udce9.mp4")


def test_a_check_prints_as_its_sentence_without_the_clips() -> None:
    check = checked(40, as_is=30, shuffled=10, reversed=10, single_frame=10)
    assert repr(check) == f"TimeCheck(40 clips: {check.sentence()})"
