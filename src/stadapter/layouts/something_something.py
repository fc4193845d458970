"""Something-Something-v2: a JSON list for each part, and a JSON file of the classes."""

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
    files_in,
    letters,
    read_json,
    read_lines,
    tell_unknown,
)

NAME = "Something-Something-v2"
_FILE = re.compile(r"(something-something-v2-)?(train|validation|test|labels)\.json", re.IGNORECASE)


def recognise_file(source: Path) -> Annotations | None:
    """One list, recognised by its name.

    Raises:
        DataError: it is the list of classes.
    """
    match = _FILE.fullmatch(source.name)
    if match is None:
        return None
    if match[2].lower() == "labels":
        raise DataError(f"{source} is the list of classes; give the training list or the folder of both")
    return Annotations(NAME, {PARTS[match[2].lower()]: (source,)}, is_folder=False)


def recognise_folder(folder: Path, split_number: int) -> Annotations | None:
    """Lists under their published names, or under short ones next to the list of classes."""
    matches = [(file, match) for file in files_in(folder) if (match := _FILE.fullmatch(file.name))]
    has_labels = any(match[2].lower() == "labels" for _, match in matches)
    files: dict[Part, tuple[Path, ...]] = {
        PARTS[name]: (file,)
        for file, match in matches
        if (name := match[2].lower()) in PARTS and (has_labels or match[1])
    }
    return Annotations(NAME, files, is_folder=True) if files else None


def read(files: Sequence[Path], part: Part, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """Something-Something-v2: a JSON list of {id, template}; the classes and their order are in labels.json.

    A template without its brackets is a class: "Putting [something] onto [something]". The test list has only ids;
    its classes are in test-answers.csv, as `<id>;<class>`.
    Source: https://www.qualcomm.com/developer/software/something-something-v-2-dataset (the "labels" archive).
    """
    source = files[0]
    prefix = source.name[: len("something-something-v2-")] if source.name.lower().startswith("something") else ""
    labels = _labels(source, prefix)
    by_letters = {letters(label): label for label in labels}
    answers = _answers(source.parent, prefix) if part == "test" or source.name.endswith("test.json") else {}
    clips, unknown = [], []
    for number, item in enumerate(read_json(source, list), start=1):
        if not isinstance(item, dict) or "id" not in item:
            on_problem(f"{source}, item {number}: found {str(item)[:60]!r}; expected an object with id and template")
            continue
        written = str(item.get("template") or answers.get(str(item["id"]), ""))
        label = by_letters.get(letters(written)) if written else None
        if written and label is None:
            unknown.append(written)
            continue
        clips.append(ListedClip(str(item["id"]), label))
    tell_unknown(source, unknown, f"{prefix}labels.json", on_problem)
    return Listing(tuple(clips), labels)


def _labels(source: Path, prefix: str) -> tuple[str, ...]:
    path = source.parent / f"{prefix}labels.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the classes of {source.name} next to it")
    numbers = read_json(path, dict)
    try:
        return tuple(sorted(numbers, key=lambda label: int(numbers[label])))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: found a class without a number; expected {{class: number}}") from error


def _answers(folder: Path, prefix: str) -> dict[str, str]:
    for name in (f"{prefix}test-answers.csv", "test-answers.csv"):
        if (folder / name).is_file():
            pairs = (line.partition(";") for _, line in read_lines(folder / name))
            return {number.strip(): label.strip() for number, _, label in pairs}
    return {}
