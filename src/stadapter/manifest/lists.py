"""Data sets that are one list: a CSV, or the format of the released code."""

import math
import os
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stadapter.errors import DataError
from stadapter.labels import LabelSpace, joined
from stadapter.layouts import PART_NAMES, PARTS, OnProblem, Part, csv_cells, read_text
from stadapter.manifest.checks import check_one_label
from stadapter.manifest.columns import Columns, find_columns, head_name, is_head, names_video
from stadapter.manifest.entries import NOTHING, Entry, Manifest, sort_labels
from stadapter.manifest.paths import looks_like_video
from stadapter.wording import counted

_SUFFIXES = (".csv", ".tsv", ".txt")
_RELEASED_LINE = re.compile(r"(?P<path>\S.*?)\s+(?P<label>\d+)\s*")


def read_list(source: Path, root: Path, on_problem: OnProblem) -> dict[Part, Manifest]:
    """The clips of a CSV or of a released list, with paths relative to `root`; files that do not exist are `missing`.

    They come by part, according to a column split; without one, all are for training. If nothing could be read, the
    training part is empty.
    """
    nothing: dict[Part, Manifest] = {"train": NOTHING}
    if looks_like_video(source):
        on_problem(f"{source} is a single video; expected a folder with one sub-folder of videos per class, or a list")
        return nothing
    try:
        text = _read_text(source, root)
        columns = _find_columns(source, root, text)
    except DataError as error:  # for example its header, without which nothing below can be understood
        on_problem(str(error))
        return nothing
    refused: list[str] = []

    def refuse_line(problem: str) -> None:
        refused.append(problem)
        on_problem(problem)

    rows = list(_rows(source, root, text, columns, refuse_line))
    if not rows:
        if not refused:
            on_problem(
                f"{source} holds no clips; expected one line path,label per clip, below the header if there is one"
            )
        return nothing
    check_one_label(source, [entry for _, entry in rows], on_problem)
    form = "<path> <class number>" if columns is None else "path,label"
    missing = _find_missing(f"{source}: read as {form}", rows, root, on_problem)
    remarks = tuple(_remarks(columns)) if columns is not None else ()
    parts: dict[Part, Manifest] = {}
    for part in PART_NAMES:
        if of_part := [entry for of, entry in rows if of == part]:
            parts[part] = replace(_manifest(of_part, missing), remarks=remarks, is_numbered=columns is None)
    return parts


def is_list(path: Path) -> bool:
    """Whether a file is a list of clips by its name."""
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def read_unlabelled(source: Path, on_problem: OnProblem) -> list[Entry]:
    """The clips of a list in its order, to be classified: their labels, if any, do not matter, nor whether they exist.

    Besides the lists that can be trained on, it may be one with the path of a video in every line.

    Raises:
        DataError: it is not a list, or its columns are unknown.
    """
    root = source.parent
    text = _read_text(source, root)
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if all(map(names_video, lines)):
        return [Entry(*_find_listed(line, root), None) for line in lines]
    columns = _find_columns(source, root, text)
    return [entry for _, entry in _rows(source, root, text, columns, on_problem, needs_labels=False)]


def _remarks(columns: Columns) -> Iterator[str]:
    if columns.unused:
        yield f"unused columns: {', '.join(columns.unused)}"
    if {"split", "group"} <= set(columns.meanings):
        yield "the column group is not used, because the column split says what is held out"


def _manifest(listed: Sequence[Entry], missing: Container[Path]) -> Manifest:
    """A manifest of the listed clips; of those that are missing it keeps the names."""
    entries = tuple(entry for entry in listed if entry.path not in missing)
    labels = sort_labels([entry.label for entry in entries if entry.label is not None])
    lost = tuple(entry.name for entry in listed if entry.path in missing)
    return Manifest(entries, labels, missing=lost, heads=_heads_of(entries))


def _find_missing(where: str, rows: Sequence[tuple[Part, Entry]], root: Path, on_problem: OnProblem) -> frozenset[Path]:
    """The paths that do not exist; if that is every path of the list or of one part, report it."""
    missing = frozenset(path for path in {entry.path for _, entry in rows} if not os.path.exists(path))
    lost: dict[str, list[Path]] = {}
    if all(entry.path in missing for _, entry in rows):
        lost[""] = [entry.path for _, entry in rows]
    else:
        for part in {part: None for part, entry in rows}:
            paths = [entry.path for of, entry in rows if of == part]
            if missing.issuperset(paths):
                lost[f" of the split {part}"] = paths
    for of_part, paths in lost.items():
        on_problem(
            f"{where}, but none of its {counted(len(paths), 'file')}{of_part} exists, the first being {paths[0]}; "
            f"expected paths relative to {root}: name the folder that they start from with --video-root"
        )
    return missing


def _heads_of(entries: Sequence[Entry]) -> LabelSpace | None:
    """The heads of a list and the classes that occur; None if clips have a single class."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for head, label in entry.by_head:
            found.setdefault(head, []).append(label)
    return LabelSpace.of({head: sort_labels(labels) for head, labels in found.items()}) if found else None


def _find_columns(source: Path, root: Path, text: str) -> Columns | None:
    """The columns of a CSV; None for a released list.

    Raises:
        DataError: they are unknown.
    """
    return None if _is_released(source, text) else find_columns(source, text, root)


def _rows(
    source: Path, root: Path, text: str, columns: Columns | None, on_problem: OnProblem, *, needs_labels: bool = True
) -> Iterator[tuple[Part, Entry]]:
    if columns is None:
        return _released_rows(text, root)
    return _csv_rows(source, text, root, columns, on_problem, needs_labels=needs_labels)


def _read_text(source: Path, root: Path) -> str:
    """The text of a list.

    Raises:
        DataError: it cannot be read or is empty, or there is no folder `root`.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the folder that the paths in {source.name} start from")
    text = read_text(source)
    if not text.strip():
        raise DataError(f"{source} is empty; expected lines of path,label or <path> <class number>")
    return text


def _is_released(source: Path, text: str) -> bool:
    """Whether every line is `<path> <class number>`; in a .csv file, commas or semicolons mean CSV."""
    lines = [line for line in text.split("\n") if line.strip()]
    if source.suffix.lower() == ".csv" and re.search("[,;]", lines[0]):
        return False
    matches = [_RELEASED_LINE.fullmatch(line) for line in lines]
    return all(match is not None and not re.search("[,;]$|\t", match["path"]) for match in matches)


def _released_rows(text: str, root: Path) -> Iterator[tuple[Part, Entry]]:
    for line in text.split("\n"):
        if match := _RELEASED_LINE.fullmatch(line):
            yield "train", Entry(*_find_listed(match["path"], root), str(int(match["label"])))


def _csv_rows(
    source: Path, text: str, root: Path, columns: Columns, on_problem: OnProblem, *, needs_labels: bool
) -> Iterator[tuple[Part, Entry]]:
    for line, cells in csv_cells(source, text, on_problem, delimiter=columns.delimiter):
        if line == columns.header_line:
            continue
        where = f"{source}, line {line}"
        try:
            row = columns.row(cells, where)
            yield _part(row, where), _csv_entry(row, root, where, needs_labels=needs_labels)
        except DataError as error:
            on_problem(str(error))


def _part(row: dict[str, str], where: str) -> Part:
    word = row.get("split", "train")
    if part := PARTS.get(word.lower()):
        return part
    raise DataError(f"{where}: found {word!r} as a split; expected train, val or test")


def _csv_entry(row: dict[str, str], root: Path, where: str, *, needs_labels: bool) -> Entry:
    if not row["path"]:
        raise DataError(f"{where}: the path is empty")
    by_head = tuple((head_name(meaning), label) for meaning, label in row.items() if is_head(meaning))
    label = joined([of for _, of in by_head]) if by_head else row.get("label")
    if needs_labels and (label == "" or not all(of for _, of in by_head)):
        raise DataError(f"{where}: {row['path']} has no label; give it one or remove the line")
    start, end = _seconds(row.get("start"), where), _seconds(row.get("end"), where)
    if end is not None and end <= (start or 0.0):
        raise DataError(f"{where}: the segment ends at {end} s but starts at {start or 0.0} s; expected end > start")
    path, name = _find_listed(row["path"], root)
    return Entry(path, name, label, start, end, by_head=by_head, group=row.get("group"))


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


def _find_listed(written: str, root: Path) -> tuple[Path, str]:
    """The absolute path of a clip, and its name: relative to `root`, unless it is listed with a path elsewhere.

    All with strings, which for hundreds of thousands of lines takes a third of the time that paths do.
    """
    listed, folder = os.path.expanduser(written), os.path.join(root, "")
    path = os.path.abspath(folder + listed) if not os.path.isabs(listed) else os.path.abspath(listed)
    if path.startswith(folder):
        name = path[len(folder) :]
    else:
        name = path if os.path.isabs(listed) and path != str(root) else os.path.relpath(path, root)
    return Path(path), name.replace(os.sep, "/")
