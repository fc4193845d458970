"""The annotations of public data sets as they are published: which clips they list, and where those are.

layout                  recognised by                                        a clip's video
Kinetics                CSV columns label, youtube_id, time_start, time_end  <youtube_id>_<start:06d>_<end:06d>.mp4
Something-Something-v2  something-something-v2-train.json, -labels.json      <id>.webm
UCF101                  trainlist01.txt, testlist01.txt, classInd.txt        <class>/v_<class>_g01_c01.avi
HMDB51                  <class>_test_split1.txt for every class              <class>/<name>.avi
EPIC-Kitchens-100       CSV columns video_id, start_timestamp, …             P01/videos/P01_01.MP4, a folder of frames

A video is looked for by its name, with any suffix, in any folder below the root. None is opened.
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from stadapter.errors import DataError, counted, listed
from stadapter.labels import LabelSpace, joined
from stadapter.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES

OnProblem = Callable[[str], None]
"""What is done with a sentence on what is wrong; where it returns, reading goes on with what is left."""
LabelKind = Literal["action", "verb", "noun", "verb+noun"]
"""What EPIC-Kitchens clips are labelled with: an action is a verb and a noun as one class, verb+noun are two heads."""
LABEL_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
Part = Literal["train", "val", "test"]

_FOLDERS = ("annotations", "labels", "ucfTrainTestlist", "testTrainMulti_7030_splits", "epic-kitchens-100-annotations")
"""Where below a data set's folder its annotations are by custom."""
_PARTS: dict[str, Part] = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_KINETICS_FILE = re.compile(r"(?:.*[_-])?(train|val|validate|validation|test)\.csv", re.IGNORECASE)
_KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
_SOMETHING_FILE = re.compile(r"(something-something-v2-)?(train|validation|test|labels)\.json", re.IGNORECASE)
_UCF_FILE = re.compile(r"(train|test)list(\d\d)\.txt")
_HMDB_FILE = re.compile(r"(.+)_test_split(\d)\.txt")
_EPIC_FILES: dict[Part, str] = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
_EPIC_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp")
_EPIC_CLASS_COLUMNS = ("verb_class", "noun_class")
_FLOW_FOLDER = "flow_frames"  # of EPIC-Kitchens: images of motion, no frames
_EPIC_TIME = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")


@dataclass(frozen=True)
class ListedClip:
    """One line of the annotations."""

    stem: str
    """File name of its video without the suffix, or name of its folder of images."""
    label: str | None
    """Class name; None where the annotations give none."""
    folders: tuple[str, ...] = ()
    """Names of folders it is expected in, the likeliest first; they decide where several videos have its name."""
    start_seconds: float | None = None
    """Start of the segment in its video; None where it is the whole video."""
    end_seconds: float | None = None
    """End of the segment."""
    frames_per_second: float | None = None
    """Rate of its video's folder of images; None where they have none of their own."""
    by_head: tuple[tuple[str, str], ...] = ()
    """Name of the head and class, where there are several heads; `label` is then the classes joined."""

    @property
    def title(self) -> str:
        """What it is called when its video is not there."""
        if self.start_seconds is None:
            return self.stem
        return f"{self.stem} [{self.start_seconds:g}-{self.end_seconds:g} s]"


@dataclass(frozen=True)
class Listing:
    """What annotations say."""

    clips: tuple[ListedClip, ...]
    labels: tuple[str, ...] | None
    """All classes, in the data set's order; None where it has no order of its own."""
    heads: LabelSpace | None = None
    """All classes of each head, where there are several; `labels` are then their combinations."""


@dataclass(frozen=True)
class Annotations:
    """Annotations that have been recognised, and the files of each part."""

    layout: str
    """Name of the data set."""
    files: Mapping[Part, tuple[Path, ...]]
    is_folder: bool
    """Whether a folder was given; else its one file is the only part."""
    remark: str = ""
    """What was chosen among several, to be told."""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return next(iter(self.files.values()))[0].parent

    @property
    def held_out(self) -> Part | None:
        """The part to validate on."""
        return next((part for part in ("val", "test") if part in self.files), None)


def recognise(source: Path, *, split_number: int = 1) -> Annotations | None:
    """The annotations that a file is, or that a folder holds; None where they are no published layout.

    A folder may hold them itself or in a folder of a customary name, such as annotations/.

    Raises:
        DataError: a published layout with something missing, or several in one folder.
    """
    if source.is_file():
        return _recognise_file(source)
    for folder in (source, *(source / name for name in _FOLDERS)):
        found = [annotations for find in _FINDERS if (annotations := find(folder, split_number))]
        if len(found) > 1:
            names = " and of ".join(annotations.layout for annotations in found)
            raise DataError(f"{folder} holds annotations of {names}; expected one data set: name one of its files")
        if found:
            return found[0]
    return None


def read_listing(annotations: Annotations, part: Part, *, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """The clips of one part. What is wrong is told to `on_problem`; what is left is returned.

    Raises:
        DataError: a file cannot be read or understood at all.
    """
    files = annotations.files[part]
    readers: dict[str, Callable[[], Listing]] = {
        KINETICS: lambda: read_kinetics(files[0], on_problem),
        SOMETHING: lambda: read_something_something(files[0], part, on_problem),
        UCF: lambda: read_ucf101(files[0], on_problem),
        HMDB: lambda: read_hmdb51(files, part, on_problem),
        EPIC: lambda: read_epic_kitchens(files[0], label_kind, on_problem),
    }
    return readers[annotations.layout]()


def find_videos_of(clips: Iterable[ListedClip], root: Path) -> dict[ListedClip, Path]:
    """The video of every clip that has one below `root`; which of several of one name, its folders decide.

    Raises:
        DataError: `root` cannot be listed.
    """
    clips = list(clips)
    paths: dict[str, list[Path]] = {clip.stem: [] for clip in clips}
    _collect(root, paths, ())
    return {clip: min(paths[clip.stem], key=lambda path: _rank(clip, path)) for clip in clips if paths[clip.stem]}


def read_kinetics(source: Path, on_problem: OnProblem) -> Listing:
    """Kinetics-400, -600 and -700: label,youtube_id,time_start,time_end,split[,is_cc]; test lists may have no label.

    The videos are cut already, and named by their id and times in whole seconds with six digits.
    Source: https://github.com/cvdfoundation/kinetics-dataset and the downloader of ActivityNet's Crawler/Kinetics.
    """
    clips = []
    for where, row in csv_rows(source, on_problem):
        try:
            start, end = (_whole_seconds(row[name], where) for name in ("time_start", "time_end"))
            if not row["youtube_id"] or row.get("label") == "":
                raise DataError(f"{where}: found no {'label' if row['youtube_id'] else 'youtube_id'}; expected one")
        except DataError as error:
            on_problem(str(error))
            continue
        label, part = row.get("label"), row.get("split", "")
        folders = (label, part) if label is not None else (part,)
        clips.append(ListedClip(f"{row['youtube_id']}_{start:06d}_{end:06d}", label, folders))
    return Listing(tuple(clips), None)


def read_something_something(source: Path, part: Part, on_problem: OnProblem) -> Listing:
    """Something-Something-v2: a JSON list of {id, template}; the classes and their order are in labels.json.

    A template without its brackets is a class: "Putting [something] onto [something]". The test list has ids only;
    its classes are in test-answers.csv, `<id>;<class>`.
    Source: https://www.qualcomm.com/developer/software/something-something-v-2-dataset (the "labels" archive).
    """
    prefix = source.name[: len("something-something-v2-")] if source.name.lower().startswith("something") else ""
    labels = _something_labels(source, prefix)
    by_letters = {_letters(label): label for label in labels}
    answers = _something_answers(source.parent, prefix) if part == "test" or source.name.endswith("test.json") else {}
    clips, unknown = [], []
    for number, item in enumerate(_json(source, list), start=1):
        if not isinstance(item, dict) or "id" not in item:
            on_problem(f"{source}, item {number}: found {str(item)[:60]!r}; expected an object with id and template")
            continue
        written = str(item.get("template", answers.get(str(item["id"]), "")))
        label = by_letters.get(_letters(written)) if written else None
        if written and label is None:
            unknown.append(written)
            continue
        clips.append(ListedClip(str(item["id"]), label))
    _tell_unknown(source, unknown, f"{prefix}labels.json", on_problem)
    return Listing(tuple(clips), labels)


def read_ucf101(source: Path, on_problem: OnProblem) -> Listing:
    """UCF101: lines <class>/v_<class>_g01_c01.avi, in training lists followed by the class's number in classInd.txt.

    Source: https://www.crcv.ucf.edu/data/UCF101.php, "The Train/Test Splits for Action Recognition".
    """
    index = source.parent / "classInd.txt"
    labels = tuple(_ucf_classes(index)) if index.is_file() else None
    clips, unknown = [], []
    for number, line in enumerate(_lines(source), start=1):
        match = re.fullmatch(r"([^/]+)/(.+?)(?:\s+(\d+))?", line)
        where = f"{source}, line {number}"
        if match is None:
            on_problem(f"{where}: found {line!r}; expected <class>/<video>.avi, with a class number in training lists")
            continue
        label, name, told = match.groups()
        if labels is not None and label not in labels:
            unknown.append(label)
        elif labels is not None and told is not None and labels.index(label) + 1 != int(told):
            on_problem(f"{where}: {label} has number {told} here and {labels.index(label) + 1} in {index.name}")
        else:
            clips.append(ListedClip(_stem(name), label, (label,)))
    _tell_unknown(source, unknown, index.name, on_problem)
    return Listing(tuple(clips), labels)


def read_hmdb51(files: Sequence[Path], part: Part, on_problem: OnProblem) -> Listing:
    """HMDB51: for every class a file of lines `<name>.avi <use>`, use 1 to train, 2 to test, 0 neither.

    Source: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database, the splits' split_readme.txt.
    """
    clips = []
    wanted = "1" if part == "train" else "2"
    for file in files:
        label = _HMDB_FILE.fullmatch(file.name)[1]  # type: ignore[index]  # recognised by that name
        for number, line in enumerate(_lines(file), start=1):
            name, _, use = line.rpartition(" ")
            if not name.strip() or use not in ("0", "1", "2"):
                on_problem(f"{file}, line {number}: found {line!r}; expected <name>.avi and 0, 1 or 2")
            elif use == wanted:
                clips.append(ListedClip(_stem(name.strip()), label, (label,)))
    names = sorted(_HMDB_FILE.fullmatch(file.name)[1] for file in files)  # type: ignore[index]
    return Listing(tuple(clips), tuple(names))


def read_epic_kitchens(source: Path, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """EPIC-Kitchens-100: segments of long videos, with the numbers of a verb and a noun class; no class in test lists.

    The classes' names are in EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv, columns id and key; without
    those files classes are called by their numbers. The columns verb and noun hold the narrator's words, no classes.
    An action is a pair of both; the actions are those of the training and the validation list. With verb+noun every
    clip has a class of each of two heads. Folders of frames have 60 a second, 50 in the videos of the extension (three
    digits in the name).
    Source: https://github.com/epic-kitchens/epic-kitchens-100-annotations, README.
    """
    kinds = {"action": ("verb", "noun"), "verb+noun": ("verb", "noun")}.get(label_kind, (label_kind,))
    has_heads = label_kind == "verb+noun"
    names = [_epic_classes(source.parent / f"EPIC_100_{kind}_classes.csv", on_problem) for kind in kinds]
    clips: list[tuple[ListedClip, tuple[int, ...] | None]] = []
    unknown: list[str] = []
    for where, row in csv_rows(source, on_problem):
        try:
            classes = (
                tuple(_class_number(row[f"{kind}_class"], where) for kind in kinds) if "verb_class" in row else None
            )
            start, end = (_epic_seconds(row[name], where) for name in ("start_timestamp", "stop_timestamp"))
            if end <= start:
                raise DataError(f"{where}: the segment ends at {end} s and starts at {start} s; expected end > start")
        except DataError as error:
            on_problem(str(error))
            continue
        if classes is not None and any(of and number not in of for of, number in zip(names, classes, strict=True)):
            unknown.append(" ".join(map(str, classes)))
            continue
        named = _epic_named(names, classes) if classes is not None else ()
        video = row["video_id"]
        rate = 50.0 if re.fullmatch(r".*_\d{3}", video) else 60.0
        by_head = tuple(zip(kinds, named, strict=True)) if has_heads and named else ()
        folders = ("videos", "rgb_frames")
        clips.append((ListedClip(video, joined(named) or None, folders, start, end, rate, by_head), classes))
    _tell_unknown(source, unknown, "the class files", on_problem)
    every = {classes for _, classes in clips if classes is not None} | _epic_numbers(source, kinds, names)
    labels = tuple(joined(_epic_named(names, numbers)) for numbers in sorted(every))
    heads = _epic_heads(kinds, names, every) if has_heads else None
    return Listing(tuple(clip for clip, _ in clips), labels, heads)


def csv_cells(source: Path, text: str, on_problem: OnProblem) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV that hold something, each with its line number."""
    reader = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
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
    """The rows below a CSV's header as mappings, each with where it stands."""
    columns: list[str] | None = None
    for line, cells in csv_cells(source, _text(source), on_problem):
        if columns is None:
            columns = [cell.lower() for cell in cells]
        elif len(cells) != len(columns):
            on_problem(f"{source}, line {line}: found {len(cells)} fields, expected {len(columns)}; check its quotes")
        else:
            yield f"{source}, line {line}", dict(zip(columns, cells, strict=True))


KINETICS, SOMETHING, UCF, HMDB, EPIC = (
    "Kinetics",
    "Something-Something-v2",
    "UCF101",
    "HMDB51",
    "EPIC-Kitchens-100",
)


def _recognise_file(source: Path) -> Annotations | None:
    name, part = source.name, _PARTS["train"]
    if match := _SOMETHING_FILE.fullmatch(name):
        if match[2].lower() == "labels":
            raise DataError(f"{source} is the list of classes; give the training list or the folder of both")
        return Annotations(SOMETHING, {_PARTS[match[2].lower()]: (source,)}, is_folder=False)
    if source.suffix.lower() == ".json":
        raise DataError(
            f"{source}: a JSON of no known layout; expected something-something-v2-train.json beside -labels"
        )
    if (match := _UCF_FILE.fullmatch(name)) and all("/" in line for line in _lines(source)):
        return Annotations(UCF, {_PARTS[match[1]]: (source,)}, is_folder=False)
    if match := _HMDB_FILE.fullmatch(name):
        raise DataError(
            f"{source} is one class of split {match[2]} of HMDB51; give its folder, {source.parent}, "
            f"and --split-number {match[2]}"
        )
    columns = _header(source)
    if match := _KINETICS_FILE.fullmatch(name):
        part = _PARTS[match[1].lower()]
    if "youtube_id" in columns:
        _require(source, columns, _KINETICS_COLUMNS, KINETICS)
        return Annotations(KINETICS, {part: (source,)}, is_folder=False)
    if "video_id" in columns and {"start_timestamp", "stop_timestamp", *_EPIC_CLASS_COLUMNS} & set(columns):
        _require(source, columns, _EPIC_COLUMNS, EPIC)
        if set(_EPIC_CLASS_COLUMNS) & set(columns):
            _require(source, columns, _EPIC_CLASS_COLUMNS, EPIC)
        return Annotations(EPIC, {part: (source,)}, is_folder=False)
    return None


def _kinetics_in(folder: Path, split_number: int) -> Annotations | None:
    files: dict[Part, tuple[Path, ...]] = {}
    for file in _files(folder):
        if (match := _KINETICS_FILE.fullmatch(file.name)) and "youtube_id" in (columns := _header(file)):
            _require(file, columns, _KINETICS_COLUMNS, KINETICS)
            part = _PARTS[match[1].lower()]
            if part in files:
                raise DataError(
                    f"{folder}: {files[part][0].name} and {file.name} both list {part} clips; give one of the files"
                )
            files[part] = (file,)
    return Annotations(KINETICS, files, is_folder=True) if files else None


def _something_in(folder: Path, split_number: int) -> Annotations | None:
    found = {match[2].lower(): file for file in _files(folder) if (match := _SOMETHING_FILE.fullmatch(file.name))}
    files: dict[Part, tuple[Path, ...]] = {
        _PARTS[name]: (file,) for name, file in found.items() if name in _PARTS and "labels" in found
    }
    return Annotations(SOMETHING, files, is_folder=True) if files else None


def _ucf_in(folder: Path, split_number: int) -> Annotations | None:
    found = [(file, match) for file in _files(folder) if (match := _UCF_FILE.fullmatch(file.name))]
    files: dict[Part, tuple[Path, ...]] = {
        _PARTS[match[1]]: (file,) for file, match in found if int(match[2]) == split_number
    }
    return _chosen_split(UCF, folder, files, {int(match[2]) for _, match in found}, split_number)


def _hmdb_in(folder: Path, split_number: int) -> Annotations | None:
    found = [(file, match) for file in _files(folder) if (match := _HMDB_FILE.fullmatch(file.name))]
    chosen = tuple(file for file, match in found if int(match[2]) == split_number)
    files: dict[Part, tuple[Path, ...]] = {"train": chosen, "test": chosen} if chosen else {}
    return _chosen_split(HMDB, folder, files, {int(match[2]) for _, match in found}, split_number)


def _epic_in(folder: Path, split_number: int) -> Annotations | None:
    files: dict[Part, tuple[Path, ...]] = {
        part: (folder / name,) for part, name in _EPIC_FILES.items() if (folder / name).is_file()
    }
    for (file,) in files.values():
        _require(file, _header(file), (*_EPIC_COLUMNS, *_EPIC_CLASS_COLUMNS), EPIC)
    return Annotations(EPIC, files, is_folder=True) if files else None


_FINDERS = (_kinetics_in, _something_in, _ucf_in, _hmdb_in, _epic_in)


def _chosen_split(
    layout: str, folder: Path, files: Mapping[Part, tuple[Path, ...]], numbers: set[int], split_number: int
) -> Annotations | None:
    if not numbers:
        return None
    if not files:
        raise DataError(
            f"{folder} holds {layout}'s splits {sorted(numbers)} and no split {split_number}; choose another"
        )
    remark = f"split {split_number} of {', '.join(map(str, sorted(numbers)))}"
    return Annotations(layout, files, is_folder=True, remark=remark if len(numbers) > 1 else "")


def _collect(folder: Path, paths: dict[str, list[Path]], parents: tuple[str, ...]) -> None:
    """Note every video below `folder` whose name is wanted; a link back to a parent is not followed."""
    here = os.path.realpath(folder)
    if here in parents:
        return
    try:
        with os.scandir(folder) as items:
            found = sorted((item.name, item.is_dir()) for item in items if not item.name.startswith("."))
    except OSError as error:
        if parents:  # what it may hold is counted among what is not found
            return
        raise DataError(f"{folder} cannot be listed ({error.strerror}); expected a readable folder") from error
    for name, is_folder in found:
        path = folder / name
        if not is_folder:
            stem, suffix = os.path.splitext(name)
            if stem in paths and suffix.lower() in VIDEO_SUFFIXES:
                paths[stem].append(path)
        elif name in paths and _holds_images(path):
            paths[name].append(path)
        elif name != _FLOW_FOLDER:
            _collect(path, paths, (*parents, here))


def _holds_images(folder: Path) -> bool:
    """Whether a folder starts with images; one of EPIC-Kitchens' may hold a hundred thousand."""
    try:
        with os.scandir(folder) as items:
            return any(os.path.splitext(item.name)[1].lower() in IMAGE_SUFFIXES for item in islice(items, 8))
    except OSError:
        return False


def _rank(clip: ListedClip, path: Path) -> tuple[list[bool], str]:
    """The smaller, the likelier that a path is a clip's."""
    folders = {_letters(part) for part in path.parts[:-1]}
    return [_letters(name) not in folders for name in clip.folders], path.as_posix()


def _letters(text: str) -> str:
    """What is left of a name in spelling variants: blanks or underscores, brackets, punctuation."""
    return "".join(character for character in text.casefold() if character.isalnum())


def _stem(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError:
        return []


def _text(source: Path) -> str:
    try:
        return source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read as UTF-8 text: {error}") from error


def _lines(source: Path) -> list[str]:
    return [line.strip() for line in _text(source).split("\n") if line.strip()]


def _header(source: Path) -> list[str]:
    """The first row of a CSV in lower case; nothing where it is no such file."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            return [cell.strip().lower() for cell in next(csv.reader([file.readline(100_000)]), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _require(source: Path, columns: Sequence[str], wanted: Sequence[str], layout: str) -> None:
    if missing := [name for name in wanted if name not in columns]:
        raise DataError(
            f"{source} looks like {layout} and has no column {' or '.join(missing)}; found {','.join(columns)}"
        )


def _json(source: Path, kind: type) -> Any:
    try:
        value = json.loads(_text(source))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source} is no JSON: {error}") from error
    if not isinstance(value, kind):
        raise DataError(f"{source}: found a JSON {type(value).__name__}, expected a {kind.__name__}")
    return value


def _something_labels(source: Path, prefix: str) -> tuple[str, ...]:
    path = source.parent / f"{prefix}labels.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the classes of {source.name} beside it")
    numbers = _json(path, dict)
    try:
        return tuple(sorted(numbers, key=lambda label: int(numbers[label])))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: found a class without a number; expected {{class: number}}") from error


def _something_answers(folder: Path, prefix: str) -> dict[str, str]:
    for name in (f"{prefix}test-answers.csv", "test-answers.csv"):
        if (folder / name).is_file():
            pairs = (line.partition(";") for line in _lines(folder / name))
            return {number.strip(): label.strip() for number, _, label in pairs}
    return {}


def _ucf_classes(index: Path) -> list[str]:
    numbers = {}
    for line in _lines(index):
        match = re.fullmatch(r"(\d+)\s+(\S.*)", line)
        if match is None:
            raise DataError(f"{index}: found {line!r}; expected <number> <class>")
        numbers[match[2]] = int(match[1])
    return sorted(numbers, key=lambda label: numbers[label])


def _tell_unknown(source: Path, unknown: Sequence[str], where: str, on_problem: OnProblem) -> None:
    if unknown:
        found = f"{counted(len(unknown), 'clip')} of a class that {where} lacks"
        on_problem(f"{source}: {found}: {listed(sorted(set(unknown)))}; expected only its classes")


def _whole_seconds(cell: str, where: str) -> int:
    if not re.fullmatch(r"\d+(\.0*)?", cell):
        raise DataError(f"{where}: found {cell!r} as a time; expected whole seconds, as in the videos' names")
    return int(float(cell))


def _class_number(cell: str, where: str) -> int:
    if not re.fullmatch(r"\d+", cell):
        raise DataError(f"{where}: found {cell!r} as a class; expected its number")
    return int(cell)


def _epic_seconds(cell: str, where: str) -> float:
    match = _EPIC_TIME.fullmatch(cell)
    if match is None:
        raise DataError(f"{where}: found {cell!r} as a time; expected hours:minutes:seconds")
    return round(3600 * int(match[1]) + 60 * int(match[2]) + float(match[3]), 6)


def _epic_classes(source: Path, on_problem: OnProblem) -> dict[int, str]:
    """The names of the classes by number; empty where there is no such file."""
    if not source.is_file():
        return {}
    _require(source, _header(source), ("id", "key"), EPIC)
    return {_class_number(row["id"], where): row["key"] for where, row in csv_rows(source, on_problem)}


def _epic_named(names: Sequence[Mapping[int, str]], classes: Sequence[int]) -> tuple[str, ...]:
    return tuple(of.get(number, str(number)) for of, number in zip(names, classes, strict=True))


def _epic_heads(
    kinds: tuple[str, ...], names: Sequence[Mapping[int, str]], every: Iterable[tuple[int, ...]]
) -> LabelSpace:
    """The classes of each head: those of its class file, or those that occur."""
    numbers = [sorted({*of, *(classes[place] for classes in every)}) for place, of in enumerate(names)]
    classes = [tuple(of.get(number, str(number)) for number in each) for of, each in zip(names, numbers, strict=True)]
    return LabelSpace(tuple(classes), kinds)


def _epic_numbers(source: Path, kinds: Sequence[str], names: Sequence[Mapping[int, str]]) -> set[tuple[int, ...]]:
    """All classes of the data set: those of the class file, or those that occur in its training and validation list."""
    if len(kinds) == 1 and names[0]:
        return {(number,) for number in names[0]}
    columns = [f"{kind}_class" for kind in kinds]
    every = set()
    for file in (source.parent / name for name in _EPIC_FILES.values()):
        if not file.is_file() or not set(columns) <= set(_header(file)):
            continue
        for _, row in csv_rows(file, lambda problem: None):
            if all(re.fullmatch(r"\d+", row[column]) for column in columns):
                every.add(tuple(int(row[column]) for column in columns))
    return {
        numbers for numbers in every if all(not of or number in of for of, number in zip(names, numbers, strict=True))
    }
