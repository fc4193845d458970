"""UCF101: a text list for each part of each of three splits."""

import re
from collections.abc import Sequence
from pathlib import Path

from stadapter.errors import DataError
from stadapter.labels import LabelKind
from stadapter.layouts.reading import (
    PARTS,
    Annotations,
    ListedClip,
    Listing,
    OnProblem,
    Part,
    chosen_split,
    files_in,
    read_lines,
    tell_unknown,
    video_stem,
)

NAME = "UCF101"
_FILE = re.compile(r"(train|test)list(\d\d)\.txt")


def recognise_file(source: Path) -> Annotations | None:
    """One list, recognised by its name and by the class folder in every line."""
    match = _FILE.fullmatch(source.name)
    if match is None or not all("/" in line for _, line in read_lines(source)):
        return None
    return Annotations(NAME, {PARTS[match[1]]: (source,)}, is_folder=False)


def recognise_folder(folder: Path, split_number: int) -> Annotations | None:
    """The lists of one split."""
    found = [(file, match) for file in files_in(folder) if (match := _FILE.fullmatch(file.name))]
    files: dict[Part, tuple[Path, ...]] = {
        PARTS[match[1]]: (file,) for file, match in found if int(match[2]) == split_number
    }
    return chosen_split(NAME, folder, files, {int(match[2]) for _, match in found}, split_number)


def read(files: Sequence[Path], part: Part, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """UCF101: lines <class>/v_<class>_g01_c01.avi, followed in training lists by the class's number in classInd.txt.

    Source: https://www.crcv.ucf.edu/data/UCF101.php, "The Train/Test Splits for Action Recognition".
    """
    source = files[0]
    index = source.parent / "classInd.txt"
    labels = tuple(_classes(index)) if index.is_file() else None
    clips, unknown = [], []
    for number, line in read_lines(source):
        match = re.fullmatch(r"([^/]+)/(.+?)(?:\s+(\d+))?", line)
        where = f"{source}, line {number}"
        if match is None:
            on_problem(f"{where}: found {line!r}; expected <class>/<video>.avi, with a class number in training lists")
            continue
        label, name, told = match.groups()
        if labels is not None and label not in labels:
            unknown.append(label)
        elif labels is not None and told is not None and labels.index(label) + 1 != int(told):
            on_problem(f"{where}: {label} has number {told} here but {labels.index(label) + 1} in {index.name}")
        else:
            clips.append(ListedClip(video_stem(name), label, (label,)))
    tell_unknown(source, unknown, index.name, on_problem)
    return Listing(tuple(clips), labels)


def _classes(index: Path) -> list[str]:
    numbers = {}
    for _, line in read_lines(index):
        match = re.fullmatch(r"(\d+)\s+(\S.*)", line)
        if match is None:
            raise DataError(f"{index}: found {line!r}; expected <number> <class>")
        numbers[match[2]] = int(match[1])
    return sorted(numbers, key=lambda label: numbers[label])
