"""Which videos there are and what each one shows: read from folders or lists, split, checked. None is opened.

folder per class        gestures/left/a.mp4, gestures/up/subject1/b.mp4, gestures/up/c/0001.jpg, 0002.jpg …
folders per split       gestures/train/left/a.mp4, gestures/val/left/b.mp4     (val, validation or test)
CSV                     path,label  or  path,label,start,end  (seconds); two columns may come without a header
                        path,label:verb,label:noun  for a class of each of several heads
released list           <path> <class number>                 paths may hold spaces
public data sets        the annotations of Kinetics, Something-Something-v2 and others: see `layouts`
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stadapter.errors import DataError, SettingsError, counted, listed
from stadapter.labels import LabelSpace, joined, qualified
from stadapter.layouts import (
    EPIC,
    Annotations,
    LabelKind,
    ListedClip,
    OnProblem,
    Part,
    csv_cells,
    find_videos_of,
    read_listing,
    recognise,
)
from stadapter.video import is_video

TRAIN_FOLDER = "train"
VALIDATION_FOLDERS = ("val", "validation", "test")
SPLIT_FOLDERS = (TRAIN_FOLDER, *VALIDATION_FOLDERS)

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


@dataclass(frozen=True)
class Entry:
    """One labelled clip: a whole video, or a segment of one."""

    path: Path
    """Absolute path of a video file, or of a folder of numbered images."""
    name: str
    """The path relative to the data folder, with forward slashes: the same on every machine."""
    label: str | None
    """Class name; None where a list gives none."""
    start_seconds: float | None = None
    """Start of the segment; None for the start of the video."""
    end_seconds: float | None = None
    """End of the segment; None for the end of the video."""
    frames_per_second: float | None = None
    """Rate of a folder of images, where it is known; None for files, which tell their own."""
    by_head: tuple[tuple[str, str], ...] = ()
    """Name of the head and class, where a clip has a class of several; `label` is then these classes joined."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Its class, or those of its heads as `LabelSpace.labels` has them; none without a label."""
        if self.by_head:
            return tuple(qualified(head, label) for head, label in self.by_head)
        return () if self.label is None else (self.label,)


@dataclass(frozen=True)
class Manifest:
    """The labelled clips of one data set, and what was left out of it."""

    entries: tuple[Entry, ...]
    """The clips, in the order of the list, or sorted by class and path for folders."""
    labels: tuple[str, ...]
    """The class names: those that occur, sorted, by value where all are whole numbers; or all of a public data set,
    in its own order."""
    missing: tuple[str, ...] = ()
    """Names that a list holds and the disk does not; they are no entries."""
    ignored: tuple[str, ...] = ()
    """Files in the folders that are no labelled video; they are no entries."""
    remarks: tuple[str, ...] = ()
    """Sentences on how annotations were understood."""
    num_held_out: int = 0
    """Clips that were taken out of it to validate on."""
    heads: LabelSpace | None = None
    """Classes of each head, where clips have a class of several; `labels` are then the combinations that occur."""
    is_numbered: bool = False
    """Whether a released list told the classes by their numbers; `labels` are then such numbers."""

    @property
    def label_space(self) -> LabelSpace:
        """What a classifier trained on it can name."""
        return self.heads if self.heads is not None else LabelSpace.of(self.labels)

    def hash(self) -> str:
        """sha256 hex over the sorted (name, label, start, end, size in bytes) of all clips.

        Another machine with the same files gets the same hash; no video is opened.
        """
        sizes = {path: size_bytes(path) for path in {entry.path for entry in self.entries}}
        rows = sorted(
            json.dumps(
                [entry.name, entry.by_head or entry.label, entry.start_seconds, entry.end_seconds, sizes[entry.path]]
            )
            for entry in self.entries
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Number of clips of every class of every head, in the order of `label_space.labels`."""
        counts = dict.fromkeys(self.label_space.labels, 0)
        for entry in self.entries:
            for label in entry.classes:
                counts[label] += 1
        return counts

    def named(self, labels: Sequence[str]) -> "Manifest":
        """The same clips by the names of a classifier's classes, where a list told these by number: n is labels[n].

        A manifest that has names already, or a classifier whose classes are called by numbers too, changes nothing.

        Raises:
            DataError: a number beyond the classes.
        """
        if not self.is_numbered or set(self.labels) & set(labels):
            return self
        if (highest := int(self.labels[-1])) >= len(labels):
            raise DataError(
                f"class number {highest} in the list; expected 0 to {len(labels) - 1}, as the classifier tells "
                f"{counted(len(labels), 'class')} apart: is it the list of another data set?"
            )
        remark = f"class numbers are places among the classifier's classes: 0 is {labels[0]!r}"
        return replace(
            self,
            entries=tuple(replace(entry, label=labels[int(entry.label or 0)]) for entry in self.entries),
            labels=tuple(labels[int(number)] for number in self.labels),
            remarks=(*self.remarks, remark),
            is_numbered=False,
        )

    def notes(self) -> list[str]:
        """Sentences on how it was read and what was left out, to be shown to the user; often empty."""
        notes = list(self.remarks)
        if self.missing:
            total = len(self.entries) + self.num_held_out + len(self.missing)
            notes.append(f"{len(self.missing)} of {counted(total, 'listed clip')} not found: {listed(self.missing)}")
        if self.ignored:
            notes.append(
                f"{counted(len(self.ignored), 'file')} ignored, without a label or no video: {listed(self.ignored)}"
            )
        return notes


def refuse(problem: str) -> None:
    """Do not go on.

    Raises:
        DataError: always.
    """
    raise DataError(problem)


def read_manifest(
    data: str | os.PathLike[str],
    *,
    video_root: str | os.PathLike[str] | None = None,
    label_kind: LabelKind = "action",
    split_number: int = 1,
    on_problem: OnProblem = refuse,
) -> Manifest:
    """Read the videos and labels of a folder per class, a CSV, a released list or a public data set's annotations.

    Of a folder of annotations this is the validation part, else the test part. Everything that is wrong is told to
    `on_problem`; where that does not raise, what is left is returned.

    Args:
        data: the folder or list.
        video_root: the folder that the paths in a list are relative to, by default that of the list; with the
            annotations of a public data set, a folder that holds its videos at any depth, by default that of the
            annotations or the one above.
        label_kind: what EPIC-Kitchens clips are labelled with: an action is a verb and a noun as one class; with
            verb+noun every clip has a class of each of two heads.
        split_number: which of the splits of UCF101 or HMDB51, where a folder holds several.

    Raises:
        DataError: nothing there, no videos, a class folder without videos, a list that cannot be understood
            or whose files do not exist, or a folder of splits (name one of them, or use `read_splits`).
    """
    source = _absolute(data)
    if not os.path.exists(source):
        on_problem(f"{data}: no such file or folder; expected a folder of class folders, a CSV or a list")
        return _NOTHING
    try:
        if annotations := recognise(source, split_number=split_number):
            return _read_annotations(
                annotations, annotations.held_out or "train", source, video_root, label_kind, on_problem
            )
    except DataError as error:
        on_problem(str(error))
        return _NOTHING
    if source.is_file():
        return _read_list(source, _absolute(video_root) if video_root is not None else source.parent, on_problem)
    splits = _split_folders(source, on_problem)
    if len(splits) > 1:
        found, first = ", ".join(f"{name}/" for name in splits), source / next(iter(splits))
        on_problem(f"{data} holds the splits {found}; expected one of them: name {first}")
    for folder in splits.values():
        return _read_class_folders(folder, source, on_problem)
    return _read_class_folders(source, source, on_problem)


def read_splits(
    data: str | os.PathLike[str],
    *,
    val_fraction: float = 0.2,
    val_data: str | os.PathLike[str] | None = None,
    video_root: str | os.PathLike[str] | None = None,
    label_kind: LabelKind = "action",
    split_number: int = 1,
    on_problem: OnProblem = refuse,
) -> tuple[Manifest, Manifest | None]:
    """Read a data set to train on, and the clips to validate on.

    Validation clips are, in this order: `val_data` where given; the folder val/, validation/ or test/ beside
    train/, or the validation or test part of a folder of annotations; else about `val_fraction` of the videos of a
    class, at least one, chosen by a hash of the name. All segments cut from one file stay on one side within a class.
    Of several heads it is a combination of their classes; one with a single video is trained on. With `val_fraction`
    0 and no such folders there are none (None). Everything that is wrong is told to `on_problem`; where that does not
    raise, what is left is returned.

    `video_root`, `label_kind` and `split_number` are as in `read_manifest`; they hold for both.

    Raises:
        SettingsError: `val_fraction` is not in [0, 1).
        DataError: as `read_manifest`; one class only; clips without a label; a class with one video where one
            is to be held out; validation clips without a label or with one that training lacks.
    """
    if not 0 <= val_fraction < 1:
        raise SettingsError(f"val_fraction is {val_fraction}; expected at least 0 and less than 1")
    source = _absolute(data)
    try:
        annotations = recognise(source, split_number=split_number)
    except DataError as error:
        on_problem(str(error))
        return _NOTHING, None
    val: Manifest | None = None
    splits = _split_folders(source, on_problem) if source.is_dir() and not annotations else {}
    if annotations:
        train, val = _read_parts(annotations, source, video_root, label_kind, on_problem, with_val=val_data is None)
    elif splits:
        train = _read_train_folder(source, splits, on_problem)
    else:
        train = read_manifest(data, video_root=video_root, on_problem=on_problem)
    _check_trainable(train, data, on_problem)
    if val_data is not None:
        val = read_manifest(
            val_data, video_root=video_root, label_kind=label_kind, split_number=split_number, on_problem=on_problem
        )
    elif held_out := [name for name in VALIDATION_FOLDERS if name in splits]:
        val = _read_class_folders(splits[held_out[0]], source, on_problem)
    elif val is None:
        return _hold_out(train, val_fraction, on_problem) if val_fraction and train.labels else (train, None)
    _check_labelled(val, val_data or data, on_problem)
    if train.labels and (unknown := sorted(train.label_space.unknown(val.label_space))):
        on_problem(
            f"{counted(len(unknown), 'validation class')} not in the training data: {listed(unknown)}; "
            f"training has {listed(train.label_space.labels)}"
        )
    return train, val


def find_videos(folder: str | os.PathLike[str], *, on_problem: OnProblem = refuse) -> tuple[list[Path], list[Path]]:
    """All videos below a folder, sorted, and the files that are none; hidden ones are passed over.

    A folder of numbered images is one video. A link back to a parent folder is not followed. A folder that
    cannot be listed is told to `on_problem`.

    Raises:
        DataError: the folder cannot be listed.
    """
    videos: list[Path] = []
    others: list[Path] = []
    for path, video in _walk(_absolute(folder), on_problem):
        (videos if video else others).append(path)
    return videos, others


def sort_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Distinct class names in order: by value where all are whole numbers, else alphabetically.

    >>> sort_labels(["10", "9", "9"]), sort_labels(["up", "10", "9"])
    (('9', '10'), ('10', '9', 'up'))
    """
    distinct = set(labels)
    if all(re.fullmatch(r"[0-9]+", label) for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


_NOTHING = Manifest((), ())


def _absolute(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):
        raise DataError("an empty path; expected a folder or a list")  # Path("") would be the working directory
    return Path(os.path.abspath(Path(path).expanduser()))


def size_bytes(path: Path) -> int:
    """Bytes of a file, or of the files in a folder of images; -1 if it has gone since it was listed."""
    try:
        if path.is_dir():
            return sum(item.stat().st_size for item in os.scandir(path) if not _hidden(item.name))
        return path.stat().st_size
    except OSError:
        return -1


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _listed(folder: Path, on_problem: OnProblem) -> list[Path]:
    try:
        return sorted(item for item in folder.iterdir() if not _hidden(item.name))
    except OSError as error:
        on_problem(f"{folder} cannot be listed ({error.strerror}); expected a readable folder")
        return []


def looks_like_video(path: Path) -> bool:
    """Whether a path is a video by its name, as `is_video`; not so where nobody may look."""
    try:
        return is_video(path)
    except OSError:  # a folder that cannot be listed; listing it says so
        return False


def _walk(folder: Path, on_problem: OnProblem, parents: tuple[str, ...] = ()) -> Iterator[tuple[Path, bool]]:
    """Every file or folder of images below `folder`, sorted, each with whether it is a video."""
    here = os.path.realpath(folder)
    if here in parents:
        return
    for path in _listed(folder, on_problem):
        if looks_like_video(path):
            yield path, True
        elif os.path.isdir(path):
            yield from _walk(path, on_problem, (*parents, here))
        else:
            yield path, False


def _holds_videos(folder: Path, on_problem: OnProblem) -> bool:
    return any(video for _, video in _walk(folder, on_problem))


def _split_folders(root: Path, on_problem: OnProblem) -> dict[str, Path]:
    """The split folders of `root` by name, or nothing where "train" or "test" is just the name of a class.

    A split folder holds class folders. One alone is a split only when nothing beside it holds videos.
    """
    folders = [path for path in _listed(root, on_problem) if os.path.isdir(path)]
    found = {
        path.name: path
        for path in folders
        if path.name in SPLIT_FOLDERS
        and any(
            os.path.isdir(inner) and not looks_like_video(inner) and _holds_videos(inner, on_problem)
            for inner in _listed(path, on_problem)
        )
    }
    if len(found) == 1 and any(path not in found.values() and _holds_videos(path, on_problem) for path in folders):
        return {}
    return dict(sorted(found.items(), key=lambda item: SPLIT_FOLDERS.index(item[0])))


def _read_train_folder(source: Path, splits: dict[str, Path], on_problem: OnProblem) -> Manifest:
    if TRAIN_FOLDER not in splits:
        on_problem(
            f"{source} holds {', '.join(f'{name}/' for name in splits)} and no {TRAIN_FOLDER}/ with class "
            f"folders; add one, or name the folder to train on"
        )
        return _NOTHING
    for name in VALIDATION_FOLDERS:
        if name not in splits and (source / name).is_dir():
            on_problem(
                f"{source / name} holds no class folders with videos, and {TRAIN_FOLDER}/ beside it does; "
                f"fill it or remove it"
            )
    return _read_class_folders(splits[TRAIN_FOLDER], source, on_problem)


def _read_class_folders(folder: Path, root: Path, on_problem: OnProblem) -> Manifest:
    entries: list[Entry] = []
    ignored: list[str] = []
    loose: list[str] = []
    empty: list[str] = []
    for path in _listed(folder, on_problem):
        if looks_like_video(path):
            loose.append(path.relative_to(root).as_posix())
        elif not os.path.isdir(path):
            ignored.append(path.relative_to(root).as_posix())
        else:
            found = list(_walk(path, on_problem, (os.path.realpath(folder),)))
            videos = [inner for inner, video in found if video]
            entries += [Entry(video, video.relative_to(root).as_posix(), path.name) for video in videos]
            ignored += [inner.relative_to(root).as_posix() for inner, video in found if not video]
            if not videos:
                empty.append(f"{path.name}/")
    if not entries:
        on_problem(_nothing_found(folder, loose, ignored))
    elif empty:
        on_problem(
            f"{folder}: {counted(len(empty), 'class folder')} without a video: {listed(empty)}; "
            "add videos or move them elsewhere"
        )
    labels = sort_labels([entry.label for entry in entries if entry.label is not None])
    return Manifest(tuple(entries), labels, ignored=tuple(loose + ignored))


def _nothing_found(folder: Path, loose: Sequence[str], ignored: Sequence[str]) -> str:
    expected = f"expected one folder per class, such as {folder.name}/wave/clip.mp4"
    if loose:
        return (
            f"{folder}: {counted(len(loose), 'video')} in it without a class folder ({listed(loose, 3)}); {expected} "
            f"(a folder of numbered images is one video)"
        )
    found = f"no video, only {listed(ignored, 3)}" if ignored else "no files"
    return f"{folder}: found {found}; {expected}"


def _read_parts(
    annotations: Annotations,
    source: Path,
    video_root: str | os.PathLike[str] | None,
    label_kind: LabelKind,
    on_problem: OnProblem,
    *,
    with_val: bool,
) -> tuple[Manifest, Manifest | None]:
    """The clips to train on that annotations list, and those to validate on if they list them and they are wanted."""

    def read(part: Part) -> Manifest:
        return _read_annotations(annotations, part, source, video_root, label_kind, on_problem)

    if not annotations.is_folder:
        return read(next(iter(annotations.files))), None
    if "train" not in annotations.files:
        names = ", ".join(file.name for files in annotations.files.values() for file in files[:1])
        on_problem(f"{source}: read as {annotations.layout}, found {names} and no list of clips to train on; add it")
        return _NOTHING, None
    held_out = annotations.held_out if with_val else None
    return read("train"), read(held_out) if held_out is not None else None


def _read_annotations(
    annotations: Annotations,
    part: Part,
    source: Path,
    video_root: str | os.PathLike[str] | None,
    label_kind: LabelKind,
    on_problem: OnProblem,
) -> Manifest:
    try:
        listing = read_listing(annotations, part, label_kind=label_kind, on_problem=on_problem)
        root, paths = _find_listed(annotations, listing.clips, source, video_root)
    except DataError as error:
        on_problem(str(error))
        return _NOTHING
    clips = list(dict.fromkeys(listing.clips))
    entries = tuple(_annotated_entry(clip, paths[clip], root) for clip in clips if clip in paths)
    if annotations.layout != EPIC:  # where a narrator may tell one segment twice
        _check_one_label(source, entries, on_problem)
    read_as = annotations.files[part][0].name if len(annotations.files[part]) == 1 else annotations.remark
    read_as = ", ".join(dict.fromkeys([part, read_as, annotations.remark])) if annotations.remark else read_as
    remarks = [f"read as {annotations.layout} ({read_as}), videos below {root}"]
    if repeated := len(listing.clips) - len(clips):
        remarks.append(f"{counted(repeated, 'line')} listed twice, counted once")
    labels = listing.labels
    if labels is None:
        labels = sort_labels([clip.label for clip in clips if clip.label is not None])
    missing = tuple(clip.title for clip in clips if clip not in paths)
    return Manifest(entries, labels, missing=missing, remarks=tuple(remarks), heads=listing.heads)


def _find_listed(
    annotations: Annotations, clips: Sequence[ListedClip], source: Path, video_root: str | os.PathLike[str] | None
) -> tuple[Path, dict[ListedClip, Path]]:
    """The folder that holds the videos, and the video of every clip that has one.

    Raises:
        DataError: there are none, or no clips at all.
    """
    where = f"{source}: read as {annotations.layout}"
    if not clips:
        raise DataError(f"{where}, it lists no clip; expected one a line")
    folder = annotations.folder
    roots = [_absolute(video_root)] if video_root is not None else [source, folder, folder.parent]
    for root in dict.fromkeys(root for root in roots if root.is_dir() and root != root.parent):
        if paths := find_videos_of(clips, root):
            return root, paths
    looked = " or ".join(map(str, dict.fromkeys(root for root in roots if not root.is_file())))
    raise DataError(
        f"{where}, none of its {counted(len({clip.stem for clip in clips}), 'video')} found, first "
        f"{clips[0].stem} with the suffix of a video, below {looked}; give the folder of videos with --video-root"
    )


def _annotated_entry(clip: ListedClip, path: Path, root: Path) -> Entry:
    name = path.relative_to(root).as_posix()
    rate = clip.frames_per_second if path.is_dir() else None
    return Entry(path, name, clip.label, clip.start_seconds, clip.end_seconds, rate, clip.by_head)


def _read_list(source: Path, root: Path, on_problem: OnProblem) -> Manifest:
    if looks_like_video(source):
        on_problem(f"{source} is one video; expected a folder with one sub-folder of videos per class, or a list")
        return _NOTHING
    text = _read_text(source, root, on_problem)
    if text is None:
        return _NOTHING
    released = _is_released(source, text)
    try:
        rows = list(_released_rows(text, root) if released else _csv_rows(source, text, root, on_problem))
    except DataError as error:  # its header is not understood, and so nothing below it
        on_problem(str(error))
        return _NOTHING
    if not rows:
        on_problem(
            f"{source} holds no clips; expected a line path,label for each clip, below the header if there is one"
        )
        return _NOTHING
    _check_one_label(source, rows, on_problem)
    present = [os.path.exists(entry.path) for entry in rows]
    if not any(present):
        form = "<path> <class number>" if released else "path,label"
        on_problem(
            f"{source}: read as {form}, none of its {counted(len(rows), 'file')} exists, first {rows[0].path}; "
            f"expected paths relative to {root}: give another root if they start elsewhere"
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
                    f"{source}, line {line}: found {len(cells)} fields, expected {len(columns)} "
                    f"({','.join(columns)}); put a path that holds a comma in double quotes"
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
    path = _absolute(root / written)
    inside = path.is_relative_to(root) or not Path(written).is_absolute()
    name = Path(os.path.relpath(path, root)) if inside else path
    return Entry(path, name.as_posix(), label, start, end)


def _check_one_label(source: Path, entries: Sequence[Entry], on_problem: OnProblem) -> None:
    labels: dict[tuple[Path, float | None, float | None], str | None] = {}
    for entry in entries:
        known = labels.setdefault((entry.path, entry.start_seconds, entry.end_seconds), entry.label)
        if known != entry.label:
            on_problem(
                f"{source}: {entry.name} is listed as {known!r} and as {entry.label!r}; expected one label a clip"
            )


def _check_trainable(manifest: Manifest, data: str | os.PathLike[str], on_problem: OnProblem) -> None:
    _check_labelled(manifest, data, on_problem)
    counts = manifest.counts()
    for classes in manifest.label_space.labels_by_head:
        present = [label for label in classes if counts[label]]
        if len(present) == 1:
            on_problem(f"{data}: found one class only, {present[0]!r}; expected at least two to tell apart")


def _check_labelled(manifest: Manifest, data: str | os.PathLike[str], on_problem: OnProblem) -> None:
    unlabelled = [entry.name for entry in manifest.entries if entry.label is None]
    if unlabelled:
        found = f"{counted(len(unlabelled), 'clip')} without a label ({listed(unlabelled, 3)})"
        on_problem(f"{data}: {found}; expected one for each")


def _hold_out(manifest: Manifest, fraction: float, on_problem: OnProblem) -> tuple[Manifest, Manifest]:
    names: dict[str, list[str]] = {label: [] for label in manifest.labels}
    for entry in manifest.entries:
        if entry.label is not None:
            names[entry.label].append(entry.name)
    held: set[tuple[str, str]] = set()
    alone = []
    for label, of_class in names.items():
        ordered = sorted(
            set(of_class), key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        )
        if not ordered:  # a class of a public data set of which no video is there
            continue
        if len(ordered) < 2:
            alone.append(label)
        num_held = min(max(1, round(fraction * len(ordered))), len(ordered) - 1)
        held.update((label, name) for name in ordered[:num_held])
    if alone and (manifest.heads is None or not held):  # of several heads each class alone is in other combinations too
        on_problem(
            f"{counted(len(alone), 'class')} with one video only: {listed(alone)}; expected two or more to hold "
            f"one out for validation: add videos, give validation data, or train on everything with --val-fraction 0"
        )
    train = tuple(entry for entry in manifest.entries if (entry.label, entry.name) not in held)
    val = tuple(entry for entry in manifest.entries if (entry.label, entry.name) in held)
    return replace(manifest, entries=train, num_held_out=len(val)), Manifest(val, manifest.labels, heads=manifest.heads)
