"""Folders and lists of labelled clips. No video is opened, so empty files stand for videos."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stadapter.errors import DataError, SettingsError
from stadapter.manifest import (
    Entry,
    Manifest,
    class_folder_roots,
    find_held_out_up_to,
    find_videos,
    read_manifest,
    read_splits,
    sort_labels,
)
from stadapter.manifest.holdout import hold_out


def touch(root: Path, *names: str) -> Path:
    """Make empty files below `root`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def names(manifest: Manifest) -> list[str]:
    return [entry.name for entry in manifest.entries]


def make_gestures(root: Path, per_class: int = 10) -> Path:
    return touch(root, *(f"{label}/{label}_{i:02d}.mp4" for label in ("left", "right") for i in range(per_class)))


def test_a_folder_per_class_is_read_with_relative_names_and_absolute_paths(tmp_path: Path) -> None:
    touch(tmp_path, "up/b.mp4", "up/a.MOV", "down/c.webm")
    manifest = read_manifest(tmp_path)
    assert names(manifest) == ["down/c.webm", "up/a.MOV", "up/b.mp4"]
    assert [entry.label for entry in manifest.entries] == ["down", "up", "up"]
    assert manifest.labels == ("down", "up")
    assert manifest.counts() == {"down": 1, "up": 2}
    assert all(entry.path.is_absolute() and entry.path.is_file() for entry in manifest.entries)
    assert manifest.notes() == []


def test_the_disk_is_asked_once_for_each_video_and_once_more_for_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a network disk every question takes a while, and there may be a quarter of a million videos."""
    listed = write(make_gestures(tmp_path) / "list.csv", "".join(f"left/left_{i:02d}.mp4,a\n" for i in range(10)))
    asked: Counter[str] = Counter()
    ask = os.stat

    def noted(path: Any, **how: Any) -> os.stat_result:
        asked[str(path)] += str(path).endswith(".mp4")
        return ask(path, **how)

    monkeypatch.setattr(os, "stat", noted)
    for data in (tmp_path, listed):
        manifest = read_manifest(data)
        assert {asked[str(entry.path)] for entry in manifest.entries} == {1}
        manifest.hash()
        assert {asked[str(entry.path)] for entry in manifest.entries} == {2}
        asked.clear()


def test_names_in_a_list_are_relative_to_its_folder_however_they_are_written(tmp_path: Path) -> None:
    touch(tmp_path, "data/up/a.mp4", "data/up/b.mp4", "data/0001.jpg", "elsewhere/c.mp4", "data2/d.mp4")
    root = tmp_path / "data"
    written = {
        "up//a.mp4": "up/a.mp4",
        "./up/../up/b.mp4": "up/b.mp4",
        f"{root}/up/a.mp4": "up/a.mp4",
        "../elsewhere/c.mp4": "../elsewhere/c.mp4",
        f"{tmp_path}/elsewhere/c.mp4": f"{tmp_path}/elsewhere/c.mp4",
        f"{root}2/d.mp4": f"{root}2/d.mp4",
        ".": ".",
        str(root): ".",
    }
    manifest = read_manifest(write(root / "list.csv", "path,label\n" + "".join(f"{path},x\n" for path in written)))
    assert names(manifest) == list(written.values())
    assert all(entry.path.is_absolute() and entry.path.exists() for entry in manifest.entries)
    assert all(".." not in entry.path.parts for entry in manifest.entries)


def test_a_relative_data_path_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "data/up/b.mp4", "data/down/c.mp4")
    monkeypatch.chdir(tmp_path)
    assert read_manifest("data") == read_manifest(tmp_path / "data")


def test_sub_folders_of_a_class_are_walked_and_a_folder_of_numbered_images_is_one_video(
    tmp_path: Path,
) -> None:
    touch(
        tmp_path,
        "up/anna/1.mp4",
        "up/ben/deep/2.mp4",
        "up/frames/0001.jpg",
        "up/frames/0002.jpg",
        "down/3.mp4",
    )
    assert names(read_manifest(tmp_path)) == ["down/3.mp4", "up/anna/1.mp4", "up/ben/deep/2.mp4", "up/frames"]


def test_hidden_files_are_skipped_and_other_files_are_named_in_a_note(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "up/a.mp4",
        "up/notes.txt",
        "up/.hidden.mp4",
        ".git/x/y.mp4",
        "__MACOSX/up/a.mp4",
        "README.md",
    )
    touch(tmp_path, "loose.mp4")
    manifest = read_manifest(tmp_path)
    assert names(manifest) == ["up/a.mp4"]
    assert sorted(manifest.ignored) == ["README.md", "loose.mp4", "up/notes.txt"]
    assert len(manifest.notes()) == 1
    assert "3 files" in manifest.notes()[0]


def test_a_link_to_a_parent_folder_ends_and_a_link_elsewhere_is_followed(tmp_path: Path) -> None:
    data = touch(tmp_path / "data", "up/a.mp4", "down/b.mp4")
    touch(tmp_path / "elsewhere", "c.mp4")
    (data / "up" / "again").symlink_to(data, target_is_directory=True)
    (data / "down" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert "down/more/c.mp4" in names(read_manifest(data))
    assert len(find_videos(data / "up")[0]) == 3


def test_find_videos_lists_a_flat_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.avi", "notes.txt")
    videos, others = find_videos(tmp_path)
    assert [path.name for path in videos] == ["a.avi", "b.mp4"]
    assert [path.name for path in others] == ["notes.txt"]


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        read_manifest(tmp_path / "nowhere")


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found no files; expected one folder per class"):
        read_manifest(tmp_path)


def test_a_folder_of_other_files_says_what_was_found(tmp_path: Path) -> None:
    touch(tmp_path, "up/a.txt")
    with pytest.raises(DataError, match=r"no video, only up/a.txt"):
        read_manifest(tmp_path)


def test_videos_without_class_folders_are_an_error_that_counts_them(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(DataError, match=r"2 videos not in a class folder \(a.mp4, b.mp4\)"):
        read_manifest(tmp_path)


def test_class_folders_without_videos_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "up/a.mp4", "empty/notes.txt").joinpath("bare").mkdir()
    with pytest.raises(DataError, match=r"2 class folders without a video: bare/, empty/"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("header", ["path,label\n", "Path, Label\n", "\ufeffpath,label\n", ""])
def test_a_two_column_csv_is_read_with_or_without_a_header(tmp_path: Path, header: str) -> None:
    touch(tmp_path, "videos/a b.mp4", "videos/c,d.mp4")
    listed = write(tmp_path / "list.csv", f'{header}videos/a b.mp4,wave hand\n\n"videos/c,d.mp4",clap\n')
    manifest = read_manifest(listed)
    assert [(entry.name, entry.label) for entry in manifest.entries] == [
        ("videos/a b.mp4", "wave hand"),
        ("videos/c,d.mp4", "clap"),
    ]
    assert manifest.labels == ("clap", "wave hand")


def test_csv_segments_are_seconds_and_may_be_open(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    listed = write(tmp_path / "l.csv", "label,path,end,start\nup,a.mp4,2.5,1\ndown,a.mp4,,2.5\nup,a.mp4,1,\n")
    segments = [(entry.label, entry.start_seconds, entry.end_seconds) for entry in read_manifest(listed).entries]
    assert segments == [("up", 1.0, 2.5), ("down", 2.5, None), ("up", None, 1.0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,kind\na,up\n", "unknown columns name,kind; expected path,label"),
        ("a.mp4,up,1,2\n", "unknown columns a.mp4,up,1,2"),
        ("a.mp4,file,video,2\n", "unknown columns a.mp4,file,video,2"),
        ("path,gesture\na.mp4,up\n", "columns path,gesture: none is called label; expected path,label: rename"),
        ("path,label,Video\na.mp4,up,7\n", "path and Video both mean the path; expected one"),
        ("path,label,start,start_seconds\na.mp4,up,0,1\n", "start and start_seconds both mean the start"),
        (
            "path;label\na.mp4;up;extra\n",
            r"found 3 fields, expected 2 \(path;label\); put a path that contains a semicolon",
        ),
        ("path,label,split\na.mp4,up,dev\n", "line 2: found 'dev' as a split; expected train, val or test"),
        ("path,label,split\na.mp4,up,\n", "line 2: found '' as a split"),
        (",,,\n", "unknown columns"),
        ("path,label\na.mp4,up,extra\n", r"line 2: found 3 fields, expected 2 \(path,label\)"),
        ("path,label\na.mp4,\n", "line 2: a.mp4 has no label"),
        ("path,label\n,up\n", "line 2: the path is empty"),
        ("path,label,start,end\na.mp4,up,3,1\n", r"ends at 1.0 s but starts at 3.0 s"),
        ("path,label,start,end\na.mp4,up,soon,1\n", "line 2: found 'soon' as a time"),
        ("path,label,start,end\na.mp4,up,-1,1\n", "line 2: found '-1' as a time"),
        ("path,label,start,end\na.mp4,up,0,inf\n", "line 2: found 'inf' as a time"),
        ("path,label\na.mp4,up\na.mp4,down\n", "a.mp4 is listed as 'up' and as 'down'"),
        ("path,label,start,end\na.mp4,up,,2\na.mp4,down,0,2\n", r"a.mp4 \[0 to 2 s\] is listed as 'up' and as"),
        ('path,label\n"a.mp4,up\n', "not a CSV row"),
        (" \n", "is empty"),
    ],
)
def test_a_csv_that_cannot_be_understood_says_where_and_why(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(DataError, match=message):
        read_manifest(write(tmp_path / "list.csv", text))


@pytest.mark.parametrize(
    ("text", "unused"),
    [
        ("path,label,subject,note\na.mp4,up,anna,\nb.mp4,down,,blurred\n", "subject, note"),
        (",path,label\n0,a.mp4,up\n1,b.mp4,down\n", "one without a name"),
        ("Unnamed: 0,path,label\n0,a.mp4,up\n1,b.mp4,down\n", "Unnamed: 0"),
    ],
)
def test_columns_that_are_not_used_are_told_once(text: str, unused: str, tmp_path: Path) -> None:
    listed = write(touch(tmp_path, "a.mp4", "b.mp4") / "list.csv", text)
    manifest = read_manifest(listed)
    assert [(entry.name, entry.label) for entry in manifest.entries] == [("a.mp4", "up"), ("b.mp4", "down")]
    assert manifest.notes() == [f"unused columns: {unused}"]
    train, _ = read_splits(listed, val_fraction=0)
    assert train.notes() == manifest.notes()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header",
    [["path", "label"], ["FileName", "Class"], ["file", "label"], ["VIDEO", "LABEL"], ["", "path", "label"], []],
)
def test_columns_go_by_everyday_names_and_delimiters(header: list[str], delimiter: str, tmp_path: Path) -> None:
    touch(tmp_path, "a b.mp4", "c.mp4")
    rows = [["a b.mp4", "up"], ["c.mp4", "left 3"]]
    if header:
        rows = [header, *([""] * (len(header) - 2) + row for row in rows)]
    text = "\n".join(delimiter.join(row) for row in rows)
    for name in ("list.csv", "list.tsv"):
        entries = read_manifest(write(tmp_path / name, text)).entries
        assert [(entry.name, entry.label) for entry in entries] == [("a b.mp4", "up"), ("c.mp4", "left 3")]


def test_another_delimiter_within_a_path_or_a_class_is_no_delimiter(tmp_path: Path) -> None:
    touch(tmp_path, "a;b.mp4", "c,d.mp4")
    assert read_manifest(write(tmp_path / "l.csv", "a;b.mp4,up;down\n")).counts() == {"up;down": 1}
    assert read_manifest(write(tmp_path / "m.csv", "c,d.mp4;up, down\n")).counts() == {"up, down": 1}
    assert read_manifest(write(tmp_path / "n.csv", "path;label;note\nc,d.mp4;up;a, b\n")).counts() == {"up": 1}


def test_a_class_called_like_a_column_makes_no_header_of_a_clip(tmp_path: Path) -> None:
    listed = write(touch(tmp_path, "a.mp4", "b.mp4") / "l.csv", "a.mp4,video\nb.mp4,class\n")
    assert read_manifest(listed).counts() == {"class": 1, "video": 1}


def test_a_tilde_in_a_list_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(touch(tmp_path / "home", "clips/a.mp4", "clips/b.mp4")))
    touch(tmp_path / "lists", "~c.mp4")
    listed = write(tmp_path / "lists" / "l.csv", "path,label\n~/clips/a.mp4,up\n~c.mp4,down\n")
    assert names(read_manifest(listed)) == [f"{tmp_path}/home/clips/a.mp4", "~c.mp4"]
    assert names(read_manifest(listed, video_root="~/../lists")) == [f"{tmp_path}/home/clips/a.mp4", "~c.mp4"]
    released = write(tmp_path / "lists" / "l.txt", "~/clips/a.mp4 0\n~/clips/b.mp4 1\n")
    assert names(read_manifest(released)) == [f"{tmp_path}/home/clips/{name}.mp4" for name in "ab"]


def split_list(folder: Path, *splits: str, path: str = "list.csv") -> Path:
    """A list with a clip of each of two classes in every split."""
    rows = [f"{i}{label}.mp4,{label},{split}" for i, split in enumerate(splits) for label in ("up", "down")]
    touch(folder, *(row.split(",")[0] for row in rows))
    return write(folder / path, "\n".join(["path,label,Split", *rows]))


@pytest.mark.parametrize(
    ("splits", "train_names", "val_names", "others"),
    [
        (["train", "val"], ["0up", "0down"], ["1up", "1down"], "train"),
        (["Training", "test", "VALID"], ["0up", "0down"], ["2up", "2down"], "train and test"),
        (["testing", "train", "train"], ["1up", "1down", "2up", "2down"], ["0up", "0down"], "train"),
    ],
)
def test_a_column_split_tells_what_is_trained_on_and_what_is_held_out(
    splits: list[str], train_names: list[str], val_names: list[str], others: str, tmp_path: Path
) -> None:
    listed = split_list(tmp_path, *splits)
    train, val = read_splits(listed, val_fraction=0)
    assert val is not None
    assert names(train) == [f"{name}.mp4" for name in train_names]
    assert names(val) == [f"{name}.mp4" for name in val_names]
    assert train.notes() == val.notes() == []
    manifest = read_manifest(listed)
    assert manifest.entries == val.entries
    part = "test" if "testing" in splits else "val"
    assert manifest.notes() == [f"these are the clips of {part}; there is also {others}"]
    more = split_list(tmp_path, "train", "val", path="more.csv")
    train, val = read_splits(listed, val_data=more)
    assert val is not None
    assert names(val) == ["1up.mp4", "1down.mp4"]  # of both lists each has its own part


def test_clips_of_a_column_split_that_are_all_to_train_on_have_some_held_out(tmp_path: Path) -> None:
    train, val = read_splits(split_list(tmp_path, *["train"] * 5))
    assert val is not None
    assert (train.counts(), val.counts()) == ({"down": 4, "up": 4}, {"down": 1, "up": 1})


def test_a_column_split_without_clips_to_train_on_is_refused(tmp_path: Path) -> None:
    listed = split_list(tmp_path, "val", "test")
    with pytest.raises(DataError, match=r"list\.csv: the column split holds val and test but no train; add clips"):
        read_splits(listed)
    assert len(read_manifest(listed).entries) == 2


def test_a_split_of_which_no_file_exists_is_told_and_a_missing_file_counts_in_its_own(tmp_path: Path) -> None:
    listed = split_list(tmp_path, "train", "val")
    (tmp_path / "1up.mp4").unlink()
    train, val = read_splits(listed)
    assert val is not None
    assert (train.missing, val.missing) == ((), ("1up.mp4",))
    (tmp_path / "1down.mp4").unlink()
    with pytest.raises(DataError, match=r"none of its 2 files of the split val exists, the first being .*1up\.mp4"):
        read_splits(listed)
    for name in ("0up.mp4", "0down.mp4"):
        (tmp_path / name).unlink()
    problems: list[str] = []
    read_manifest(listed, on_problem=problems.append)
    assert ["none of its 4 files exists" in problem for problem in problems] == [True]


def test_a_clip_with_two_labels_in_two_splits_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    text = "path,label,split\na.mp4,up,train\nb.mp4,down,train\na.mp4,down,val\n"
    with pytest.raises(DataError, match=r"a\.mp4 is listed as 'up' and as 'down'"):
        read_splits(write(tmp_path / "list.csv", text))


def test_a_header_without_clips_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "clips.csv", "path,label\n\n")
    with pytest.raises(DataError, match=r"clips\.csv holds no clips; expected one line path,label"):
        read_manifest(path)


def test_a_list_whose_lines_are_all_refused_is_not_told_to_hold_no_clips(tmp_path: Path) -> None:
    problems: list[str] = []
    listed = write(touch(tmp_path, "a.mp4") / "clips.csv", "path,label,start,end\na.mp4,up,3,1\na.mp4,up,2,1\n")
    assert read_splits(listed, on_problem=problems.append) == (Manifest((), ()), None)
    assert [problem.partition(": ")[0] for problem in problems] == [f"{listed}, line 2", f"{listed}, line 3"]


def test_an_empty_name_is_not_the_working_directory() -> None:
    with pytest.raises(DataError, match="the path is empty"):
        read_manifest("")


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match=r"list\.csv is not UTF-8 text .*; save it as UTF-8"):
        read_manifest(tmp_path / "list.csv")


def test_missing_files_are_counted_and_named_and_the_others_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    manifest = read_manifest(write(tmp_path / "l.csv", "path,label\na.mp4,up\ngone.mp4,left\nb.mp4,down\n"))
    assert names(manifest) == ["a.mp4", "b.mp4"]
    assert manifest.missing == ("gone.mp4",)
    assert manifest.labels == ("down", "up")
    assert manifest.notes() == ["1 of 3 listed clips not found: gone.mp4"]


def test_a_list_of_which_nothing_exists_says_where_it_looked(tmp_path: Path) -> None:
    listed = write(tmp_path / "l.csv", "path,label\na.mp4,up\nb.mp4,down\n")
    with pytest.raises(DataError, match=rf"none of its 2 files exists, the first being {tmp_path}/a.mp4.*--video-root"):
        read_manifest(listed)


def test_paths_in_a_list_start_from_root_or_are_absolute(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "a.mp4", "b.mp4")
    other = touch(tmp_path / "other", "c.mp4") / "c.mp4"
    (tmp_path / "lists").mkdir()
    listed = write(tmp_path / "lists" / "l.csv", f"path,label\na.mp4,up\n{videos}/b.mp4,down\n{other},up\n")
    assert names(read_manifest(listed, video_root=videos)) == ["a.mp4", "b.mp4", other.as_posix()]
    upwards = write(tmp_path / "lists" / "m.csv", "path,label\n../videos/a.mp4,up\n")
    assert names(read_manifest(upwards)) == ["../videos/a.mp4"]
    with pytest.raises(DataError, match="no such folder; expected the folder that the paths in"):
        read_manifest(listed, video_root=tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", [".txt", ".csv", ""])
def test_a_released_list_has_paths_with_spaces_and_labels_sorted_by_number(tmp_path: Path, suffix: str) -> None:
    two_lines = "a line\u2028and another.mp4"  # only a newline ends a line of a list
    touch(tmp_path, "riding a bike/b 1.mp4", "c.mp4", two_lines)
    listed = write(tmp_path / f"train{suffix}", f"riding a bike/b 1.mp4 10\nc.mp4 9\n{two_lines} 9\n")
    manifest = read_manifest(listed)
    assert [(entry.name, entry.label) for entry in manifest.entries] == [
        ("riding a bike/b 1.mp4", "10"),
        ("c.mp4", "9"),
        (two_lines, "9"),
    ]
    assert manifest.labels == ("9", "10")


def test_a_csv_of_class_numbers_is_not_taken_for_a_released_list(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    for name in ("list.csv", "list.txt"):
        assert read_manifest(write(tmp_path / name, "a.mp4, 3\nb.mp4, 10\n")).labels == ("3", "10")


def test_class_numbers_get_the_names_of_a_classifier_that_has_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    numbered = read_manifest(write(tmp_path / "val.txt", "a.mp4 2\nb.mp4 0\n"))
    named = numbered.named(["up", "down", "left"])
    assert [(entry.name, entry.label) for entry in named.entries] == [("a.mp4", "left"), ("b.mp4", "up")]
    assert named.labels == ("up", "left")
    assert named.notes() == ["class numbers are positions among the classifier's classes: 0 is 'up'"]
    assert numbered.named(["0", "1", "2"]) is numbered
    assert named.named(["a", "b", "c"]) is named
    with pytest.raises(DataError, match="class number 2 in the list; expected 0 to 1, as the classifier knows 2 class"):
        numbered.named(["up", "down"])
    by_name = read_manifest(write(tmp_path / "val.csv", "a.mp4,2\nb.mp4,0\n"))
    assert by_name.named(["up", "down", "left"]) is by_name  # a CSV's labels are names, whatever they look like


def test_one_class_called_by_a_number_makes_no_list_of_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    manifest = read_manifest(write(tmp_path / "list.txt", "a.mp4 1\nb.mp4 0\n"))
    assert [entry.label for entry in manifest.named(["open", "1"]).entries] == ["1", "open"]
    assert manifest.named(["1", "0"]) is manifest  # all are: these are names


def test_labels_sort_by_value_only_when_all_are_numbers() -> None:
    assert sort_labels(["10", "9", "9"]) == ("9", "10")
    assert sort_labels(["10", "9", "up"]) == ("10", "9", "up")


def test_the_hash_depends_on_names_labels_segments_and_sizes_and_not_on_place_or_order(
    tmp_path: Path,
) -> None:
    first, second = make_gestures(tmp_path / "one", 3), make_gestures(tmp_path / "two", 3)
    reference = read_manifest(first).hash()
    assert len(reference) == 64
    assert read_manifest(second).hash() == reference
    rows = [f"{label}/{label}_{i:02d}.mp4,{label}" for label in ("right", "left") for i in range(3)]
    assert read_manifest(write(first / "list.csv", "\n".join(rows))).hash() == reference
    relabelled = rows[0].replace(",right", ",left")
    assert read_manifest(write(first / "list.csv", "\n".join([relabelled, *rows[1:]]))).hash() != reference
    cut = ["path,label,start,end", f"{rows[0]},0,1", *(f"{row},," for row in rows[1:])]
    assert read_manifest(write(first / "list.csv", "\n".join(cut))).hash() != reference
    (second / "left" / "left_00.mp4").write_bytes(b"x")
    assert read_manifest(second).hash() != reference


def test_the_hash_of_a_folder_of_images_depends_on_their_sizes(tmp_path: Path) -> None:
    touch(tmp_path, "up/clip/0001.jpg", "up/clip/0002.jpg")
    before = read_manifest(tmp_path).hash()
    (tmp_path / "up/clip/0002.jpg").write_bytes(b"x")
    assert read_manifest(tmp_path).hash() != before


@pytest.mark.parametrize("val_name", ["val", "validation", "test"])
def test_split_folders_are_used_as_they_are(tmp_path: Path, val_name: str) -> None:
    touch(tmp_path, "train/up/a.mp4", "train/down/b.mp4", f"{val_name}/up/c.mp4", "annotations/readme.txt")
    train, val = read_splits(tmp_path, val_fraction=0)
    assert names(train) == ["train/down/b.mp4", "train/up/a.mp4"]
    assert train.labels == ("down", "up")
    assert val is not None
    assert [(entry.name, entry.label) for entry in val.entries] == [(f"{val_name}/up/c.mp4", "up")]


def test_val_comes_before_test(tmp_path: Path) -> None:
    touch(tmp_path, "train/up/a.mp4", "train/down/b.mp4", "val/up/c.mp4", "test/up/d.mp4")
    _, val = read_splits(tmp_path)
    assert val is not None
    assert names(val) == ["val/up/c.mp4"]


@pytest.mark.parametrize(
    ("train_name", "val_name"), [("train", "valid"), ("Train", "Val"), ("training", "testing"), ("TRAIN", "Validation")]
)
def test_split_folders_go_by_everyday_names(train_name: str, val_name: str, tmp_path: Path) -> None:
    touch(tmp_path, f"{train_name}/up/a.mp4", f"{train_name}/down/b.mp4", f"{val_name}/up/c.mp4")
    train, val = read_splits(tmp_path)
    assert names(train) == [f"{train_name}/down/b.mp4", f"{train_name}/up/a.mp4"]
    assert train.labels == ("down", "up")
    assert val is not None
    assert names(val) == [f"{val_name}/up/c.mp4"]
    assert class_folder_roots(tmp_path) == [tmp_path / train_name, tmp_path / val_name]
    manifest = read_manifest(tmp_path)
    assert names(manifest) == names(val)
    assert manifest.notes() == [f"these are the clips of {val_name}/; there is also {train_name}/"]


@pytest.mark.parametrize(("one", "other", "part"), [("Training", "train", "train"), ("val", "valid", "val")])
def test_two_folders_of_one_split_are_refused(one: str, other: str, part: str, tmp_path: Path) -> None:
    touch(tmp_path, *(f"{name}/{label}/a.mp4" for name in {one, other, "train"} for label in ("up", "down")))
    for read in (read_manifest, read_splits):
        with pytest.raises(DataError, match=f"{one}/ and {other}/ both mean the split {part}; expected one folder"):
            read(tmp_path)


def test_a_train_folder_alone_has_clips_held_out(tmp_path: Path) -> None:
    make_gestures(tmp_path / "train")
    train, val = read_splits(tmp_path)
    assert val is not None
    assert (len(train.entries), len(val.entries)) == (16, 4)
    assert train.labels == val.labels == ("left", "right")


@pytest.mark.parametrize("name", ["train", "Training", "Test"])
@pytest.mark.parametrize("inside", ["a.mp4", "anna/a.mp4", "clip/0001.jpg"])
def test_a_word_for_a_split_can_be_the_name_of_a_class(tmp_path: Path, inside: str, name: str) -> None:
    touch(tmp_path, f"{name}/{inside}", "boat/b.mp4")
    assert read_manifest(tmp_path).counts() == {name: 1, "boat": 1}


@pytest.mark.parametrize(("held_out", "read"), [(("val",), "val"), (("test",), "test"), (("test", "val"), "val")])
def test_one_manifest_from_split_folders_is_what_is_held_out(
    tmp_path: Path, held_out: tuple[str, ...], read: str
) -> None:
    touch(tmp_path, "train/up/a.mp4", *(f"{name}/up/{name}.mp4" for name in held_out))
    manifest = read_manifest(tmp_path)
    assert [entry.name for entry in manifest.entries] == [f"{read}/up/{read}.mp4"]
    others = " and ".join(f"{name}/" for name in ("train", *held_out) if name != read)
    assert manifest.notes()[0] == f"these are the clips of {read}/; there is also {others}"


def test_what_two_data_sets_share_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "one/up/a.mp4", "one/down/b.mp4", "two/down/c.mp4")
    (tmp_path / "two/up").symlink_to(tmp_path / "one/up")
    one, two = read_manifest(tmp_path / "one"), read_manifest(tmp_path / "two")
    assert one.shared_with(two) == ["up/a.mp4"]
    (tmp_path / "one/up/a.mp4").unlink()  # what has gone meanwhile is known by its path
    assert one.shared_with(two) == []
    assert one.shared_with(one) == ["down/b.mp4", "up/a.mp4"]


def test_segments_of_one_file_are_shared_each_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    first, second = (Manifest((Entry(tmp_path / "a.mp4", "a.mp4", "up", n, n + 1.0),), ("up",)) for n in (0.0, 1.0))
    from_start = Manifest((Entry(tmp_path / "a.mp4", "a.mp4", "up", None, 1.0),), ("up",))
    assert first.shared_with(first) == ["a.mp4"]
    assert first.shared_with(from_start) == ["a.mp4"]
    assert first.shared_with(second) == []


def test_a_validation_folder_without_class_folders_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "Train/up/a.mp4", "Train/down/b.mp4", "Valid/notes.txt")
    with pytest.raises(DataError, match=r"Valid holds no class folders with videos, but Train/ next to it does"):
        read_splits(tmp_path)


def test_validation_folders_without_a_train_folder_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "val/up/a.mp4", "test/down/b.mp4")
    with pytest.raises(DataError, match=r"holds val/, test/ but no train/"):
        read_splits(tmp_path)


def test_validation_labels_that_training_lacks_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/up/a.mp4", "train/down/b.mp4", "val/sideways/c.mp4")
    with pytest.raises(DataError, match=r"1 validation class not in the training data: sideways"):
        read_splits(tmp_path)


def test_a_fraction_of_every_class_is_held_out_and_nothing_is_lost(tmp_path: Path) -> None:
    make_gestures(tmp_path)
    train, val = read_splits(tmp_path, val_fraction=0.3)
    assert val is not None
    assert Counter(entry.label for entry in val.entries) == {"left": 3, "right": 3}
    assert sorted(names(train) + names(val)) == names(read_manifest(tmp_path))
    assert read_splits(tmp_path, val_fraction=0.3) == (train, val)


def test_which_clips_are_held_out_depends_on_the_names_only(tmp_path: Path) -> None:
    _, here = read_splits(make_gestures(tmp_path / "here"))
    _, there = read_splits(make_gestures(tmp_path / "there"))
    rows = [f"{label}/{label}_{i:02d}.mp4,{label}" for i in range(10) for label in ("right", "left")]
    _, listed = read_splits(write(tmp_path / "here" / "list.csv", "\n".join(rows)))
    assert here is not None
    assert there is not None
    assert listed is not None
    assert sorted(names(here)) == sorted(names(there)) == sorted(names(listed))


def test_clips_stay_on_their_sides_when_others_come_and_go(tmp_path: Path) -> None:
    before = read_splits(make_gestures(tmp_path))
    assert before[1] is not None
    up_to = find_held_out_up_to(before[1])
    make_gestures(tmp_path, per_class=60)
    for gone in (before[0].entries[0], before[1].entries[0]):
        gone.path.unlink()
    train, val = read_splits(tmp_path, held_out_up_to=up_to)
    assert val is not None
    assert not set(names(before[0])) & set(names(val))
    assert not set(names(before[1])) & set(names(train))
    assert len(val.entries) > len(before[1].entries)  # of the new ones some are held out too
    _, anew = read_splits(tmp_path)
    assert anew is not None
    assert set(names(before[0])) & set(names(anew))  # left to themselves they change sides
    for entry in val.entries:
        entry.path.unlink()
    assert read_splits(tmp_path, held_out_up_to=up_to)[1] is None


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_two_videos_of_a_class_are_always_one_and_one(tmp_path: Path, fraction: float) -> None:
    _, val = read_splits(make_gestures(tmp_path, per_class=2), val_fraction=fraction)
    assert val is not None
    assert val.counts() == {"left": 1, "right": 1}


def test_no_fraction_trains_on_everything(tmp_path: Path) -> None:
    train, val = read_splits(make_gestures(tmp_path, per_class=1), val_fraction=0)
    assert val is None
    assert len(train.entries) == 2


def test_segments_of_one_file_stay_on_one_side(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.mp4" for i in range(6)))
    starts = {"up": (0, 2, 4), "down": (1, 3, 5)}
    rows = [f"{i}.mp4,{label},{s},{s + 1}" for i in range(6) for label in starts for s in starts[label]]
    train, val = read_splits(write(tmp_path / "l.csv", "\n".join(["path,label,start,end", *rows])))
    assert val is not None
    assert val.counts() == {"up": 3, "down": 3}
    assert not {(e.name, e.label) for e in train.entries} & {(e.name, e.label) for e in val.entries}


def grouped_list(folder: Path, *clips: str, path: str = "list.csv") -> Path:
    """A list of clips such as "anna up 3": so many of a group and a class."""
    rows = []
    for clip in clips:
        group, label, count = clip.rsplit(" ", 2)
        rows += [f"{group}_{label}_{i}.mp4,{label},{group}" for i in range(int(count))]
    touch(folder, *(row.split(",")[0] for row in rows))
    return write(folder / path, "\n".join(["path,label,Group", *rows]))


def groups(manifest: Manifest) -> set[str | None]:
    return {entry.group for entry in manifest.entries}


def many_groups(*count: int) -> list[str]:
    return [f"person{i} {label} {2 + i % 3}" for i in range(*count) for label in ("up", "down")]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_clips_of_a_group_stay_on_one_side_across_classes(fraction: float, tmp_path: Path) -> None:
    listed = grouped_list(tmp_path, *many_groups(30))
    train, val = read_splits(listed, val_fraction=fraction)
    assert val is not None
    assert not groups(train) & groups(val)
    assert len(groups(train) | groups(val)) == 30
    assert abs(len(val.entries) / 180 - fraction) < 0.03
    assert train.num_held_out == len(val.entries)
    named = ", ".join(sorted(str(group) for group in groups(val))[:3])
    assert train.notes()[0].startswith(f"held out by group, {len(val.entries)} of 180 clips: {named}")
    assert val.notes() == []
    assert read_splits(listed, val_fraction=fraction) == (train, val)


def test_groups_are_chosen_by_their_names_and_no_other_way(tmp_path: Path) -> None:
    _, val = read_splits(grouped_list(tmp_path / "one", *many_groups(30)))
    _, reversed_val = read_splits(grouped_list(tmp_path / "two", *many_groups(30)[::-1]))
    assert val is not None
    assert reversed_val is not None
    assert groups(val) == groups(reversed_val)


def test_every_class_keeps_a_clip_to_train_on_and_one_that_is_not_held_out_is_told(tmp_path: Path) -> None:
    for i in range(10):  # whichever group comes first, the one with the only clips of a class is passed over
        listed = grouped_list(tmp_path, f"a{i} up 2", f"b{i} up 2", f"c{i} up 2", f"c{i} rare 2", path=f"{i}.csv")
        train, val = read_splits(listed, val_fraction=0.3)
        assert val is not None
        assert groups(val) < {f"a{i}", f"b{i}"}
        assert min(train.counts().values()) >= 2
        assert train.notes()[1:] == ["1 class without a clip in the groups held out: rare"]


def test_classes_are_not_left_without_clips_by_groups_together(tmp_path: Path) -> None:
    clips = ["anna up 2", "ben up 2", "cleo down 2", "dan down 2"]  # either of the two groups of a class, never both
    train, val = read_splits(grouped_list(tmp_path, *clips), val_fraction=0.9)
    assert val is not None
    assert train.counts() == val.counts() == {"down": 2, "up": 2}


def test_every_class_of_every_head_keeps_a_clip_to_train_on(tmp_path: Path) -> None:
    names_of = [f"{group}{i}.mp4" for group in ("anna", "ben", "cleo") for i in range(2)]
    nouns = {"anna0.mp4": "lid"}  # held by nobody else, though both her verbs are
    rows = [f"{name},{'put' if '0' in name else 'take'},{nouns.get(name, 'pan')},{name[:-5]}" for name in names_of]
    touch(tmp_path, *names_of)
    listed = write(tmp_path / "list.csv", "\n".join(["path,label:verb,label:noun,group", *rows]))
    train, val = read_splits(listed, val_fraction=0.9)
    assert val is not None
    assert groups(train) == {"anna"}
    assert train.notes()[-1] == "1 class without a clip in the groups held out: noun: lid"


class LookedUp(str):
    """A class name that counts how often it is looked up."""

    num_times = 0

    def __hash__(self) -> int:
        LookedUp.num_times += 1
        return str.__hash__(self)


def test_many_groups_do_not_each_go_through_all_classes() -> None:
    labels = [LookedUp(f"class{number}") for number in range(50)]
    entries = tuple(
        Entry(Path(f"/data/{i}.mp4"), f"{i}.mp4", labels[i % 50], group=f"group{i // 2}") for i in range(400)
    )
    manifest = Manifest(entries, tuple(labels))
    LookedUp.num_times = 0
    train, val = hold_out(manifest, 0.2, pytest.fail)
    assert (len(train.entries), len(val.entries)) == (320, 80)
    assert LookedUp.num_times < 20 * len(entries)  # there are 200 groups and 50 classes


def test_the_smallest_group_is_held_out_where_all_are_larger_than_the_share(tmp_path: Path) -> None:
    clips = ["anna up 9", "anna down 9", "ben up 4", "ben down 4"]
    _, val = read_splits(grouped_list(tmp_path, *clips), val_fraction=0.1)
    assert val is not None
    assert groups(val) == {"ben"}


@pytest.mark.parametrize(
    ("clips", "found"),
    [
        (["anna up 4", "anna down 4"], "only 1 group"),
        (["anna up 4", "ben down 4"], "each of the 2 groups has all clips of some class"),
    ],
)
def test_groups_that_cannot_be_held_out_are_told(clips: list[str], found: str, tmp_path: Path) -> None:
    listed = grouped_list(tmp_path, *clips)
    with pytest.raises(DataError, match=f"cannot be held out by group: {found}; .* --val-fraction 0"):
        read_splits(listed)
    assert len(read_splits(listed, val_fraction=0)[0].entries) == 8


def test_a_video_without_a_group_stands_for_itself(tmp_path: Path) -> None:
    clips = [f" {label} 5" for label in ("up", "down")]
    train, val = read_splits(grouped_list(tmp_path, *clips, "anna up 1"), val_fraction=0.3)
    assert val is not None
    assert 2 <= len(val.entries) <= 4
    assert "10 clips without a group: each video counts as a group" in train.notes()
    again, same = read_splits(tmp_path / "list.csv", val_fraction=0.9, held_out_up_to=find_held_out_up_to(val))
    assert (again.entries, same) == (train.entries, val)


def test_groups_stay_on_their_sides_when_clips_come_and_go(tmp_path: Path) -> None:
    before = read_splits(grouped_list(tmp_path, *many_groups(12), "only rare 2"))
    assert before[1] is not None
    up_to = find_held_out_up_to(before[1])
    before[0].entries[0].path.unlink()
    before[1].entries[0].path.unlink()
    more = [clip[:-1] + "9" for clip in many_groups(40)]
    listed = grouped_list(tmp_path, *more, "only rare 3", "person0 rare 1")
    train, val = read_splits(listed, held_out_up_to=up_to)
    assert val is not None
    assert groups(val) == groups(before[1])
    assert groups(train) > groups(before[0])
    _, anew = read_splits(listed)
    assert anew is not None
    assert groups(anew) != groups(before[1])  # left to themselves they change sides


def test_a_choice_by_name_stays_one_when_groups_come_and_one_by_group_needs_them(tmp_path: Path) -> None:
    grouped = grouped_list(tmp_path, *many_groups(12))
    named = write(tmp_path / "named.csv", "\n".join(row.rsplit(",", 1)[0] for row in grouped.read_text().split("\n")))
    _, by_name = read_splits(named)
    _, by_group = read_splits(grouped)
    assert by_name is not None
    assert by_group is not None
    _, again = read_splits(grouped, held_out_up_to=find_held_out_up_to(by_name))
    assert again is not None
    assert names(again) == names(by_name)
    with pytest.raises(DataError, match="no clip has a group, but clips were held out by group before"):
        read_splits(named, held_out_up_to=find_held_out_up_to(by_group))


def test_the_hash_knows_nothing_of_groups_and_splits(tmp_path: Path) -> None:
    grouped = grouped_list(tmp_path, "anna up 2", "ben down 2")
    text = grouped.read_text()
    plain = write(tmp_path / "plain.csv", text.replace(",Group", "").replace(",anna", "").replace(",ben", ""))
    split = write(tmp_path / "split.csv", re.sub(",anna|,ben", ",train", text.replace("Group", "split")))
    assert read_manifest(grouped).hash() == read_manifest(plain).hash() == read_manifest(split).hash()


def test_validation_data_given_apart_is_used_and_nothing_is_held_out(tmp_path: Path) -> None:
    data = make_gestures(tmp_path / "data", per_class=1)
    train, val = read_splits(data, val_data=make_gestures(tmp_path / "more", per_class=2))
    assert val is not None
    assert (len(train.entries), len(val.entries)) == (2, 4)


def test_one_class_only_is_refused_for_training_and_read_for_evaluation(tmp_path: Path) -> None:
    touch(tmp_path, "up/a.mp4", "up/b.mp4")
    assert len(read_manifest(tmp_path).entries) == 2
    with pytest.raises(DataError, match="found only one class, 'up'"):
        read_splits(tmp_path)


def test_a_folder_one_level_too_high_is_told_with_the_one_that_may_be_meant(tmp_path: Path) -> None:
    data = touch(tmp_path / "wrapped", *(f"v/{label}/{i}.mp4" for label in ("star", "tick", "up") for i in range(2)))
    expected = re.escape(
        f"'v'; expected at least two to tell apart. v/ holds 3 folders of videos (star, tick, up): "
        f"if these are classes or splits, name {data}/v"
    )
    with pytest.raises(DataError, match=expected):
        read_splits(data)
    assert read_splits(data / "v")[0].labels == ("star", "tick", "up")
    for one_class in (
        touch(tmp_path / "flat", "up/a.mp4", "up/b.mp4"),
        touch(tmp_path / "one", "up/x/a.mp4", "up/b.mp4"),
    ):
        with pytest.raises(DataError, match=r"found only one class, 'up'; expected at least two to tell apart$"):
            read_splits(one_class)
    listed = write(data / "list.csv", "v/star/0.mp4,v\nv/tick/0.mp4,v\n")
    with pytest.raises(DataError, match=r"found only one class, 'v'; expected at least two to tell apart$"):
        read_splits(listed)


@pytest.mark.parametrize("lines", ["a.mp4 star\nb.mp4 up\n", "a.mp4 0\nb.mp4 up\n"])
def test_a_list_with_spaces_and_names_of_classes_says_what_each_form_needs(lines: str, tmp_path: Path) -> None:
    first = lines.split("\n")[0]
    for name in ("list.txt", "list.csv"):
        listed = write(touch(tmp_path, "a.mp4", "b.mp4") / name, lines)
        with pytest.raises(
            DataError, match=f"first line is '{first}'.* expected a class number in every line.* need a CSV"
        ):
            read_manifest(listed)


def test_a_class_with_one_video_cannot_be_split_and_is_named(tmp_path: Path) -> None:
    touch(make_gestures(tmp_path), "rare/only.mp4")
    with pytest.raises(DataError, match=r"1 class with only one video: rare;.*--val-fraction 0"):
        read_splits(tmp_path)


def test_clips_without_labels_are_read_and_refused_for_training(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    listed = write(tmp_path / "l.csv", "path\na.mp4\nb.mp4\n")
    assert [entry.label for entry in read_manifest(listed).entries] == [None, None]
    with pytest.raises(DataError, match="2 clips without a label"):
        read_splits(listed)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_a_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(SettingsError, match="expected at least 0 and less than 1"):
        read_splits(tmp_path, val_fraction=fraction)


def test_the_gestures_are_read(shared: Path) -> None:
    manifest = read_manifest(shared / "videos" / "gestures")
    assert len(manifest.entries) == 149
    assert len(manifest.labels) == 10
    train, val = read_splits(shared / "videos" / "gestures")
    assert val is not None
    assert min(val.counts().values()) >= 2
    assert len(train.entries) + len(val.entries) == 149


def test_every_problem_of_a_list_can_be_told_and_the_good_lines_are_kept(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    lines = ["path,label", "a.mp4,up", "b.mp4", 'c.mp4,"do"wn', "c.mp4,down", ",up", "b.mp4,up", "b.mp4,down"]
    problems: list[str] = []
    manifest = read_manifest(write(tmp_path / "clips.csv", "\n".join(lines)), on_problem=problems.append)
    assert names(manifest) == ["a.mp4", "c.mp4", "b.mp4", "b.mp4"]
    told = [
        "line 3: found 1 field, expected 2 (path,label)",
        "line 4: not a CSV row",
        "line 6: the path is empty",
        "b.mp4 is listed as 'up'",
    ]
    assert [part for part, problem in zip(told, problems, strict=True) if part not in problem] == []


@pytest.mark.parametrize(
    ("files", "told", "kept"),
    [
        (["a.mp4", "notes.txt"], ["1 video not in a class folder"], []),
        (
            ["up/a.mp4", "up/b.mp4", "down/x.txt"],
            ["1 class folder without a video", "found only one class"],
            ["up/"] * 2,
        ),
        (["val/up/a.mp4", "test/up/a.mp4"], ["but no train/ with class folders"], ["val/up/"]),
        (
            ["train/up/a.mp4", "train/down/a.mp4", "val/left/a.mp4"],
            ["1 validation class not"],
            ["train/"] * 2 + ["val"],
        ),
        (["up/a.mp4", "down/a.mp4", "down/b.mp4"], ["1 class with only one video: up"], ["down/", "up/", "down/"]),
    ],
)
def test_every_problem_of_a_folder_can_be_told_and_what_is_left_is_read(
    files: list[str], told: list[str], kept: list[str], tmp_path: Path
) -> None:
    problems: list[str] = []
    train, val = read_splits(touch(tmp_path / "data", *files), on_problem=problems.append)
    assert [part for part, problem in zip(told, problems, strict=True) if part not in problem] == []
    found = [*names(train), *(names(val) if val is not None else [])]
    assert [name for name, start in zip(found, kept, strict=True) if not name.startswith(start)] == []


@pytest.mark.parametrize("bad", ["no such folder", "folder", "empty.csv", "clip.mp4", "bytes.csv"])
def test_data_that_cannot_be_read_at_all_is_told_once_and_gives_nothing(bad: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    touch(tmp_path, "empty.csv", "clip.mp4")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00a")
    problems: list[str] = []
    assert read_splits(tmp_path / bad, on_problem=problems.append) == (Manifest((), ()), None)
    assert len(problems) == 1


def test_one_video_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clip\.mp4 is a single video; expected a folder"):
        read_manifest(touch(tmp_path, "clip.mp4") / "clip.mp4")


def test_validation_clips_without_a_label_are_refused_before_training(tmp_path: Path) -> None:
    make_gestures(tmp_path / "train", per_class=2)
    touch(tmp_path, "a.mp4", "b.mp4")
    listed = write(tmp_path / "val.csv", "path\na.mp4\nb.mp4\n")
    with pytest.raises(DataError, match=r"val\.csv: 2 clips without a label"):
        read_splits(tmp_path / "train", val_data=listed)


def test_names_with_bytes_that_are_no_text_can_be_held_out(tmp_path: Path) -> None:
    try:
        touch(tmp_path, *(f"{label}/caf\udce9_{i}.mp4" for label in ("up", "down") for i in range(3)))
    except OSError:
        pytest.skip("this file system takes text only")
    train, val = read_splits(tmp_path)
    assert val is not None
    assert (len(train.entries), len(val.entries)) == (4, 2)


def test_a_listed_name_longer_than_a_file_system_takes_is_missing(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    manifest = read_manifest(write(tmp_path / "clips.csv", f"a.mp4,up\nb.mp4,down\n{'x' * 5000}.mp4,up\n"))
    assert manifest.missing == ("x" * 5000 + ".mp4",)


def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path) -> None:
    make_gestures(tmp_path, per_class=2)
    (tmp_path / "left").chmod(0)
    problems: list[str] = []
    try:
        if os.access(tmp_path / "left", os.R_OK):
            pytest.skip("this user may list every folder")
        with pytest.raises(DataError, match=r"left cannot be listed \(Permission denied\)"):
            read_manifest(tmp_path)
        assert names(read_manifest(tmp_path, on_problem=problems.append)) == [
            "right/right_00.mp4",
            "right/right_01.mp4",
        ]
    finally:
        (tmp_path / "left").chmod(0o755)
    assert "left cannot be listed (Permission denied)" in problems[0]


def test_a_setting_that_means_nothing_for_the_data_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "clips", "left/a.mp4", "right/b.mp4")
    write(tmp_path / "list.csv", "clips/left/a.mp4,left\nclips/right/b.mp4,right\n")
    given: dict[str, Any] = {"video_root": tmp_path, "label_kind": "verb", "split_number": 2, "val_fraction": 0}
    told = [remark.split(" is not")[0] for remark in read_splits(tmp_path / "clips", **given)[0].notes()]
    assert told == ["--video-root", "--label-kind verb", "--split-number 2"]
    told = [remark.split(" is not")[0] for remark in read_splits(tmp_path / "list.csv", **given)[0].notes()]
    assert told == ["--label-kind verb", "--split-number 2"]
    assert read_splits(tmp_path / "clips", val_fraction=0)[0].notes() == []


def test_a_share_to_hold_out_means_nothing_beside_clips_to_validate_on(tmp_path: Path) -> None:
    touch(tmp_path, "clips/train/up/a.mp4", "clips/train/down/b.mp4", "clips/val/up/c.mp4", "more/up/d.mp4")
    for given in ({}, {"val_data": tmp_path / "more"}):
        train, _ = read_splits(tmp_path / "clips", val_fraction=0.3, **given)
        assert "--val-fraction 0.3 is not used here: there are clips to validate on" in train.notes()
        for usual in ({}, {"val_fraction": 0}):
            assert "--val-fraction" not in "".join(read_splits(tmp_path / "clips", **usual, **given)[0].notes())


def test_a_setting_for_the_clips_to_validate_on_is_none_too_many(tmp_path: Path) -> None:
    touch(tmp_path / "clips", "left/a.mp4", "right/b.mp4")
    write(tmp_path / "list.csv", "left/a.mp4,left\nright/b.mp4,right\n")
    train, val = read_splits(tmp_path / "clips", val_data=tmp_path / "list.csv", video_root=tmp_path / "clips")
    assert val is not None
    assert train.notes() == val.notes() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split_number": 4}, "split_number 4: expected 1 to 3"),
        ({"label_kind": "foo"}, "'foo': expected one of action"),
    ],
)
def test_what_no_data_set_has_is_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    touch(tmp_path, "left/a.mp4", "right/b.mp4")
    for read in (read_manifest, read_splits):
        with pytest.raises(SettingsError, match=message):
            read(tmp_path, **given)


def test_a_group_beside_a_split_is_named_as_not_used(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    rows = "path,label,split,group\na.mp4,up,train,p1\nb.mp4,down,train,p2\nc.mp4,up,val,p1\n"
    train, val = read_splits(write(tmp_path / "list.csv", rows))
    assert val is not None
    assert (names(train), names(val)) == (["a.mp4", "b.mp4"], ["c.mp4"])
    assert train.notes() == ["the column group is not used, because the column split says what is held out"]


def test_a_list_with_tabs_and_unknown_columns_is_no_list_with_spaces(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(DataError, match="unknown columns clip"):
        read_manifest(write(tmp_path / "list.csv", "clip\tlabel\na.mp4\tleft\n"))


def test_a_manifest_is_a_line(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{label}/{number}.mp4" for label in ("up", "down") for number in range(3)))
    assert repr(read_manifest(tmp_path)) == "Manifest(6 clips, 2 classes)"
