"""Kinetics-400, -600 and -700: one CSV per part, and videos cut to the ten seconds of an action."""

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
    csv_rows,
    files_in,
    part_named,
    read_header,
    require_columns,
)

NAME = "Kinetics"
_COLUMNS = ("youtube_id", "time_start", "time_end")


def recognise_file(source: Path) -> Annotations | None:
    """One list, recognised by its column youtube_id."""
    columns = read_header(source)
    if "youtube_id" not in columns:
        return None
    require_columns(source, columns, _COLUMNS, NAME)
    return Annotations(NAME, {part_named(source) or "train": (source,)}, is_folder=False)


def recognise_folder(folder: Path, split_number: int) -> Annotations | None:
    """Lists called train.csv, kinetics_val.csv and the like."""
    files: dict[Part, tuple[Path, ...]] = {}
    for file in files_in(folder):
        if (part := part_named(file)) and "youtube_id" in (columns := read_header(file)):
            require_columns(file, columns, _COLUMNS, NAME)
            if part in files:
                raise DataError(
                    f"{folder}: {files[part][0].name} and {file.name} both list {part} clips; give one of the files"
                )
            files[part] = (file,)
    return Annotations(NAME, files, is_folder=True) if files else None


def read(files: Sequence[Path], part: Part, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """Kinetics-400, -600 and -700: label,youtube_id,time_start,time_end,split[,is_cc]; test lists may have no label.

    The videos are already cut, and named by their id and their times in whole seconds with six digits.
    Source: https://github.com/cvdfoundation/kinetics-dataset and the downloader of ActivityNet's Crawler/Kinetics.
    """
    source = files[0]
    clips = []
    for where, row in csv_rows(source, on_problem):
        try:
            start, end = (_whole_seconds(row[name], where) for name in ("time_start", "time_end"))
            if not row["youtube_id"] or row.get("label") == "":
                raise DataError(f"{where}: found no {'label' if row['youtube_id'] else 'youtube_id'}; expected one")
        except DataError as error:
            on_problem(str(error))
            continue
        label, split = row.get("label"), row.get("split", "")
        folders = (label, split) if label is not None else (split,)
        clips.append(ListedClip(f"{row['youtube_id']}_{start:06d}_{end:06d}", label, folders))
    return Listing(tuple(clips), None)


def _whole_seconds(cell: str, where: str) -> int:
    if not re.fullmatch(r"\d+(\.0*)?", cell):
        raise DataError(f"{where}: found {cell!r} as a time; expected whole seconds, as in the videos' names")
    return int(float(cell))
