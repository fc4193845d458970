"""What may be wrong with a data set, judged from its examined clips: every rule says what it found and what to do."""

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations
from pathlib import PurePosixPath
from typing import Literal, TypeVar

from stadapter.check.examine import Clip, Fault
from stadapter.layouts import PARTS, Part
from stadapter.wording import counted, percent

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
Item = TypeVar("Item")

FEW_CLIPS = 5
"""A class with fewer readable training clips is reported."""
IMBALANCE = 10
"""How many times as many training clips as the smallest class the largest may have before it is reported."""
_SEGMENT_SLACK_SECONDS = 0.5
_SIDES = {
    "left": ("side", 0),
    "right": ("side", 1),
    "clockwise": ("turn", 0),
    "cw": ("turn", 0),
    "anticlockwise": ("turn", 1),
    "counterclockwise": ("turn", 1),
    "ccw": ("turn", 1),
    "acw": ("turn", 1),
}
"""Words that a mirror turns into another: what kind they are, and which of the two."""
_SIDE = re.compile("|".join([*sorted(_SIDES, key=len, reverse=True), "^[lr]$"]))
_SIDE_WORD = re.compile(r"(left|right)(?:wards?|ward|hand|handed|most)?")


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    kind: str
    """A word or two that never change, for programs."""
    level: Level
    """error: training cannot start, or would stop; warning: its result would suffer; note: good to know."""
    found: str
    """What was found, in a sentence."""
    advice: str
    """What to do about it."""
    items: tuple[str, ...] = ()
    """Which clips or classes, all of them."""


def find_all(clips: Sequence[Clip], *, num_frames: int, max_bad_fraction: float) -> Iterator[Finding]:
    """Everything the rules find, most harmful first."""
    yield from find_too_many_unreadable(clips, max_bad_fraction)
    yield from find_copies(clips)
    yield from find_unreadable(clips)
    yield from find_incomplete(clips)
    yield from find_short(clips, num_frames)
    yield from find_shared_recordings(clips)
    yield from find_inner_splits(clips)
    yield from find_thin_classes(clips)
    yield from find_alike_names(clips)
    yield from find_sides(clips)


def find_too_many_unreadable(clips: Sequence[Clip], max_bad_fraction: float) -> Iterator[Finding]:
    """What stops a training run, counted in the same way."""
    for held_out, title in ((False, "training"), (True, "held-out")):
        part = [clip for clip in clips if clip.held_out == held_out]
        bad = [clip for clip in part if clip.error is not None]
        different = {clip.title for clip in bad}  # one listed twice counts once
        if part and len(bad) == len(part):
            found = f"no {title} clip can be read ({len(part)} tried)"
            yield Finding("none readable", "error", found, "provide videos that FFmpeg can decode")
        elif not held_out and len(different) > 1 and len(different) > max_bad_fraction * len(part):
            yield Finding(
                "too many unreadable",
                "error",
                f"{len(different)} of {len(part)} training clips cannot be read, more than "
                f"{percent(max_bad_fraction, 0)}: a training run would stop",
                "repair or remove them, or raise --max-bad-fraction here and in training",
            )


_FAULTS: dict[Fault, tuple[str, str]] = {
    "missing": ("gone since the data was listed", "is the disk still mounted?"),
    "forbidden": ("without read permission", "grant it, for example with chmod u+r"),
    "empty": ("without content (0 bytes)", "copy each again, or remove it"),
    "cut": ("cut off before the index", "recording or copying was interrupted: copy each again, or remove it"),
    "unreadable": ("unreadable", "training skips these: convert, replace or remove each"),
}


def find_unreadable(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Videos that cannot be opened, by the kind of fault, and segments that cannot be cut from readable ones."""
    for fault, (what, advice) in _FAULTS.items():
        bad = [clip for clip in clips if clip.video.fault == fault]
        if bad:
            which = _with_errors(bad) if fault == "unreadable" else tuple(clip.title for clip in bad)
            yield Finding(fault, "warning", f"{counted(len(bad), 'clip')} {what}", advice, which)
    lost = [clip for clip in clips if clip.video.fault is None and clip.error is not None]
    if lost:
        found = f"{counted(len(lost), 'segment')} without any frame"
        yield Finding(
            "no segment", "warning", found, "check their start and end, in seconds from the start", _with_errors(lost)
        )


def find_incomplete(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Videos that hold fewer frames than they announce or decode to fewer, and segments that reach past the end."""
    cut, damaged, beyond = [], [], []
    for clip in _first_of_each_video(clips):
        info, video = clip.video.info, clip.video
        if info is None:
            continue
        if info.is_truncated:
            announced = f" of {info.announced_frames}" if info.announced_frames else ""
            cut.append(f"{clip.name}: {info.num_frames}{announced} frames")
        elif video.num_decoded is not None and video.num_decoded < info.num_frames:
            damaged.append(f"{clip.name}: {video.num_decoded} of {info.num_frames} frames can be decoded")
        elif video.num_damaged:
            damaged.append(f"{clip.name}: {video.num_damaged} of {counted(info.num_frames, 'frame')} damaged")
    for clip in clips:
        info = clip.video.info
        end = clip.segment.end_seconds
        if info is None or clip.error is not None or end is None or info.duration_seconds is None:
            continue
        if end > info.duration_seconds + _SEGMENT_SLACK_SECONDS:
            beyond.append(f"{clip.title}: the video ends at {info.duration_seconds:.1f} s")
    if cut:
        found = f"{counted(len(cut), 'video')} cut off: the file holds less than it announces"
        yield Finding(
            "truncated", "warning", found, "training uses what is there; it is better to copy each again", tuple(cut)
        )
    if damaged:
        found = f"{counted(len(damaged), 'video')} damaged inside, found by decoding everything"
        yield Finding("damaged", "warning", found, "copy each again, or remove it", tuple(damaged))
    if beyond:
        found = f"{counted(len(beyond), 'segment')} reaching past the end of the video"
        advice = "the clip ends where the video does: check the seconds, and that it is the right video"
        yield Finding("past the end", "warning", found, advice, tuple(beyond))


def find_short(clips: Sequence[Clip], num_frames: int) -> Iterator[Finding]:
    """Clips of a single frame, and clips of fewer frames than the network sees."""
    single = [clip.title for clip in clips if clip.num_frames == 1]
    short = [f"{clip.title}: {clip.num_frames} frames" for clip in clips if 1 < clip.num_frames < num_frames]
    if single:
        found = f"{counted(len(single), 'clip')} of a single frame: there is no motion to learn from"
        yield Finding("single frame", "warning", found, "remove each, or replace it with a longer clip", tuple(single))
    if short:
        found = f"{counted(len(short), 'clip')} shorter than the {num_frames} frames of a training clip"
        advice = "nothing to do: frames are repeated; or train with a smaller --num-frames"
        yield Finding("short", "note", found, advice, tuple(short))


def find_copies(clips: Sequence[Clip]) -> Iterator[Finding]:
    """The same content, or the same stretch of it, in training and held out; under two labels; twice."""
    leaks: list[str] = []
    contradictions: list[str] = []
    copies: list[str] = []
    num_surplus = 0
    for alike in _by_content(clips):
        leaks += _leaks(alike)
        for same in _groups(alike, lambda clip: clip.segment.bounds):
            labels = {clip.label for clip in same}
            if len(labels) > 1:
                contradictions.append(" = ".join(f"{clip.title} ({clip.label})" for clip in same))
            for side in _groups(same, lambda clip: (str(clip.label), clip.held_out)):
                copies.append(" = ".join(clip.title for clip in side))
                num_surplus += len(side) - 1
    if leaks:
        found = (
            f"leak: {counted(len(leaks), 'held-out clip')} also in the training data: the accuracy measured there "
            "will be too high"
        )
        advice = "keep one copy of each, or keep all copies on one side: train/ and val/ folders, or --val-data"
        yield Finding("leak", "warning", found, advice, tuple(leaks))
    if contradictions:
        found = f"the same content under two labels ({counted(len(contradictions), 'time')}): one of them must be wrong"
        yield Finding("contradiction", "warning", found, "keep the correct one of each", tuple(contradictions))
    if copies:
        found = f"{counted(num_surplus, 'repeated clip')}: the same content again in the same class"
        yield Finding("copies", "note", found, "keep one of each", tuple(copies))


def find_shared_recordings(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Videos with some segments trained on and others held out."""
    shared = [
        alike[0].name
        for alike in _by_content(clips)
        if len({clip.held_out for clip in alike}) == 2 and not _leaks(alike)
    ]
    if shared:
        found = f"{counted(len(shared), 'recording')} with segments both in training and held out"
        advice = "fine if backgrounds do not matter; else split by recording: a column group or split, or --val-data"
        yield Finding("shared recording", "note", found, advice, tuple(shared))


def find_inner_splits(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Clips in a folder named for a split, inside that of their class, that are on another side than it says."""
    misplaced = tuple(
        clip.name for clip in clips if (part := _inner_split(clip)) and clip.held_out == (part == "train")
    )
    if misplaced:
        found = f"{counted(len(misplaced), 'clip')} in a split's folder inside a class folder, but on the other side"
        advice = "put splits outside: train/wave, not wave/train; or list the clips in a CSV with a column split"
        yield Finding("inner split", "warning", found, advice, misplaced)


def _inner_split(clip: Clip) -> Part | None:
    """The part of the data for which a folder between a clip and the outermost folder is named, if one is."""
    folders = PurePosixPath(clip.name).parts[1:-1]
    return next((PARTS[name.lower()] for name in folders if name != clip.label and name.lower() in PARTS), None)


def find_thin_classes(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Classes that are never trained on, never measured, or have far fewer clips than others."""
    labels = sorted({label for clip in clips for label in clip.classes})
    train = dict.fromkeys(labels, 0)
    held_out = dict.fromkeys(labels, 0)
    for clip in clips:
        for label in clip.classes if clip.error is None else ():
            (held_out if clip.held_out else train)[label] += 1
    untrained = tuple(label for label in labels if not train[label])
    unmeasured = tuple(label for label in labels if not held_out[label])
    few = tuple(f"{label}: {train[label]}" for label in labels if 0 < train[label] < FEW_CLIPS)
    if untrained and any(train.values()):
        found = f"{counted(len(untrained), 'class')} without a readable training clip: never learned"
        yield Finding("not in training", "warning", found, "add clips, or remove the class", untrained)
    if unmeasured and any(held_out.values()):
        found = f"{counted(len(unmeasured), 'class')} without a readable held-out clip: never measured"
        yield Finding("not held out", "warning", found, "move some clips of each to the held-out side", unmeasured)
    if few:
        found = f"{counted(len(few), 'class')} with fewer than {FEW_CLIPS} training clips"
        yield Finding("few clips", "note", found, "add clips: so few are seldom enough", few)
    counts = [count for count in train.values() if count]
    if counts and max(counts) >= IMBALANCE * min(counts):
        largest, smallest = max(train, key=train.__getitem__), min(labels, key=lambda label: train[label] or math.inf)
        found = f"classes of very unequal size: {largest} has {max(counts)} training clips, {smallest} {min(counts)}"
        advice = "add clips of the rare classes, and judge by the mean class accuracy"
        yield Finding("imbalance", "note", found, advice)


def find_alike_names(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Classes whose names differ only in case, spaces, punctuation or how their accents are stored."""
    labels = sorted({label for clip in clips for label in clip.classes})
    alike = tuple(" = ".join(group) for group in _groups(labels, lambda label: " ".join(_words(label)) or label))
    if alike:
        found = "class names that differ only in case, spaces, punctuation or how their accents are stored"
        yield Finding("alike names", "warning", found, "give them one name, if they are one class", alike)


def find_sides(clips: Sequence[Clip]) -> Iterator[Finding]:
    """A guess, from the names of the classes, that a mirror image is another class."""
    pairs, alone = sided_labels({label for clip in clips for label in clip.classes})
    names = tuple(f"{left} / {right}" for left, right in pairs) + tuple(alone)
    if names:
        found = "flipping looks unsafe: class names mention a side, and a mirror image would be another class"
        yield Finding("flip", "note", found, "leave --augmentation.flip off, as it is by default", names)


def sided_labels(labels: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of class names that a mirror turns into each other, and other names with a word that names a side.

    >>> sided_labels(["turn left", "turn right", "TurnClockwise", "turn_anti-clockwise", "right hand up", "bright"])
    ([('TurnClockwise', 'turn_anti-clockwise'), ('turn left', 'turn right')], ['right hand up'])
    """
    ordered = sorted(set(labels))
    pairs = [
        (one, other)
        for alike in _groups(ordered, lambda label: " ".join(_SIDE.sub("*", word) for word in _words(label)))
        for one, other in combinations(alike, 2)
        if _are_mirrored(one, other)
    ]
    in_pairs = {label for pair in pairs for label in pair}
    return pairs, [label for label in ordered if label not in in_pairs and _names_a_side(label)]


def _are_mirrored(one: str, other: str) -> bool:
    first, second = _words(one), _words(other)
    if len(first) != len(second):
        return False
    differing = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    return bool(differing) and all(_is_opposite(a, b) for a, b in differing)


def _is_opposite(one: str, other: str) -> bool:
    if {one, other} == {"l", "r"}:
        return True
    for a, b in ((one, other), (other, one)):
        if "left" in a and a.replace("left", "right") == b:  # swipeleft, leftwards
            return True
    first, second = _SIDES.get(one), _SIDES.get(other)
    return first is not None and second is not None and first[0] == second[0] and first[1] != second[1]


def _names_a_side(label: str) -> bool:
    return any(word in _SIDES or _SIDE_WORD.fullmatch(word) for word in _words(label))


def _words(label: str) -> list[str]:
    """Lower-case words of a class name: TurnLeft, turn_left and "turn left" are the same two.

    Accents are first joined to their letters, which some systems store apart.
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", label))
    joined = re.sub(r"(?i)\b(anti|counter)[\W_]*(?=clockwise)", r"\1", re.sub(r"[\W_]+", " ", spaced))
    return joined.lower().split()


def _with_errors(clips: Iterable[Clip]) -> tuple[str, ...]:
    reasons = ((clip, (clip.error or "").removeprefix(f"{clip.video.path.name}: ")) for clip in clips)
    return tuple(f"{clip.title}: {reason}" for clip, reason in reasons)


def _first_of_each_video(clips: Sequence[Clip]) -> list[Clip]:
    return list({clip.video.path: clip for clip in reversed(clips)}.values())[::-1]


def _groups(items: Iterable[Item], key: Callable[[Item], object]) -> list[list[Item]]:
    """Groups of items with the same key, if there are several."""
    found: dict[object, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return [group for group in found.values() if len(group) > 1]


def _by_content(clips: Sequence[Clip]) -> list[list[Clip]]:
    """Readable clips of the same content, if there are several."""
    readable = [clip for clip in clips if clip.error is None]
    return _groups(readable, lambda clip: clip.video.content or clip.video.path)


def _leaks(alike: Sequence[Clip]) -> list[str]:
    """The held-out ones among clips of the same content that overlap one trained on."""
    trained = sorted((*clip.segment.bounds, clip.title) for clip in alike if not clip.held_out)
    latest_stops = list(accumulate((stop for _, stop, _ in trained), max))
    leaks = []
    for clip in alike:
        start, end = clip.segment.bounds
        # The first that stops after the start: if it begins too late, so do all others, as they are sorted.
        place = bisect_right(latest_stops, start)
        if clip.held_out and place < len(trained) and trained[place][0] < end:
            leaks.append(f"{clip.title} = {trained[place][2]} in training")
    return leaks
