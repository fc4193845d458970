"""Which clips are held out to validate on: a stable choice by their names."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

from stadapter.layouts import OnProblem
from stadapter.manifest.entries import Manifest
from stadapter.wording import counted, listed

VAL_FRACTION = 0.2
"""Share of each class that is held out where nothing else is said."""


def hold_out(
    manifest: Manifest, fraction: float, on_problem: OnProblem, *, up_to: Mapping[str, str] | None = None
) -> tuple[Manifest, Manifest]:
    """What is trained on, and about `fraction` of the videos of every class to validate on.

    All segments cut from one file stay on one side within a class: files are chosen, by a hash of their names. With the
    `held_out_up_to` of an earlier choice its clips stay on their sides, whatever was added or taken away since.
    """
    names: dict[str, list[str]] = {label: [] for label in manifest.labels}
    for entry in manifest.entries:
        if entry.label is not None:
            names[entry.label].append(entry.name)
    held: set[tuple[str, str]] = set()
    alone = []
    for label, of_class in names.items():
        ordered = sorted(set(of_class), key=_hash)
        if not ordered:  # a class of a public data set of which no video is there
            continue
        if len(ordered) < 2:
            alone.append(label)
        if up_to is not None:
            num_held = sum(_hash(name) <= up_to.get(label, "") for name in ordered)
        else:
            num_held = max(1, round(fraction * len(ordered)))
        held.update((label, name) for name in ordered[: min(num_held, len(ordered) - 1)])
    if alone and (manifest.heads is None or not held):  # of several heads each class alone is in other combinations too
        on_problem(
            f"{counted(len(alone), 'class')} with one video only: {listed(alone)}; expected two or more to hold "
            f"one out for validation: add videos, give validation data, or train on everything with --val-fraction 0"
        )
    train = tuple(entry for entry in manifest.entries if (entry.label, entry.name) not in held)
    val = tuple(entry for entry in manifest.entries if (entry.label, entry.name) in held)
    return replace(manifest, entries=train, num_held_out=len(val)), Manifest(val, manifest.labels, heads=manifest.heads)


def find_held_out_up_to(val: Manifest) -> dict[str, str]:
    """The largest hash, among those of their names, of the clips held out of each class: what `hold_out` takes."""
    largest: dict[str, str] = {}
    for entry in val.entries:
        if entry.label is not None:
            largest[entry.label] = max(largest.get(entry.label, ""), _hash(entry.name))
    return largest


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
