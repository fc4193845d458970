"""The rules of the data doctor, each on clips made for it: what is found, and what is passed over."""

from pathlib import Path
from random import Random
from typing import Any

import pytest

from stadapter.check.examine import WHOLE, Clip, Video
from stadapter.check.findings import Finding, find_all, sided_labels
from stadapter.video import VideoInfo
from stadapter.video.segment import Segment


def make_clip(
    name: str,
    label: str | None = "wave",
    *,
    held_out: bool = False,
    segment: Segment = WHOLE,
    num_frames: int = 50,
    content: str | None = None,
    error: str | None = None,
    decoded: tuple[int | None, int] = (None, 0),
    **info: Any,
) -> Clip:
    """A clip of 2 seconds, readable unless there is an error."""
    facts = VideoInfo(num_frames, 2.0, 64, 48, "h264", 25.0, **info)
    fault = "unreadable" if error is not None else None
    found: int | str = error if error is not None else num_frames
    video = Video(Path("/data") / name, 1000, None if error else facts, fault, {segment: found}, *decoded, content)
    return Clip(name, label, () if label is None else (label,), held_out, segment, video)


def find(*clips: Clip) -> dict[str, Finding]:
    found = list(find_all(clips, num_frames=8, max_bad_fraction=0.1))
    assert len({finding.kind for finding in found}) == len(found)
    return {finding.kind: finding for finding in found}


def many(label: str, count: int, **settings: Any) -> list[Clip]:
    return [make_clip(f"{label}/{index}.mp4", label, **settings) for index in range(count)]


def test_a_sound_data_set_has_no_findings() -> None:
    train = [*many("wave", 5), *many("point", 5)]
    held_out = [make_clip(f"{label}/h.mp4", label, held_out=True) for label in ("wave", "point")]
    assert find(*train, *held_out) == {}


@pytest.mark.parametrize(("num_bad", "num_good", "stops"), [(1, 2, False), (2, 18, False), (3, 17, True), (2, 3, True)])
def test_more_unreadable_clips_than_training_allows_are_an_error(num_bad: int, num_good: int, stops: bool) -> None:
    bad = [make_clip(f"wave/bad{index}.mp4", error=f"bad{index}.mp4: broken") for index in range(num_bad)]
    found = find(*bad, *many("wave", num_good))
    assert ("too many unreadable" in found) == stops
    assert not stops or found["too many unreadable"].level == "error"
    assert found["unreadable"].items[0] == "wave/bad0.mp4: broken"
    assert "no segment" not in found
    assert len(found["unreadable"].items) == num_bad


def test_segments_of_one_broken_file_count_as_in_training_each_for_itself() -> None:
    bad = [make_clip("wave/long.mp4", segment=Segment(n, n + 1.0), error="long.mp4: broken") for n in range(3)]
    assert "too many unreadable" in find(*bad, *many("wave", 17))
    assert "too many unreadable" not in find(*bad[:1], *bad[:1], *bad[:1], *many("wave", 17))


def test_unreadable_clips_that_are_held_out_do_not_stop_a_training() -> None:
    bad = [make_clip(f"wave/h{n}.mp4", held_out=True, error="broken") for n in range(3)]
    found = find(*many("wave", 20), *many("wave/h", 7, held_out=True), *bad)
    assert len(found["unreadable"].items) == 3
    assert "too many unreadable" not in found


def test_held_out_clips_of_which_none_can_be_read_are_an_error() -> None:
    found = find(*many("wave", 5), make_clip("wave/h.mp4", held_out=True, error="x"))
    assert (found["none readable"].level, found["none readable"].found) == (
        "error",
        "no held-out clip can be read (1 tried)",
    )


def test_cut_and_damaged_videos_are_told_apart() -> None:
    found = find(
        *many("wave", 5),
        make_clip("cut.mp4", num_frames=30, is_truncated=True, announced_frames=60),
        make_clip("lost.mp4", decoded=(40, 0)),
        make_clip("smeared.mp4", decoded=(50, 3)),
        make_clip("fine.mp4", decoded=(50, 0)),
    )
    assert found["truncated"].items == ("cut.mp4: 30 of 60 frames",)
    assert found["damaged"].items == (
        "lost.mp4: 40 of 50 frames can be decoded",
        "smeared.mp4: 3 of 50 frames damaged",
    )


def test_a_cut_video_is_told_once_however_many_segments_it_has() -> None:
    cut = {"num_frames": 30, "is_truncated": True, "announced_frames": 60}
    segments = [make_clip("cut.mp4", segment=Segment(start, start + 0.5), **cut) for start in (0.0, 0.5)]
    found = find(*many("wave", 5), *segments)["truncated"]
    assert found.items == ("cut.mp4: 30 of 60 frames",)
    assert found.found.startswith("1 video cut off")


def test_short_clips_are_a_note_and_single_frames_a_warning() -> None:
    found = find(*many("wave", 5), make_clip("one.mp4", num_frames=1), make_clip("seven.mp4", num_frames=7))
    assert (found["single frame"].level, found["single frame"].items) == ("warning", ("one.mp4",))
    assert (found["short"].level, found["short"].items) == ("note", ("seven.mp4: 7 frames",))


def test_a_segment_past_the_end_is_told_and_half_a_second_forgiven() -> None:
    found = find(*many("wave", 5), *(make_clip("a.mp4", segment=Segment(1.0, end)) for end in (2.0, 2.5, 2.6)))
    assert found["past the end"].items == ("a.mp4 [1 to 2.6 s]: the video ends at 2.0 s",)


def test_a_copy_on_the_other_side_is_a_leak() -> None:
    found = find(
        *many("wave", 5),
        make_clip("a.mp4", content="same"),
        make_clip("h.mp4", content="same", held_out=True),
        make_clip("i.mp4", content="else", held_out=True),
    )
    assert (found["leak"].level, found["leak"].items) == ("warning", ("h.mp4 = a.mp4 in training",))
    assert "copies" not in found


def test_a_copy_in_the_same_class_counts_once_for_each_too_many() -> None:
    found = find(*many("wave", 5), *(make_clip(f"{name}.mp4", content="same") for name in "abc"))
    assert found["copies"].items == ("a.mp4 = b.mp4 = c.mp4",)
    assert found["copies"].found.startswith("2 repeated clips")
    assert not {"leak", "contradiction"} & found.keys()


def test_one_content_under_two_labels_is_a_contradiction() -> None:
    found = find(*many("wave", 5), *many("point", 5), make_clip("a", content="x"), make_clip("b", "point", content="x"))
    assert found["contradiction"].items == ("a (wave) = b (point)",)
    assert "copies" not in found


def test_unreadable_copies_are_no_copies() -> None:
    assert "copies" not in find(*many("wave", 20), *(make_clip(name, content="x", error="broken") for name in "ab"))


@pytest.mark.parametrize(
    ("train", "held_out", "kind"),
    [
        (Segment(0.0, 1.0), Segment(0.5, 1.5), "leak"),
        (Segment(0.0, 1.0), Segment(1.0, 2.0), "shared recording"),
        (Segment(), Segment(1.0, 2.0), "leak"),
        (Segment(1.5), Segment(end_seconds=1.5), "shared recording"),
    ],
)
def test_segments_of_one_file_leak_only_where_they_overlap(train: Segment, held_out: Segment, kind: str) -> None:
    clips = [make_clip("a.mp4", segment=train), make_clip("a.mp4", segment=held_out, held_out=True)]
    found = find(*many("wave", 5), *clips)
    assert {"leak", "shared recording"} & found.keys() == {kind}


class CountedSeconds(float):
    """A time that counts how often it is compared."""

    num_compared = 0

    def __lt__(self, other: float) -> bool:
        CountedSeconds.num_compared += 1
        return float.__lt__(self, other)

    def __gt__(self, other: float) -> bool:
        CountedSeconds.num_compared += 1
        return float.__gt__(self, other)


def test_leaks_among_many_segments_of_one_file_are_found_without_comparing_each_with_each() -> None:
    random = Random(0)
    starts = [random.randrange(100_000) for _ in range(1000)]
    clips = [
        make_clip(
            "day.mp4", held_out=n % 5 == 0, segment=Segment(CountedSeconds(start), start + random.randrange(1, 60))
        )
        for n, start in enumerate(starts)
    ]
    CountedSeconds.num_compared = 0
    leaks = find(*clips)["leak"].items
    assert CountedSeconds.num_compared < 100 * len(clips)
    trained = sorted((*clip.segment.bounds, clip.title) for clip in clips if not clip.held_out)
    overlapping = {
        clip.title: [name for start, stop, name in trained if start < end and begin < stop]
        for clip in clips
        if clip.held_out
        for begin, end in [clip.segment.bounds]
    }
    assert leaks == tuple(f"{title} = {names[0]} in training" for title, names in overlapping.items() if names)
    assert 0 < len(leaks) < len(overlapping)


def test_segments_of_one_file_in_training_are_no_copies() -> None:
    clips = [make_clip("a.mp4", "wave", segment=Segment(start, start + 1)) for start in (0.0, 0.5, 1.0)]
    assert not {"leak", "copies", "contradiction", "shared recording"} & find(*many("wave", 5), *clips).keys()


def test_classes_that_are_not_trained_or_not_measured_are_named() -> None:
    clips = [*many("a", 5), *many("b", 5), *many("c", 5, error="broken"), make_clip("a/h", "a", held_out=True)]
    found = find(*clips)
    assert found["not in training"].items == ("c",)
    assert found["not held out"].items == ("b", "c")
    assert "not held out" not in find(*many("a", 5), *many("b", 5))  # nothing is held out at all


def test_few_and_unequal_clips_are_noted() -> None:
    found = find(*many("a", 40), *many("b", 4), *many("c", 5))
    assert found["few clips"].items == ("b: 4",)
    assert found["imbalance"].found == "classes of very unequal size: a has 40 training clips, b 4"
    assert "imbalance" not in find(*many("a", 49), *many("c", 5))


def test_splits_inside_class_folders_are_found_where_the_clips_are_on_the_other_side() -> None:
    wrong = [
        make_clip("wave/train/1.mp4", held_out=True),
        make_clip("wave/Test/2.mp4"),
        make_clip("wave/valid/p1/3.mp4"),
    ]
    right = [make_clip("wave/train/4.mp4"), make_clip("wave/test/5.mp4", held_out=True)]
    others = [make_clip("train/test/6.mp4", "test"), make_clip("test/7.mp4", "test"), make_clip("wave/p1/test.mp4")]
    finding = find(*wrong, *right, *others)["inner split"]
    assert finding.items == ("wave/train/1.mp4", "wave/Test/2.mp4", "wave/valid/p1/3.mp4")
    assert finding.level == "warning"
    assert "inner split" not in find(*right, *others)


def test_names_that_differ_in_case_or_punctuation_are_one_class_or_a_trap() -> None:
    clips = [clip for label in ("Wave", "wave ", "pick_up", "pick up", "wavy") for clip in many(label, 5)]
    assert set(find(*clips)["alike names"].items) == {"Wave = wave ", "pick up = pick_up"}
    one, other = "caf\u00e9", "cafe\u0301"  # shown alike: a letter with an accent, and a letter and an accent
    assert set(find(*many(one, 5), *many(other, 5), *many("cafe", 5))["alike names"].items) == {f"{other} = {one}"}


@pytest.mark.parametrize(
    ("labels", "pairs", "alone"),
    [
        (["left", "right"], [("left", "right")], []),
        (["swipeleft", "swiperight", "up"], [("swipeleft", "swiperight")], []),
        (["Turn Left", "turn_right"], [("Turn Left", "turn_right")], []),
        (["hand-l", "hand-r"], [("hand-l", "hand-r")], []),
        (["cw", "ccw"], [("ccw", "cw")], []),
        (["circle clockwise", "circle counter-clockwise"], [("circle clockwise", "circle counter-clockwise")], []),
        (["left to right", "right to left"], [("left to right", "right to left")], []),
        (["left hand up", "right foot up"], [], ["left hand up", "right foot up"]),
        (["leftwards", "up"], [], ["leftwards"]),
        (["bright", "upright", "leftover", "copyright", "cleft", "l", "del", "carret"], [], []),
        (["0", "1"], [], []),
        (["turn cw", "turn clockwise"], [], ["turn clockwise", "turn cw"]),
    ],
)
def test_names_of_sides_are_guessed(labels: list[str], pairs: list[tuple[str, str]], alone: list[str]) -> None:
    assert sided_labels(labels) == (pairs, alone)


def test_thousands_of_class_names_are_compared_at_once() -> None:
    labels = [f"thing {index} going {side}" for index in range(2000) for side in ("left", "right")]
    assert len(sided_labels(labels)[0]) == 2000


def test_a_side_in_the_names_is_a_note_with_the_flag_to_leave_off() -> None:
    found = find(*many("left", 5), *many("right", 5))["flip"]
    assert (found.level, found.items) == ("note", ("left / right",))
    assert "--augmentation.flip" in found.advice
