"""EPIC-Kitchens-100: for each part a CSV of segments of long videos, each with a verb and a noun."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stadapter.errors import DataError
from stadapter.labels import LabelKind, LabelSpace, joined
from stadapter.layouts.reading import (
    Annotations,
    ListedClip,
    Listing,
    OnProblem,
    Part,
    csv_rows,
    part_named,
    read_header,
    require_columns,
    tell_unknown,
)

NAME = "EPIC-Kitchens-100"

_FILES: dict[Part, str] = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp")
_CLASS_COLUMNS = ("verb_class", "noun_class")
_CLASS_FILE = "EPIC_100_{kind}_classes.csv"
_TIME = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")


def recognise_file(source: Path) -> Annotations | None:
    """One list, recognised by its columns."""
    columns = read_header(source)
    if "video_id" not in columns or not {"start_timestamp", "stop_timestamp", *_CLASS_COLUMNS} & set(columns):
        return None
    require_columns(source, columns, _COLUMNS, NAME)
    if set(_CLASS_COLUMNS) & set(columns):
        require_columns(source, columns, _CLASS_COLUMNS, NAME)
    files: dict[Part, tuple[Path, ...]] = {part_named(source) or "train": (source,)}
    return Annotations(NAME, files, is_folder=False, remark=_remark(source.parent))


def recognise_folder(folder: Path, split_number: int) -> Annotations | None:
    """The lists under their published names."""
    files: dict[Part, tuple[Path, ...]] = {
        part: (folder / name,) for part, name in _FILES.items() if (folder / name).is_file()
    }
    for (file,) in files.values():
        require_columns(file, read_header(file), (*_COLUMNS, *_CLASS_COLUMNS), NAME)
    return Annotations(NAME, files, is_folder=True, remark=_remark(folder)) if files else None


def read(files: Sequence[Path], part: Part, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """EPIC-Kitchens-100: segments of long videos with numbers for the verb and noun classes; test lists have no class.

    The names of the classes are in EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv, columns id and key; without
    these files, classes are named by their numbers. The columns verb and noun hold the narrator's words, not classes.
    An action is a pair of both; the actions are those in the training and validation lists. With verb+noun every clip
    has one class for each of two heads. Folders of frames have 60 frames per second, or 50 for the videos of the
    extension (three digits in the name).
    Source: https://github.com/epic-kitchens/epic-kitchens-100-annotations, README.
    """
    source = files[0]
    kinds = ("verb", "noun") if label_kind in ("action", "verb+noun") else (label_kind,)
    has_heads = label_kind == "verb+noun"
    names = [_class_names(source.parent / _CLASS_FILE.format(kind=kind), on_problem) for kind in kinds]
    clips: list[ListedClip] = []
    every = _numbers(source, kinds, names)
    unknown: list[str] = []
    for where, row in csv_rows(source, on_problem):
        try:
            is_labelled = "verb_class" in row
            numbers = tuple(_class_number(row[f"{kind}_class"], where) for kind in kinds) if is_labelled else ()
            start, end = _segment(row, where)
        except DataError as error:
            on_problem(str(error))
            continue
        if is_labelled and not _are_known(numbers, names):
            unknown.append(" ".join(map(str, numbers)))
            continue
        named: tuple[str, ...] = ()
        if is_labelled:
            every.add(numbers)
            named = _named(names, numbers)
        video = row["video_id"]
        rate = 50.0 if re.fullmatch(r".*_\d{3}", video) else 60.0
        by_head = tuple(zip(kinds, named, strict=True)) if has_heads and named else ()
        clips.append(ListedClip(video, joined(named) or None, ("videos", "rgb_frames"), start, end, rate, by_head))
    tell_unknown(source, unknown, "the class files", on_problem)
    labels = tuple(joined(_named(names, numbers)) for numbers in sorted(every))
    return Listing(tuple(clips), labels, _heads(kinds, names, every) if has_heads else None)


def _remark(folder: Path) -> str:
    lacking = [file for kind in ("verb", "noun") if not (folder / (file := _CLASS_FILE.format(kind=kind))).is_file()]
    return f"classes are named by their numbers, because there is no {' and no '.join(lacking)}" if lacking else ""


def _class_number(cell: str, where: str) -> int:
    if not re.fullmatch(r"\d+", cell):
        raise DataError(f"{where}: found {cell!r} as a class; expected its number")
    return int(cell)


def _segment(row: Mapping[str, str], where: str) -> tuple[float, float]:
    start, end = (_seconds(row[name], where) for name in ("start_timestamp", "stop_timestamp"))
    if end <= start:
        raise DataError(f"{where}: the segment ends at {end} s but starts at {start} s; expected end > start")
    return start, end


def _seconds(cell: str, where: str) -> float:
    match = _TIME.fullmatch(cell)
    if match is None:
        raise DataError(f"{where}: found {cell!r} as a time; expected hours:minutes:seconds")
    return round(3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]), 6)


def _class_names(source: Path, on_problem: OnProblem) -> dict[int, str]:
    """The names of the classes by number; empty if there is no such file."""
    if not source.is_file():
        return {}
    require_columns(source, read_header(source), ("id", "key"), NAME)
    return {_class_number(row["id"], where): row["key"] for where, row in csv_rows(source, on_problem)}


def _are_known(numbers: Sequence[int], names: Sequence[Mapping[int, str]]) -> bool:
    """Whether each number is in its class file, if there is one."""
    return all(not of or number in of for of, number in zip(names, numbers, strict=True))


def _named(names: Sequence[Mapping[int, str]], numbers: Sequence[int]) -> tuple[str, ...]:
    return tuple(of.get(number, str(number)) for of, number in zip(names, numbers, strict=True))


def _heads(kinds: tuple[str, ...], names: Sequence[Mapping[int, str]], every: Iterable[tuple[int, ...]]) -> LabelSpace:
    """The classes of each head: those of its class file, or those that occur."""
    numbers = [sorted({*of, *(classes[place] for classes in every)}) for place, of in enumerate(names)]
    classes = [tuple(of.get(number, str(number)) for number in each) for of, each in zip(names, numbers, strict=True)]
    return LabelSpace(tuple(classes), kinds)


def _numbers(source: Path, kinds: Sequence[str], names: Sequence[Mapping[int, str]]) -> set[tuple[int, ...]]:
    """All classes of the data set: those of the class file, or those that occur in its training and validation list."""
    if len(kinds) == 1 and names[0]:
        return {(number,) for number in names[0]}
    columns = [f"{kind}_class" for kind in kinds]
    every = set()
    for file in (source.parent / name for name in _FILES.values()):
        if not file.is_file() or not set(columns) <= set(read_header(file)):
            continue
        for _, row in csv_rows(file, lambda problem: None):
            if all(re.fullmatch(r"\d+", row[column]) for column in columns):
                every.add(tuple(int(row[column]) for column in columns))
    return {numbers for numbers in every if _are_known(numbers, names)}
