"""HMDB51: a text list for each class and each of three splits, holding both parts."""

import re
from collections.abc import Sequence
from pathlib import Path

from stadapter.errors import DataError
from stadapter.labels import LabelKind
from stadapter.layouts.reading import (
    Annotations,
    ListedClip,
    Listing,
    OnProblem,
    Part,
    chosen_split,
    files_in,
    read_lines,
    video_stem,
)

NAME = "HMDB51"
_FILE = re.compile(r"(.+)_test_split(\d)\.txt")


def recognise_file(source: Path) -> Annotations | None:
    """Never recognise a file, since each holds one class.

    Raises:
        DataError: it is a file of this layout.
    """
    if match := _FILE.fullmatch(source.name):
        raise DataError(
            f"{source} holds one class of split {match[2]} of HMDB51; give its folder, {source.parent}, "
            f"and --split-number {match[2]}"
        )
    return None


def recognise_folder(folder: Path, split_number: int) -> Annotations | None:
    """The lists of one split, one for every class."""
    found = [(file, match) for file in files_in(folder) if (match := _FILE.fullmatch(file.name))]
    chosen = tuple(file for file, match in found if int(match[2]) == split_number)
    files: dict[Part, tuple[Path, ...]] = {"train": chosen, "test": chosen} if chosen else {}
    return chosen_split(NAME, folder, files, {int(match[2]) for _, match in found}, split_number)


def read(files: Sequence[Path], part: Part, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """HMDB51: for every class a file of lines `<name>.avi <use>`, where use 1 is train, 2 test and 0 neither.

    Source: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database, the splits' split_readme.txt.
    """
    clips = []
    wanted = "1" if part == "train" else "2"
    labels = {file: _FILE.fullmatch(file.name)[1] for file in files}  # type: ignore[index]  # recognised by that name
    for file, label in labels.items():
        for number, line in read_lines(file):
            name, _, use = line.rpartition(" ")
            if not name.strip() or use not in ("0", "1", "2"):
                on_problem(f"{file}, line {number}: found {line!r}; expected <name>.avi and 0, 1 or 2")
            elif use == wanted:
                clips.append(ListedClip(video_stem(name.strip()), label, (label,)))
    return Listing(tuple(clips), tuple(sorted(labels.values())))
