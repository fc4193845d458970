"""What the columns of a CSV hold, according to its header or to a first line that is a clip."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stadapter.errors import DataError
from stadapter.paths import expanded
from stadapter.video import VIDEO_SUFFIXES
from stadapter.wording import counted

_MEANINGS = {
    "path": "path",
    "filename": "path",
    "file": "path",
    "video": "path",
    "label": "label",
    "class": "label",
    "start": "start",
    "start_seconds": "start",
    "end": "end",
    "end_seconds": "end",
    "split": "split",
    "group": "group",
}
_HEAD_COLUMN = "label:"
"""What stands before the name of a head in the header of a CSV."""
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


@dataclass(frozen=True)
class Columns:
    """How the rows of a CSV are to be read."""

    written: tuple[str, ...]
    """The column names as written in the header; path and label if there is none."""
    meanings: tuple[str, ...]
    """What each column holds: path, label, label:<head>, start, end, split or group; empty if it is not used."""
    delimiter: str
    header_line: int | None
    """Line number of the header; None if there is none."""

    @property
    def unused(self) -> list[str]:
        """The names of the columns that are not used."""
        pairs = zip(self.written, self.meanings, strict=True)
        return [name or "one without a name" for name, meaning in pairs if not meaning]

    def row(self, cells: Sequence[str], where: str) -> dict[str, str]:
        """The cells of one row by what they hold.

        Raises:
            DataError: more or fewer cells than columns.
        """
        if len(cells) != len(self.written):
            mark = _DELIMITERS[self.delimiter]
            raise DataError(
                f"{where}: found {counted(len(cells), 'field')}, expected {len(self.written)} "
                f"({self.delimiter.join(self.written)})"
                + (f"; put a path that contains a {mark} in double quotes" if len(cells) > len(self.written) else "")
            )
        return {meaning: cell for meaning, cell in zip(self.meanings, cells, strict=True) if meaning}


def find_columns(source: Path, text: str, root: Path) -> Columns:
    """The columns of a CSV that is not empty, separated by commas, semicolons or tabs, like its first line.

    Raises:
        DataError: the first line is neither a header nor two columns with a clip and its class.
    """
    lines = list(enumerate(text.split("\n"), start=1))
    line_number, line = next(((number, line) for number, line in lines if line.strip(' \t,;"')), lines[0])
    by_delimiter = {delimiter: _cells(line, delimiter) for delimiter in _DELIMITERS}
    understood = (mark for mark, cells in by_delimiter.items() if _is_header(cells) or _is_clip(cells, root))
    delimiter = next(understood, ",")
    cells = by_delimiter[delimiter]
    if _is_header(cells):
        meanings = tuple(map(_meaning, cells))
        _check_header(source, cells, meanings)
        return Columns(tuple(cells), meanings, delimiter, line_number)
    if _is_clip(cells, root) or (len(cells) == 2 and Path(cells[0]).suffix and not any(map(_meaning, cells))):
        return Columns(("path", "label"), ("path", "label"), delimiter, None)
    if len(cells) == 1 and len(cells[0].split()) > 1 and not any(mark in line for mark in _DELIMITERS):
        raise DataError(
            f"{source}: its first line is {cells[0]!r}, without a comma; expected a class number in every line of a "
            f"list with spaces, <path> <class number>; class names need a CSV, path,label"
        )
    raise DataError(
        f"{source}: unknown columns {delimiter.join(cells)}; expected path,label or path,label,start,end "
        f"(seconds), or two columns without a header; for several heads path,label:verb,label:noun, each head once"
    )


def is_head(meaning: str) -> bool:
    """Whether a column holds the class of one of several heads."""
    return meaning.startswith(_HEAD_COLUMN)


def head_name(meaning: str) -> str:
    """The name of the head whose class a column holds."""
    return meaning.removeprefix(_HEAD_COLUMN)


def _check_header(source: Path, written: Sequence[str], meanings: Sequence[str]) -> None:
    """Refuse a header that is ambiguous.

    Raises:
        DataError: a single head, heads as well as a label, two columns of one meaning, or unknown columns but no label.
    """
    heads = [meaning for meaning in meanings if is_head(meaning)]
    found = f"{source}: columns {','.join(written)}"
    if len(heads) == 1 or (heads and "label" in meanings):
        raise DataError(f"{found}; expected label on its own, or two or more heads: label:verb,label:noun")
    for meaning in filter(None, meanings):
        same = [name for name, of in zip(written, meanings, strict=True) if of == meaning]
        if len(same) > 1:
            raise DataError(
                f"{found}: {' and '.join(same)} both mean the {meaning}; expected one: rename or remove the others"
            )
    unknown = [name for name, meaning in zip(written, meanings, strict=True) if name and not meaning]
    if unknown and not heads and "label" not in meanings:
        raise DataError(
            f"{found}: none is called label; expected path,label: rename the one that holds the classes, or remove "
            f"{', '.join(unknown)} if none does"
        )


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])]


def _meaning(cell: str) -> str:
    """What a column holds according to its name, such as label:verb for "Label: verb"; empty for an unknown name."""
    start, colon, head = cell.partition(":")
    if colon and start.strip().lower() == "label" and head.strip():
        return _HEAD_COLUMN + head.strip()
    return _MEANINGS.get(cell.lower(), "")


def _is_header(cells: Sequence[str]) -> bool:
    return "path" in map(_meaning, cells) and not any(map(names_video, cells))


def _is_clip(cells: Sequence[str], root: Path) -> bool:
    """Whether two cells are a video, which need not exist, and its class."""
    if len(cells) != 2 or not cells[0] or all(map(_meaning, cells)):
        return False
    return names_video(cells[0]) or os.path.exists(root / expanded(cells[0]))


def names_video(cell: str) -> bool:
    """Whether a text ends like the name of a video file."""
    return Path(cell).suffix.lower() in VIDEO_SUFFIXES
