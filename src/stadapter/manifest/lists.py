"""Data sets that are one list: a CSV, or the format of the released code."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stadapter.errors import DataError
from stadapter.labels import LabelSpace, joined
from stadapter.layouts import OnProblem, csv_cells
from stadapter.manifest.checks import check_one_label
from stadapter.manifest.entries import NOTHING, Entry, Manifest, sort_labels
from stadapter.manifest.paths import absolute, looks_like_video
from stadapter.wording import counted

_COLUMNS = {
    "path": "path",
    "label": "label",
    "start": "start",
    "start_seconds": "start",
    "end": "end",
    "end_seconds": "end",
}
_HEAD_COLUMN = "label:"
"""What stands before the name of a head in the header of a CSV."""
_RELEASED_LINE = re.compile(r"(?P<path>\S.*?)\s+(?P<label>\d+)\s*")


def read_list(source: Path, root: Path, on_problem: OnProblem) -> Manifest:
    """The clips of a CSV or of a released list, whose paths start from `root`; those that are not there are missing."""
    if looks_like_video(source):
        on_problem(f"{source} is one video; expected a folder with one sub-folder of videos per class, or a list")
        return NOTHING
    text = _read_text(source, root, on_problem)
    if text is None:
        return NOTHING
    released = _is_released(source, text)
    try:
        rows = list(_released_rows(text, root) if released else _csv_rows(source, text, root, on_problem))
    except DataError as error:  # its header is not understood, and so nothing below it
        on_problem(str(error))
        return NOTHING
    if not rows:
        on_problem(
            f"{source} holds no clips; expected a line path,label for each clip, below the header if there is one"
        )
        return NOTHING
    check_one_label(source, rows, on_problem)
    present = [os.path.exists(entry.path) for entry in rows]
    if not any(present):
        form = "<path> <class number>" if released else "path,label"
        on_problem(
            f"{source}: read as {form}, none of its {counted(len(rows), 'file')} exists, first {rows[0].path}; "
            f"expected paths relative to {root}: name the folder that they start from with --video-root"
        )
    entries = tuple(entry for entry, exists in zip(rows, present, strict=True) if exists)
    missing = tuple(entry.name for entry, exists in zip(rows, present, strict=True) if not exists)
    labels = sort_labels([entry.label for entry in entries if entry.label is not None])
    return Manifest(entries, labels, missing=missing, heads=_heads_of(entries), is_numbered=released)


def _heads_of(entries: Sequence[Entry]) -> LabelSpace | None:
    """The heads of a list and the classes that occur; None where a clip has one class."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for head, label in entry.by_head:
            found.setdefault(head, []).append(label)
    return LabelSpace.of({head: sort_labels(labels) for head, labels in found.items()}) if found else None


def _read_text(source: Path, root: Path, on_problem: OnProblem) -> str | None:
    """What a list holds; None, with the reason noted, where it cannot be read or is empty."""
    try:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; expected the folder that the paths in {source.name} start from")
        text = source.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise DataError(f"{source} is empty; expected lines of path,label or of <path> <class number>")
        return text
    except (OSError, UnicodeDecodeError) as error:
        on_problem(f"{source} cannot be read as a UTF-8 text list: {error}")
    except DataError as error:
        on_problem(str(error))
    return None


def _is_released(source: Path, text: str) -> bool:
    """Whether every line is `<path> <class number>`; commas make a file called .csv a CSV."""
    lines = [line for line in text.splitlines() if line.strip()]
    if source.suffix.lower() == ".csv" and "," in lines[0]:
        return False
    matches = [_RELEASED_LINE.fullmatch(line) for line in lines]
    return all(match is not None and not match["path"].endswith(",") for match in matches)


def _released_rows(text: str, root: Path) -> Iterator[Entry]:
    for line in text.splitlines():
        if match := _RELEASED_LINE.fullmatch(line):
            yield _listed_entry(match["path"], root, str(int(match["label"])))


def _csv_rows(source: Path, text: str, root: Path, on_problem: OnProblem) -> Iterator[Entry]:
    columns: list[str] | None = None
    for line, cells in csv_cells(source, text, on_problem):
        if columns is None:
            columns, is_header = _columns(source, cells, root)
            if is_header:
                continue
        try:
            if len(cells) != len(columns):
                raise DataError(
                    f"{source}, line {line}: found {counted(len(cells), 'field')}, expected {len(columns)} "
                    f"({','.join(columns)})"
                    + ("; put a path that holds a comma in double quotes" if len(cells) > len(columns) else "")
                )
            yield _csv_entry(dict(zip(columns, cells, strict=True)), root, f"{source}, line {line}")
        except DataError as error:
            on_problem(str(error))


def _columns(source: Path, first: Sequence[str], root: Path) -> tuple[list[str], bool]:
    """The column names of a CSV, and whether its first row is that header."""
    columns = [_head_column(cell) or _COLUMNS.get(cell.lower(), "") for cell in first]
    heads = [column for column in columns if _is_head(column)]
    if "path" in columns and (len(heads) == 1 or (heads and "label" in columns)):
        raise DataError(
            f"{source}: columns {','.join(first)}; expected label alone, or two or more heads: label:verb,label:noun"
        )
    if "path" in columns and "" not in columns and len(set(columns)) == len(columns):
        return columns, True
    # Without a header the first row must look like a clip: `video,class` is a header of unknown names.
    looks_like_clip = Path(first[0]).suffix != "" or (root / first[0]).exists()
    if len(first) == 2 and not any(columns) and looks_like_clip:
        return ["path", "label"], False
    if len(first) == 1 and (separator := next((mark for mark in ";\t" if mark in first[0]), None)):
        raise DataError(
            f"{source}: its first line is {first[0]!r}, without a comma; expected columns separated by commas, not by "
            + ("semicolons" if separator == ";" else "tabs")
        )
    raise DataError(
        f"{source}: unknown columns {','.join(first)}; expected path,label or path,label,start,end "
        f"(seconds), or two columns without a header; for several heads path,label:verb,label:noun, each once"
    )


def _head_column(cell: str) -> str:
    """A header such as "Label: verb" as label:verb; nothing where it names no head."""
    start, colon, head = cell.partition(":")
    return _HEAD_COLUMN + head.strip() if colon and start.strip().lower() == "label" and head.strip() else ""


def _is_head(column: str) -> bool:
    return column.startswith(_HEAD_COLUMN)


def _csv_entry(row: dict[str, str], root: Path, where: str) -> Entry:
    if not row["path"]:
        raise DataError(f"{where}: the path is empty")
    by_head = tuple((name.removeprefix(_HEAD_COLUMN), label) for name, label in row.items() if _is_head(name))
    label = joined([of for _, of in by_head]) if by_head else row.get("label")
    if label == "" or not all(of for _, of in by_head):
        raise DataError(f"{where}: {row['path']} has no label; give it one or remove the line")
    start, end = _seconds(row.get("start"), where), _seconds(row.get("end"), where)
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{where}: the segment ends at {end} s and starts at {start or 0.0} s; expected end > start")
    return replace(_listed_entry(row["path"], root, label, start, end), by_head=by_head)


def _seconds(cell: str | None, where: str) -> float | None:
    if not cell:
        return None
    try:
        seconds = float(cell)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise DataError(f"{where}: found {cell!r} as a time; expected seconds, 0 or more")
    return seconds


def _listed_entry(
    written: str, root: Path, label: str | None, start: float | None = None, end: float | None = None
) -> Entry:
    path = absolute(root / written)
    inside = path.is_relative_to(root) or not Path(written).is_absolute()
    name = Path(os.path.relpath(path, root)) if inside else path
    return Entry(path, name.as_posix(), label, start, end)
