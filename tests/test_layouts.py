"""Miniatures of public data sets, named exactly as the archives unpack, with real little videos."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kitchens import EPIC, epic_row, write
from stadapter.__main__ import main
from stadapter.augmentation import Augmentation
from stadapter.check import check_data
from stadapter.clips import ClipConfig, load_frames
from stadapter.dataset import EvaluationClips, TrainingClips
from stadapter.errors import DataError
from stadapter.manifest import Manifest, read_manifest, read_splits
from stadapter.synthetic import draw_clip, write_video
from stadapter.video import VideoReader


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty frames, two seconds."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, draw_clip("left", 0, size=32, num_frames=20))
    return path


@pytest.fixture
def put(video: Path, tmp_path: Path) -> Callable[..., Path]:
    """Puts the video at each of the paths given, below the test's folder."""

    def copies(*names: str) -> Path:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, tmp_path / name)
        return tmp_path

    return copies


def pairs(manifest: Manifest | None) -> list[tuple[str, str | None]]:
    assert manifest is not None
    return [(entry.name, entry.label) for entry in manifest.entries]


def problems_of(data: Path) -> list[str]:
    problems: list[str] = []
    read_splits(data, val_fraction=0, on_problem=problems.append)
    return problems


KINETICS = "label,youtube_id,time_start,time_end,split,is_cc\n"
KINETICS_TRAIN = KINETICS + (
    '"air drumming",-_dbcJuKJQN,40,50,train,0\n'
    "passing American football (in game),a_b-c000001,0,10,train,0\n"
    "abseiling,--vanished--,59,69,train,1\n"
    "air drumming,zzzzzzzzzzz,7,17,train,0\n"
)
KINETICS_VAL = KINETICS + "abseiling,-3B32lodo2M,59,69,val,0\n"


@pytest.mark.parametrize(
    "folders",
    [
        ("train/air drumming", "train/passing American football (in game)", "val/abseiling"),
        ("air_drumming", "passing_American_football_(in_game)", "abseiling"),
        ("train", "train", "val"),
        ("", "", ""),
    ],
)
def test_kinetics_clips_are_found_by_id_and_times_in_any_arrangement(
    folders: tuple[str, ...], put: Callable[..., Path]
) -> None:
    drumming, football, abseiling = (f"k400/{folder}".rstrip("/") for folder in folders)
    root = put(
        f"{drumming}/-_dbcJuKJQN_000040_000050.mp4",
        f"{football}/a_b-c000001_000000_000010.mkv",
        f"{drumming}/zzzzzzzzzzz_000007_000017.webm",
        f"{abseiling}/-3B32lodo2M_000059_000069.mp4",
    )
    write(root / "k400" / "annotations" / "train.csv", KINETICS_TRAIN)
    write(root / "k400" / "annotations" / "val.csv", KINETICS_VAL)
    train, val = read_splits(root / "k400" / "annotations")
    assert [(Path(name).name[:3], label) for name, label in pairs(train)] == [
        ("-_d", "air drumming"),
        ("a_b", "passing American football (in game)"),
        ("zzz", "air drumming"),
    ]
    assert [(Path(name).name[:3], label) for name, label in pairs(val)] == [("-3B", "abseiling")]
    assert train.labels == ("abseiling", "air drumming", "passing American football (in game)")
    assert train.missing == ("--vanished--_000059_000069",)
    assert train.notes() == [
        f"read as Kinetics (train.csv), videos below {root / 'k400'}",
        "1 of 4 listed clips not found: --vanished--_000059_000069",
    ]
    assert read_splits(root / "k400") == (train, val)


def test_one_kinetics_list_is_split_as_any_other_and_its_videos_may_be_elsewhere(put: Callable[..., Path]) -> None:
    rows = [f"{label},{label}_{i:09d},1,11,train" for label in ("up", "down") for i in range(5)]
    root = put(*(f"elsewhere/{label}_{i:09d}_000001_000011.mp4" for label in ("up", "down") for i in range(5)))
    listed = write(
        root / "lists" / "kinetics_600_train.csv", "\n".join([KINETICS.strip().removesuffix(",is_cc"), *rows])
    )
    train, val = read_splits(listed, video_root=root / "elsewhere")
    assert val is not None
    assert train.counts() == {"down": 4, "up": 4}
    assert val.counts() == {"down": 1, "up": 1}
    write(root / "lists" / "validate.csv", KINETICS + "up,up_000000000,1,11,validate,0\n")
    _, val = read_splits(listed.parent, video_root=root / "elsewhere")
    assert len(pairs(val)) == 1


def test_of_two_videos_of_one_name_the_one_in_the_folder_of_its_class_is_taken(put: Callable[..., Path]) -> None:
    names = [f"{folder}/aaaaaaaaaaa_000001_000011.mp4" for folder in ("a_copy", "sky_diving", "z")]
    root = put(*names, "z/bbbbbbbbbbb_000001_000011.mp4")
    listed = write(root / "train.csv", KINETICS + "sky diving,aaaaaaaaaaa,1,11,train,0\nz,bbbbbbbbbbb,1,11,train,0\n")
    assert [name for name, _ in pairs(read_manifest(listed))] == [names[1], "z/bbbbbbbbbbb_000001_000011.mp4"]


def test_the_folder_of_its_class_counts_more_than_that_of_its_part(put: Callable[..., Path]) -> None:
    names = [f"{folder}/aaaaaaaaaaa_000001_000011.mp4" for folder in ("train/climbing", "val/sky_diving")]
    listed = write(put(*names) / "train.csv", KINETICS + "sky diving,aaaaaaaaaaa,1,11,train,0\n")
    assert pairs(read_manifest(listed)) == [(names[1], "sky diving")]


def test_a_video_in_a_folder_of_its_own_name_is_found(put: Callable[..., Path]) -> None:
    name = "aaaaaaaaaaa_000001_000011/aaaaaaaaaaa_000001_000011.mp4"
    listed = write(put(name) / "train.csv", KINETICS + "x,aaaaaaaaaaa,1,11,train,0\n")
    assert pairs(read_manifest(listed)) == [(name, "x")]


def test_a_link_that_leads_nowhere_is_no_video(put: Callable[..., Path]) -> None:
    root = put("a/aaaaaaaaaaa_000001_000011.mp4", "b/bbbbbbbbbbb_000001_000011.mp4")
    (root / "a/bbbbbbbbbbb_000001_000011.mp4").symlink_to(root / "gone.mp4")
    (root / "a/ccccccccccc_000001_000011.mp4").symlink_to(root / "gone.mp4")
    rows = "x,aaaaaaaaaaa,1,11,train,0\na,bbbbbbbbbbb,1,11,train,0\nx,ccccccccccc,1,11,train,0\n"
    manifest = read_manifest(write(root / "train.csv", KINETICS + rows))
    assert [name for name, _ in pairs(manifest)] == [f"{c}/{c * 11}_000001_000011.mp4" for c in "ab"]
    assert manifest.missing == ("ccccccccccc_000001_000011",)


def test_a_folder_that_cannot_be_listed_is_passed_over_unless_it_was_given(
    put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = put("k/videos/aaaaaaaaaaa_000001_000011.mp4", "k/lost/bbbbbbbbbbb_000001_000011.mp4")
    listed = write(root / "k/lists/train.csv", KINETICS + "x,aaaaaaaaaaa,1,11,train,0\ny,bbbbbbbbbbb,1,11,train,0\n")
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "lost":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert read_manifest(listed).missing == ("bbbbbbbbbbb_000001_000011",)
    with pytest.raises(DataError, match=r"lost cannot be listed \(Permission denied\)"):
        read_manifest(listed, video_root=root / "k" / "lost")


def test_hostile_kinetics_rows_are_read_or_told(put: Callable[..., Path]) -> None:
    root = put(*(f"{letter * 11}_000001_000011.mp4" for letter in "abcd"))
    text = (
        "\ufeff" + KINETICS + 'rock/paper,aaaaaaaaaaa,1,11,train,0\n"rock, paper",bbbbbbbbbbb,1.0,11.0,train,0\n'
        "9,ccccccccccc,1,11,train,0\nrock/paper,aaaaaaaaaaa,1,11,train,0\n"
    )
    manifest = read_manifest(write(root / "train.csv", text.replace("\n", "\r\n")))
    assert [label for _, label in pairs(manifest)] == ["rock/paper", "rock, paper", "9"]
    assert manifest.notes()[1:] == ["1 line listed twice and counted once"]
    rows = 'x,ddddddddddd,soon,11,train,0\n,ddddddddddd,1,11,train,0\ny,ddddddddddd,1\n"a"b,d,1,2,train,0\n'
    bad = write(root / "train.csv", text + rows + "10,ccccccccccc,1,11,train,0\n")
    told = [
        "line 6: found 'soon' as a time; expected whole seconds",
        "line 7: found no label",
        "line 8: found 3 fields, expected 6",
        "line 9: not a CSV row",
        "ccccccccccc_000001_000011.mp4 is listed as '9' and as '10'",
    ]
    assert [part for part, problem in zip(told, problems_of(bad), strict=True) if part not in problem] == []


def test_class_numbers_as_names_are_sorted_by_value(put: Callable[..., Path]) -> None:
    root = put("aaaaaaaaaaa_000001_000011.mp4", "bbbbbbbbbbb_000001_000011.mp4")
    listed = write(root / "train.csv", KINETICS + "10,aaaaaaaaaaa,1,11,train,0\n9,bbbbbbbbbbb,1,11,train,0\n")
    assert read_manifest(listed).labels == ("9", "10")


def test_a_kinetics_list_without_labels_can_be_read_but_not_trained_on(put: Callable[..., Path]) -> None:
    root = put("aaaaaaaaaaa_000001_000011.mp4")
    listed = write(root / "test.csv", "youtube_id,time_start,time_end,split\naaaaaaaaaaa,1,11,test\n")
    assert pairs(read_manifest(listed)) == [("aaaaaaaaaaa_000001_000011.mp4", None)]
    with pytest.raises(DataError, match="1 clip without a label"):
        read_splits(listed)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "train.csv",
            "label,youtube_id,start,end\nup,aaaaaaaaaaa,1,2\n",
            "Kinetics but has no column time_start or time",
        ),
        ("train.csv", KINETICS, "but it lists no clips"),
        (
            "train.csv",
            KINETICS + "up,aaaaaaaaaaa,1,2,train,0\n",
            "none of its 1 video was found below .*, the first being aaaaaaaaaaa_000001_0000",
        ),
        ("other.json", "[]", "a JSON file of no known layout"),
        ("something-something-v2-labels.json", "{}", "is the list of classes; give the training list"),
        ("something-something-v2-train.json", "[]", "something-something-v2-labels.json: no such file"),
        ("wave_test_split2.txt", "a.avi 1\n", "holds one class of split 2 of HMDB51; give its folder"),
        (
            "a.csv",
            "video_id,start_timestamp,verb_class\n",
            "looks like EPIC-Kitchens-100 but has no column stop_timestamp",
        ),
        ("a.csv", "video_id,start_timestamp,stop_timestamp,verb_class\n", "has no column noun_class"),
    ],
)
def test_annotations_that_cannot_be_used_are_told_in_a_sentence(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    listed = write(tmp_path / "lists" / name, text)
    with pytest.raises(DataError, match=message):
        read_splits(listed)
    problems: list[str] = []
    assert read_splits(listed, on_problem=problems.append)[0].entries == ()
    assert len(problems) == 1


def test_a_folder_with_two_lists_for_one_part_or_two_data_sets_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "kinetics_400_train.csv", KINETICS_TRAIN)
    write(tmp_path / "kinetics_600_train.csv", KINETICS_TRAIN)
    with pytest.raises(DataError, match=r"kinetics_400_train.csv and kinetics_600_train.csv both list train clips"):
        read_splits(tmp_path)
    (tmp_path / "kinetics_600_train.csv").unlink()
    write(tmp_path / "trainlist01.txt", "a/v_a.avi 1\n")
    with pytest.raises(DataError, match="annotations of Kinetics and of UCF101; expected one data set"):
        read_splits(tmp_path)


SOMETHING_LABELS = {
    "Approaching something with your camera": "0",
    "Lifting up one end of something, then letting it drop down": "1",
    "Holding something": 2,
    "Tearing something/anything": "10",
}


def make_something(root: Path, prefix: str = "something-something-v2-") -> Path:
    labels = root / "labels"
    write(labels / f"{prefix}labels.json", json.dumps(SOMETHING_LABELS))
    train = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
        {"id": 42326, "label": "", "template": "Lifting up one end of [something], then letting it drop down"},
        {"id": "99999", "label": "holding air", "template": "Holding [something]"},
    ]
    val = [{"id": "74225", "template": "Approaching [something] with your camera"}]
    for name, items in {"train": train, "validation": val, "test": [{"id": "55"}]}.items():
        write(labels / f"{prefix}{name}.json", json.dumps(items))
    write(labels / f"{prefix}test-answers.csv", "55;Tearing something/anything\n")
    return labels


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_something_something_matches_templates_to_the_classes_of_its_label_file(
    prefix: str, put: Callable[..., Path]
) -> None:
    root = put(*(f"20bn-something-something-v2/{number}.webm" for number in (78687, 42326, 74225, 55)))
    labels = make_something(root, prefix)
    if not prefix:  # the names of the archive of labels; test-answers.csv is called that in both
        assert (labels / "train.json").is_file()
    train, val = read_splits(labels)
    assert pairs(train) == [
        ("20bn-something-something-v2/78687.webm", "Holding something"),
        ("20bn-something-something-v2/42326.webm", "Lifting up one end of something, then letting it drop down"),
    ]
    assert pairs(val) == [("20bn-something-something-v2/74225.webm", "Approaching something with your camera")]
    assert val is not None
    assert train.labels == val.labels == tuple(SOMETHING_LABELS)
    assert train.missing == ("99999",)
    assert pairs(read_manifest(labels)) == pairs(val)
    answered = read_manifest(labels / f"{prefix}test.json")
    assert pairs(answered) == [("20bn-something-something-v2/55.webm", "Tearing something/anything")]


def test_a_published_list_without_its_classes_says_so_and_is_no_folder_of_classes(put: Callable[..., Path]) -> None:
    root = put("ssv2/videos/1.mp4", "ssv2/videos/2.mp4")
    write(root / "ssv2" / "something-something-v2-train.json", "[]")
    with pytest.raises(DataError, match=r"something-something-v2-labels.json: no such file"):
        read_splits(root / "ssv2")
    write(root / "ssv2" / "something-something-v2-labels.json", '{"Moving something up": "0"}')
    write(root / "ssv2" / "something-something-v2-train.json", '[{"id": "1", "template": null}]')
    with pytest.raises(DataError, match=r"1 clip without a label \(videos/1.mp4\); expected one for each"):
        read_splits(root / "ssv2")


def test_templates_that_the_label_file_lacks_are_counted_and_named(put: Callable[..., Path]) -> None:
    labels = make_something(put("videos/78687.webm", "videos/42326.webm"))
    train = labels / "something-something-v2-train.json"
    items = [*json.loads(train.read_text()), {"id": "1", "template": "Eating [something]"}, "odd"]
    write(train, json.dumps(items))
    told = [
        "item 5: found 'odd'",
        "1 clip of a class that is not in something-something-v2-labels.json: Eating [something]",
    ]
    assert [part for part, problem in zip(told, problems_of(train), strict=True) if part not in problem] == []


def make_ucf(root: Path) -> Path:
    folder = root / "ucfTrainTestlist"
    write(folder / "classInd.txt", "1 YoYo\r\n2 ApplyEyeMakeup\r\n")
    for number in (1, 2):
        train, test = f"g0{number + 1}", f"g0{number}"
        lines = "\r\n".join(f"{c}/v_{c}_{train}_c01.avi {n}" for n, c in enumerate(("YoYo", "ApplyEyeMakeup"), 1))
        write(folder / f"trainlist0{number}.txt", lines + "\r\n")
        write(folder / f"testlist0{number}.txt", f"YoYo/v_YoYo_{test}_c01.avi\r\n")
    return folder


def test_ucf101_has_its_own_splits_and_its_classes_the_order_of_the_index(put: Callable[..., Path]) -> None:
    names = [f"UCF-101/{c}/v_{c}_g0{group}_c01.avi" for c in ("ApplyEyeMakeup", "YoYo") for group in (1, 2, 3)]
    folder = make_ucf(put(*names))
    train, val = read_splits(folder)
    assert pairs(train) == [(names[4], "YoYo"), (names[1], "ApplyEyeMakeup")]
    assert pairs(val) == [(names[3], "YoYo")]
    assert train.labels == ("YoYo", "ApplyEyeMakeup")
    assert "read as UCF101 (trainlist01.txt, split 1 of 1, 2)" in train.notes()[0]
    assert pairs(read_splits(folder, split_number=2)[0]) == [(names[5], "YoYo"), (names[2], "ApplyEyeMakeup")]
    assert pairs(read_manifest(folder / "testlist02.txt")) == [(names[4], "YoYo")]
    with pytest.raises(DataError, match=r"UCF101's split 1, 2 but no split 3"):
        read_splits(folder, split_number=3)


def test_validation_data_given_apart_are_those_of_the_chosen_split(put: Callable[..., Path]) -> None:
    names = [f"UCF-101/{c}/v_{c}_g0{group}_c01.avi" for c in ("ApplyEyeMakeup", "YoYo") for group in (1, 2)]
    folder = make_ucf(put(*names))
    val = read_splits(folder.parent / "UCF-101", val_data=folder, split_number=2)[1]
    assert pairs(val) == [(names[3], "YoYo")]


def test_ucf101_lines_that_contradict_the_index_are_told(put: Callable[..., Path]) -> None:
    folder = make_ucf(put("UCF-101/YoYo/v_YoYo_g02_c01.avi", "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi"))
    train = folder / "trainlist01.txt"
    write(train, train.read_text() + "\nYoYo/v_YoYo_g09_c01.avi 2\nTaiChi/v_TaiChi_g01_c01.avi 3\n/broken\n")
    told = [
        "line 4: YoYo has number 2 here but 1",
        "line 6: found '/broken'",
        "1 clip of a class that is not in classInd.txt",
    ]
    assert [part for part, problem in zip(told, problems_of(train), strict=True) if part not in problem] == []


def make_hmdb(root: Path) -> Path:
    folder = root / "testTrainMulti_7030_splits"
    for label in ("shake_hands", "sit"):
        for number in (1, 2, 3):
            uses = {f"#20_a(b)_{label}_u_nm_np1_fr_goo_{i}.avi": (i + number) % 3 for i in range(3)}
            write(folder / f"{label}_test_split{number}.txt", "".join(f"{n} {use} \n" for n, use in uses.items()))
    return folder


def test_hmdb51_uses_are_unused_train_and_test(put: Callable[..., Path]) -> None:
    names = [f"{label}/#20_a(b)_{label}_u_nm_np1_fr_goo_{i}.avi" for label in ("shake_hands", "sit") for i in range(3)]
    folder = make_hmdb(put(*names))
    train, val = read_splits(folder)
    assert pairs(train) == [(names[0], "shake_hands"), (names[3], "sit")]
    assert pairs(val) == [(names[1], "shake_hands"), (names[4], "sit")]
    assert pairs(read_splits(folder, split_number=3)[0]) == [(names[1], "shake_hands"), (names[4], "sit")]
    assert pairs(read_manifest(folder)) == pairs(val)
    assert "HMDB51 (train, split 1 of 1, 2, 3)" in train.notes()[0]
    for number in (2, 3):
        for label in ("shake_hands", "sit"):
            (folder / f"{label}_test_split{number}.txt").unlink()
    assert "HMDB51 (train), videos" in read_splits(folder)[0].notes()[0]
    write(folder / "sit_test_split1.txt", "\na.avi 3\n")
    with pytest.raises(DataError, match=r"sit_test_split1.txt, line 2: found 'a.avi 3'; expected <name>.avi and 0, 1"):
        read_splits(folder)


def make_epic(root: Path) -> Path:
    folder = root / "epic-kitchens-100-annotations"
    train = epic_row("P01_01", "0.14", "1.00", 3, 3) + epic_row("P01_01", "1.00", "1.90", 0, 2)
    train += epic_row("P02_109", "0.50", "1.50", 3, 2) + epic_row("P01_01", "0.14", "1.00", 0, 3)
    write(folder / "EPIC_100_train.csv", EPIC + train)
    write(folder / "EPIC_100_validation.csv", EPIC + epic_row("P01_11", "0.00", "1.89", 1, 3))
    write(
        folder / "EPIC_100_verb_classes.csv", 'id,key,instances,category\n0,take,"[]",x\n1,put,"[]",x\n3,open,"[]",x\n'
    )
    nouns = 'id,key,instances,category\n2,plate,"[]",x\n3,door,"[]",x\n4,pan:dust,"[]",x\n'
    write(folder / "EPIC_100_noun_classes.csv", nouns)
    return folder


def test_epic_kitchens_gives_segments_of_long_videos_and_classes_in_the_order_of_their_numbers(
    put: Callable[..., Path],
) -> None:
    folder = make_epic(put("EPIC-KITCHENS/P01/videos/P01_01.MP4", "EPIC-KITCHENS/P01/videos/P01_11.MP4"))
    train, val = read_splits(folder)
    name = "EPIC-KITCHENS/P01/videos/P01_01.MP4"
    assert [(e.name, e.label, e.start_seconds, e.end_seconds) for e in train.entries] == [
        (name, "open door", 0.14, 1.0),
        (name, "take plate", 1.0, 1.9),
        (name, "take door", 0.14, 1.0),
    ]
    assert pairs(val) == [("EPIC-KITCHENS/P01/videos/P01_11.MP4", "put door")]
    assert val is not None
    assert train.labels == val.labels == ("take plate", "take door", "put door", "open plate", "open door")
    assert train.missing == ("P02_109 [0.5 to 1.5 s]",)
    verbs, _ = read_splits(folder, label_kind="verb")
    assert verbs.labels == ("take", "put", "open")
    assert [entry.label for entry in verbs.entries] == ["open", "take", "take"]
    assert read_splits(folder, label_kind="noun")[0].labels == ("plate", "door", "pan:dust")


def test_epic_kitchens_frames_are_cut_by_their_rate_for_loading_and_for_the_doctor(tmp_path: Path) -> None:
    folder = make_epic(tmp_path)
    lengths = {"P01/rgb_frames/P01_01": 120, "P02/rgb_frames/P02_109": 75, "P01/rgb_frames/P01_11": 90}
    for name, length in lengths.items():
        (tmp_path / name).mkdir(parents=True)
        for number in range(1, length + 1):
            Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / name / f"frame_{number:010d}.jpg", quality=95)
        flow = tmp_path / name.replace("rgb_", "flow_") / "u"
        flow.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(flow / "frame_0000000001.jpg")
    train, val = read_splits(folder)
    assert val is not None
    assert [entry.frames_per_second for entry in train.entries] == [60.0, 60.0, 50.0, 60.0]
    config = ClipConfig(num_frames=2, size=16, num_spatial_views=1)
    sampled = EvaluationClips(train, config, labels=train.labels)
    reds = [sampled[index]["clip"][0, :, 0].float().mean((1, 2)).tolist() for index in range(3)]
    with VideoReader(train.entries[0].path, 0.14, 1.0, frames_per_second=60) as reader:
        assert reader.num_frames == 60 - 9  # images 9 to 59, shown at 0.15 to 0.983 s
    for values, (first, last) in zip(reds, [(10, 60), (61, 114), (26, 75)], strict=True):
        assert all(first - 3 <= value <= last + 3 for value in values), (values, first, last)
        assert values[1] - values[0] > (last - first) / 3
    entry = train.entries[0]
    seen = load_frames(entry.path, config, start_seconds=0.14, end_seconds=1.0, frames_per_second=60)
    assert seen[:, 0].float().mean((1, 2)).tolist() == reds[0]
    training = TrainingClips(train, config, labels=train.labels, augmentation=Augmentation(crop="centre"))
    sample = training[0]
    assert sample["failures"] == []
    assert sample["clip"] is not None
    assert all(7 <= red <= 63 for red in sample["clip"][:, 0].float().mean((1, 2)).tolist())
    report = check_data(folder)
    assert [(clip.error, clip.num_frames) for clip in report.clips] == [
        (None, 51), (None, 54), (None, 50), (None, 51), (None, 90),
    ]  # fmt: skip


def test_epic_kitchens_classes_without_their_names_are_numbers(put: Callable[..., Path]) -> None:
    folder = make_epic(put("P01/videos/P01_01.MP4", "P01/videos/P01_11.MP4", "P02/videos/P02_109.MP4"))
    for kind in ("verb", "noun"):
        (folder / f"EPIC_100_{kind}_classes.csv").unlink()
    train, _ = read_splits(folder)
    assert train.labels == ("0 2", "0 3", "1 3", "3 2", "3 3")
    assert train.entries[0].label == "3 3"
    assert "by their numbers, because there is no EPIC_100_verb_classes.csv and no EPIC_100_noun" in train.notes()[0]
    assert read_splits(folder, label_kind="verb")[0].labels == ("0", "1", "3")


def test_epic_kitchens_rows_that_make_no_sense_are_told(put: Callable[..., Path]) -> None:
    folder = make_epic(put("P01/videos/P01_01.MP4"))
    rows = epic_row("P01_01", "1.00", "0.50", 3, 3) + epic_row("P01_01", "x", "1.50", 3, 3)
    write(folder / "EPIC_100_train.csv", EPIC + rows + epic_row("P01_01", "0.10", "1.50", 77, 3))
    told = [
        "line 2: the segment ends at 0.5 s",
        "line 3: found '00:00:0x' as a time",
        "class that is not in the class files",
    ]
    found = problems_of(folder / "EPIC_100_train.csv")
    assert [part for part, problem in zip(told, found, strict=False) if part not in problem] == []


def test_the_data_doctor_reads_published_annotations_as_training_does(put: Callable[..., Path]) -> None:
    names = ["UCF-101/YoYo/v_YoYo_g01_c01.avi", "UCF-101/YoYo/v_YoYo_g02_c01.avi"]
    folder = make_ucf(put(*names, "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi"))
    report = check_data(folder)
    assert [(clip.name, clip.held_out) for clip in report.clips][-1] == (names[0], True)
    assert len(report.clips) == 3
    assert sum("read as UCF101" in finding.found for finding in report.findings) == 2


def test_the_command_line_reads_them_and_says_how(
    put: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stems = [f"{i}aaaaaaaaaa_000001_000011" for i in range(4)]
    root = put(*(f"elsewhere/{stem}.mp4" for stem in stems))
    rows = "".join(f"{label},{stem[:11]},1,11,train,0\n" for label, stem in zip("abab", stems, strict=True))
    listed = write(root / "lists" / "train.csv", KINETICS + rows + "a,vanishedaaa,1,11,train,0\n")
    monkeypatch.chdir(root)
    assert main(["check", str(listed), "--video-root", "elsewhere"]) == 0
    captured = capsys.readouterr()
    assert "read as Kinetics (train.csv)" in captured.out
    flags = ["--data", str(listed), "--video-root", "elsewhere"]
    assert captured.err == f"next: stadapter train {' '.join(flags)} --out runs/first\n"
    run = ["--out", "run", "--backbone", "tiny", "--epochs", "2", "--num-frames", "4", "--num-workers", "0"]
    assert main(["train", *flags, *run, "--balance-classes", "--size", "16"]) == 0
    told = capsys.readouterr().err
    assert "read as Kinetics (train.csv)" in told
    assert "1 of 5 listed clips not found" in " ".join(told.split())
    assert main(["evaluate", "run", *flags, "--num-workers", "0"]) == 0
