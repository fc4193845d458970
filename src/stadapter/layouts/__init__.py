"""The annotations of public data sets as published: which clips they list, and where those are.

layout                  recognised by                                        a clip's video
Kinetics                CSV columns label, youtube_id, time_start, time_end  <youtube_id>_<start:06d>_<end:06d>.mp4
Something-Something-v2  something-something-v2-train.json, -labels.json      <id>.webm
UCF101                  trainlist01.txt, testlist01.txt, classInd.txt        <class>/v_<class>_g01_c01.avi
HMDB51                  <class>_test_split1.txt for every class              <class>/<name>.avi
EPIC-Kitchens-100       CSV columns video_id, start_timestamp, …             P01/videos/P01_01.MP4, a folder of frames

Videos are looked up by name, with any suffix, in any folder below the root. None is opened.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from stadapter.errors import DataError
from stadapter.labels import LabelKind
from stadapter.layouts import epic_kitchens, hmdb51, kinetics, something_something, ucf101
from stadapter.layouts.reading import (
    PART_NAMES,
    PARTS,
    Annotations,
    ListedClip,
    Listing,
    OnProblem,
    Part,
    csv_cells,
    held_out_part,
    read_text,
)
from stadapter.layouts.videos import find_videos_of

__all__ = [
    "EPIC",
    "HMDB",
    "NUM_SPLITS",
    "PARTS",
    "PART_NAMES",
    "UCF",
    "Annotations",
    "ListedClip",
    "OnProblem",
    "Part",
    "csv_cells",
    "find_videos_of",
    "held_out_part",
    "read_listing",
    "read_text",
    "recognise",
]

UCF = ucf101.NAME
HMDB = hmdb51.NAME
EPIC = epic_kitchens.NAME
NUM_SPLITS = 3
"""Number of splits of UCF101 and of HMDB51."""


class Layout(Protocol):
    """What the module of each layout provides."""

    NAME: str

    def recognise_file(self, source: Path) -> Annotations | None:
        """The annotations in one file; None if it is of another layout."""

    def recognise_folder(self, folder: Path, split_number: int) -> Annotations | None:
        """The annotations in a folder; None if it has none of this layout."""

    def read(self, files: Sequence[Path], part: Part, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
        """The clips of one part, from its files; problems are reported to `on_problem`."""


_MODULES: tuple[Layout, ...] = (kinetics, something_something, ucf101, hmdb51, epic_kitchens)
_LAYOUTS = {layout.NAME: layout for layout in _MODULES}
_FOLDERS = ("annotations", "labels", "ucfTrainTestlist", "testTrainMulti_7030_splits", "epic-kitchens-100-annotations")
"""Sub-folders of a data set that customarily hold its annotations."""


def recognise(source: Path, *, split_number: int = 1) -> Annotations | None:
    """The annotations in a file or a folder; None if they are of no published layout.

    A folder may hold them directly or in a sub-folder with a customary name, such as annotations/.

    Raises:
        DataError: a published layout with something missing, or several in one folder.
    """
    if source.is_file():
        return _recognise_file(source)
    for folder in (source, *(source / name for name in _FOLDERS)):
        found = [annotations for layout in _MODULES if (annotations := layout.recognise_folder(folder, split_number))]
        if len(found) > 1:
            names = " and of ".join(annotations.layout for annotations in found)
            raise DataError(f"{folder} holds annotations of {names}; expected one data set: name one of its files")
        if found:
            return found[0]
    return None


def read_listing(annotations: Annotations, part: Part, *, label_kind: LabelKind, on_problem: OnProblem) -> Listing:
    """The clips of one part. Problems are reported to `on_problem`; what is left is returned.

    Raises:
        DataError: a file cannot be read or understood at all.
    """
    return _LAYOUTS[annotations.layout].read(annotations.files[part], part, label_kind, on_problem)


def _recognise_file(source: Path) -> Annotations | None:
    for layout in _MODULES:
        if annotations := layout.recognise_file(source):
            return annotations
    if source.suffix.lower() == ".json":
        raise DataError(
            f"{source}: a JSON file of no known layout; expected something-something-v2-train.json next to -labels"
        )
    return None
