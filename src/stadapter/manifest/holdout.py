"""Which clips are held out to validate on: a stable choice by the names of the clips or of their groups."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stadapter.layouts import OnProblem
from stadapter.manifest.entries import Entry, Manifest
from stadapter.wording import counted, listed

VAL_FRACTION = 0.2
"""Share of each class that is held out by default."""
_GROUPS = ""
"""The key for all groups, where a class would otherwise be the key; no class has an empty name."""


def hold_out(
    manifest: Manifest, fraction: float, on_problem: OnProblem, *, up_to: Mapping[str, str] | None = None
) -> tuple[Manifest, Manifest]:
    """Split into what is trained on, and about `fraction` of the videos of every class to validate on.

    Within a class, all segments cut from one file stay on one side: files are chosen, by a hash of their names. If
    clips have groups, groups are chosen, and the share is one of all clips. With the `held_out_up_to` of an earlier
    choice, its clips stay on their sides, whatever has been added or removed since.
    """
    has_groups = any(entry.group is not None for entry in manifest.entries)
    if has_groups if up_to is None else _GROUPS in up_to:
        return _hold_out_groups(manifest, fraction, on_problem, up_to)
    return _hold_out_names(manifest, fraction, on_problem, up_to)


def _hold_out_names(
    manifest: Manifest, fraction: float, on_problem: OnProblem, up_to: Mapping[str, str] | None
) -> tuple[Manifest, Manifest]:
    names: dict[str, list[str]] = {label: [] for label in manifest.labels}
    for entry in manifest.entries:
        if entry.label is not None:
            names[entry.label].append(entry.name)
    held: set[tuple[str, str]] = set()
    alone = []
    for label, of_class in names.items():
        ordered = sorted(set(of_class), key=_hash)
        if not ordered:  # a class of a public data set without any videos here
            continue
        if len(ordered) < 2:
            alone.append(label)
        if up_to is not None:
            num_held = sum(_hash(name) <= up_to.get(label, "") for name in ordered)
        else:
            num_held = max(1, round(fraction * len(ordered)))
        held.update((label, name) for name in ordered[: min(num_held, len(ordered) - 1)])
    if alone and (manifest.heads is None or not held):  # with several heads each class is in other combinations too
        on_problem(
            f"{counted(len(alone), 'class')} with only one video: {listed(alone)}; expected two or more to hold "
            f"one out for validation: add videos, give validation data, or train on everything with --val-fraction 0"
        )
    return _parted(manifest, [(entry.label, entry.name) in held for entry in manifest.entries])


def _hold_out_groups(
    manifest: Manifest, fraction: float, on_problem: OnProblem, up_to: Mapping[str, str] | None
) -> tuple[Manifest, Manifest]:
    """Hold out whole groups; groups that were added after the choice in `up_to` are trained on."""
    if up_to is not None:
        held = set(up_to[_GROUPS].split())
        if held and not any(entry.group is not None for entry in manifest.entries):
            on_problem(
                "no clip has a group, but clips were held out by group before and would now change sides; expected the "
                "list with its column group"
            )
    else:
        held = _choose_groups(manifest, fraction)
        if not held:
            on_problem(_cannot_hold_out(manifest))
    train, val = _parted(manifest, [_group_hash(entry) in held for entry in manifest.entries])
    return replace(train, remarks=(*train.remarks, *_group_remarks(train, val))), val


def _choose_groups(manifest: Manifest, fraction: float) -> set[str]:
    """The hashes of the groups to hold out: each is added, in hash order, if that brings the share of all clips closer.

    A group that would leave a class without a clip to train on is skipped. If each group by itself is more than twice
    the share, the smallest one is chosen.
    """
    clips: dict[str, list[Entry]] = {}
    for entry in manifest.entries:
        clips.setdefault(_group_hash(entry), []).append(entry)
    classes = {group: Counter(label for entry in of for label in entry.classes) for group, of in clips.items()}
    left = Counter(label for entry in manifest.entries for label in entry.classes)
    wanted = fraction * len(manifest.entries)
    possible = [group for group in sorted(clips) if classes[group].items().isdisjoint(left.items())]
    held: set[str] = set()
    num_held = 0
    for group in possible:
        comes_nearer = abs(num_held + len(clips[group]) - wanted) < abs(num_held - wanted)
        if comes_nearer and all(left[label] > count for label, count in classes[group].items()):
            held.add(group)
            num_held += len(clips[group])
            left.subtract(classes[group])  # leaves some of each; -= would go through all classes for every group
    return held or set(sorted(possible, key=lambda group: len(clips[group]))[:1])


def _cannot_hold_out(manifest: Manifest) -> str:
    num_groups = len({_group_hash(entry) for entry in manifest.entries})
    found = "only 1 group" if num_groups == 1 else f"each of the {num_groups} groups has all clips of some class"
    return (
        f"clips cannot be held out by group: {found}; expected every class in at least two groups: add other clips, "
        "give validation data, remove the column group, or train on everything with --val-fraction 0"
    )


def _group_remarks(train: Manifest, val: Manifest) -> list[str]:
    if not val.entries:
        return []
    entries = (*train.entries, *val.entries)
    groups = sorted({entry.group or entry.name for entry in val.entries})
    remarks = [f"held out by group, {len(val.entries)} of {counted(len(entries), 'clip')}: {listed(groups)}"]
    if alone := sum(not entry.group for entry in entries):
        remarks.append(f"{counted(alone, 'clip')} without a group: each video counts as a group")
    trained = train.counts()
    if unmeasured := [label for label, count in val.counts().items() if not count and trained[label]]:
        remarks.append(
            f"{counted(len(unmeasured), 'class')} without a clip in the groups held out: {listed(unmeasured)}"
        )
    return remarks


def _parted(manifest: Manifest, held: Sequence[bool]) -> tuple[Manifest, Manifest]:
    """The clips that are not held out, and those that are."""
    train = tuple(entry for entry, is_held in zip(manifest.entries, held, strict=True) if not is_held)
    val = tuple(entry for entry, is_held in zip(manifest.entries, held, strict=True) if is_held)
    return replace(manifest, entries=train, num_held_out=len(val)), Manifest(val, manifest.labels, heads=manifest.heads)


def find_held_out_up_to(val: Manifest) -> dict[str, str]:
    """What `hold_out` needs to choose the same again: for each class the largest hash of a held-out clip's name.

    For clips in groups it is the hashes of all groups held out, under one key: a choice skips some groups, so the
    largest hash would not determine it.
    """
    if any(entry.group is not None for entry in val.entries):
        return {_GROUPS: " ".join(sorted({_group_hash(entry) for entry in val.entries}))}
    largest: dict[str, str] = {}
    for entry in val.entries:
        if entry.label is not None:
            largest[entry.label] = max(largest.get(entry.label, ""), _hash(entry.name))
    return largest


def _group_hash(entry: Entry) -> str:
    """The hash for a clip's group; a video without one is a group of its own."""
    return _hash(f"group {entry.group}" if entry.group else f"name {entry.name}")


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
