"""What all layouts have in common: clips, annotations, and how the files are read."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from stadapter.errors import DataError
from stadapter.labels import LabelSpace
from stadapter.video import VIDEO_SUFFIXES
from stadapter.video.segment import Segment
from stadapter.wording import counted, listed

OnProblem = Callable[[str], None]
"""Called with a sentence about a problem; if it returns, reading continues with what is left."""
Part = Literal["train", "val", "test"]

PART_NAMES: tuple[Part, ...] = get_args(Part)
PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The words for a part, in lower case: as folder names, and in a list's column split."""
_PART_FILE = re.compile(r"(?:.*[_-])?(train|val|validate|validation|test)\.csv", re.IGNORECASE)


@dataclass(frozen=True)
class ListedClip:
    """One line of the annotations."""

    stem: str
    """File name of its video without the suffix, or name of its folder of images."""
    label: str | None
    """Class name; None if the annotations give none."""
    folders: tuple[str, ...] = ()
    """Names of folders it is expected in, likeliest first; they decide between several videos of its name."""
    start_seconds: float | None = None
    """Start of the segment in its video; None if it is the whole video."""
    end_seconds: float | None = None
    """End of the segment."""
    frames_per_second: float | None = None
    """Rate of its video if that is a folder of images; None if the data set gives no such rate."""
    by_head: tuple[tuple[str, str], ...] = ()
    """Pairs of head name and class, if there are several heads; `label` joins these classes."""

    @property
    def title(self) -> str:
        """What it is called when its video is not there."""
        return Segment(self.start_seconds, self.end_seconds).titled(self.stem)


@dataclass(frozen=True)
class Listing:
    """What annotations say."""

    clips: tuple[ListedClip, ...]
    labels: tuple[str, ...] | None
    """All classes, in the data set's order; None if it has no order of its own."""
    heads: LabelSpace | None = None
    """All classes of each head, if there are several; `labels` are then their combinations."""


@dataclass(frozen=True)
class Annotations:
    """Annotations that have been recognised, and the files of each part."""

    layout: str
    """Name of the data set."""
    files: Mapping[Part, tuple[Path, ...]]
    is_folder: bool
    """Whether a folder was given; otherwise a single file was, and is the only part."""
    remark: str = ""
    """What was chosen among several, to be reported."""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return next(iter(self.files.values()))[0].parent

    @property
    def held_out(self) -> Part | None:
        """The part to validate on."""
        return held_out_part(self.files)


def held_out_part(parts: Container[Part]) -> Part | None:
    """The part to validate on, among those that a data set has: its validation part, else its test part."""
    return next((part for part in PART_NAMES[1:] if part in parts), None)


def part_named(source: Path) -> Part | None:
    """The part that the name of a CSV such as k400_val.csv stands for; None if it names none."""
    match = _PART_FILE.fullmatch(source.name)
    return PARTS[match[1].lower()] if match else None


def csv_cells(
    source: Path, text: str, on_problem: OnProblem, *, delimiter: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """The non-empty rows of a CSV, each with its line number."""
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    while True:
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
            return
        except csv.Error as error:
            on_problem(f"{source}, line {reader.line_num}: not a CSV row ({error}); check its quotes")


def csv_rows(source: Path, on_problem: OnProblem) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows below a CSV's header as mappings, each with its file and line."""
    columns: list[str] | None = None
    for line, cells in csv_cells(source, read_text(source), on_problem):
        if columns is None:
            columns = [cell.lower() for cell in cells]
        elif len(cells) != len(columns):
            found = counted(len(cells), "field")
            on_problem(f"{source}, line {line}: found {found}, expected {len(columns)}; check its quotes")
        else:
            yield f"{source}, line {line}", dict(zip(columns, cells, strict=True))


def read_text(source: Path) -> str:
    """The whole of a UTF-8 text file.

    Raises:
        DataError: it cannot be read as UTF-8 text.
    """
    try:
        return source.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text ({error}); save it as UTF-8: in Excel, CSV UTF-8") from error


def read_lines(source: Path) -> list[tuple[int, str]]:
    """The non-empty lines of a UTF-8 text file, each with its line number.

    Raises:
        DataError: it cannot be read as UTF-8 text.
    """
    lines = enumerate(read_text(source).split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_header(source: Path) -> list[str]:
    """The first row of a CSV in lower case; empty if it is not a CSV."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            return [cell.strip().lower() for cell in next(csv.reader([file.readline(100_000)]), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def read_json(source: Path, kind: type) -> Any:
    """A JSON file whose outermost value is a list or a dict, as `kind` says.

    Raises:
        DataError: it is not JSON, or of another kind.
    """
    try:
        value = json.loads(read_text(source))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise DataError(f"{source}: found a JSON {type(value).__name__}, expected a {kind.__name__}")
    return value


def require_columns(source: Path, columns: Sequence[str], wanted: Sequence[str], layout: str) -> None:
    """Check that a CSV that looks like a layout has the columns that are read.

    Raises:
        DataError: one is missing.
    """
    if missing := [name for name in wanted if name not in columns]:
        raise DataError(
            f"{source} looks like {layout} but has no column {' or '.join(missing)}; found {','.join(columns)}"
        )


def files_in(folder: Path) -> list[Path]:
    """The files of a folder, sorted; empty if it cannot be listed. Hidden ones are skipped."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def video_stem(name: str) -> str:
    """A video's name without its video suffix; other dots stay."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def letters(text: str) -> str:
    """What spelling variants of a name share, whatever their blanks, underscores, brackets or punctuation."""
    return "".join(character for character in text.casefold() if character.isalnum())


def tell_unknown(source: Path, unknown: Sequence[str], where: str, on_problem: OnProblem) -> None:
    """Report clips whose class is not among those of the data set, if there are any."""
    if unknown:
        found = f"{counted(len(unknown), 'clip')} of a class that is not in {where}"
        on_problem(f"{source}: {found}: {listed(sorted(set(unknown)))}; expected only the classes there")


def chosen_split(
    layout: str, folder: Path, files: Mapping[Part, tuple[Path, ...]], numbers: set[int], split_number: int
) -> Annotations | None:
    """The annotations of one split among those that a folder holds; None if it holds none.

    Raises:
        DataError: it holds only other splits.
    """
    if not numbers:
        return None
    if not files:
        there = listed([str(number) for number in sorted(numbers)])
        raise DataError(f"{folder} holds {layout}'s split {there} but no split {split_number}; choose another")
    remark = f"split {split_number} of {', '.join(map(str, sorted(numbers)))}"
    return Annotations(layout, files, is_folder=True, remark=remark if len(numbers) > 1 else "")
