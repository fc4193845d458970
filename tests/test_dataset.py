"""Samples for training and evaluation: what is random, what replaces an unreadable clip, what workers see."""

import errno
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import stadapter.dataset as dataset_module
from stadapter.augmentation import Augmentation
from stadapter.clips import ClipConfig, load_clip
from stadapter.dataset import EvaluationClips, TrainingClips
from stadapter.errors import DataError, VideoError
from stadapter.manifest import Entry, Manifest, read_manifest
from stadapter.samples import Sample, collate
from stadapter.synthetic import write_clips, write_video
from stadapter.token_cache import TokenCache
from stadapter.training.schedule import balanced_order, epoch_order
from stadapter.video import VideoReader
from stadapter.view_store import ViewStore

CONFIG = ClipConfig(num_frames=4, size=32)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    write_clips(tmp_path, clips_per_class=2, size=48, num_frames=10)
    return read_manifest(tmp_path)


def training(manifest: Manifest, seed: int = 0) -> TrainingClips:
    return TrainingClips(manifest, CONFIG, labels=manifest.labels, augmentation=Augmentation(), seed=seed)


def clip_of(sample: Sample) -> torch.Tensor:
    assert sample["clip"] is not None
    return sample["clip"]


def break_clip(manifest: Manifest, index: int) -> str:
    manifest.entries[index].path.write_bytes(b"this is no video")
    return manifest.entries[index].name


def test_a_training_sample_is_one_random_view_with_its_label(manifest: Manifest) -> None:
    sample = training(manifest)[5]
    assert clip_of(sample).shape == (4, 3, 32, 32)
    assert clip_of(sample).dtype == torch.uint8
    assert sample["label"] == (manifest.labels.index(str(manifest.entries[5].label)),)
    assert sample["index"] == 5
    assert sample["failures"] == []


def test_an_evaluation_sample_is_all_test_views(manifest: Manifest) -> None:
    config = ClipConfig(num_frames=4, size=32, num_temporal_views=2, num_spatial_views=3)
    sample = EvaluationClips(manifest, config, labels=manifest.labels)[1]
    assert clip_of(sample).shape == (6, 4, 3, 32, 32)
    assert torch.equal(clip_of(sample), load_clip(manifest.entries[1].path, config))


def resident_bytes() -> int:
    """Memory of this process."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        pytest.skip("this system does not tell how much memory a process takes now")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_clips_that_were_loaded(manifest: Manifest, count: int) -> None:
    break_clip(manifest, 0)  # what fails is to leave nothing behind either
    datasets = (training(manifest), EvaluationClips(manifest, CONFIG, labels=manifest.labels))

    def load(number: int) -> None:
        for position in range(number):
            datasets[position % 2][position // 2 % len(manifest.entries)]

    load(100)
    growths = []
    for _ in range(4):
        before = resident_bytes()
        load(count // 4)
        growths.append(resident_bytes() - before)
    # What is kept grows in every round, what allocators do does not. 100 frames of 48 x 48 pixels that are kept are
    # 0.7 MB, 100 clips 1.2 MB, 2,500 clips 30 MB.
    assert min(growths) < 2.5e5 + 400 * (count // 4)


def test_segments_are_respected(tmp_path: Path) -> None:
    write_clips(tmp_path, classes=("left", "right"), clips_per_class=1, num_frames=20, frames_per_second=10)
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,start,end\nleft/left_00.mp4,left,0,1\nleft/left_00.mp4,late,1,2\n")
    manifest = read_manifest(listed)
    dataset = EvaluationClips(manifest, CONFIG, labels=manifest.labels)
    path = manifest.entries[0].path
    assert torch.equal(clip_of(dataset[0]), load_clip(path, CONFIG, start_seconds=0, end_seconds=1))
    assert not torch.equal(clip_of(dataset[0]), clip_of(dataset[1]))


def test_the_random_view_is_a_function_of_seed_epoch_and_position(manifest: Manifest) -> None:
    dataset, again = training(manifest), training(manifest)
    first = clip_of(dataset[3])
    clip_of(again[0])  # another order of reading
    assert torch.equal(clip_of(again[3]), first)
    again.set_epoch(1)
    assert not torch.equal(clip_of(again[3]), first)
    again.set_epoch(0)
    assert torch.equal(clip_of(again[3]), first)
    assert not torch.equal(clip_of(training(manifest, seed=1)[3]), first)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_kept_alive_see_the_new_epoch_and_give_what_no_workers_give(manifest: Manifest, context: str) -> None:
    dataset = training(manifest)
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=2 if context == "fork" else 1,
        collate_fn=collate,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    epochs = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat([batch["clips"] for batch in loader]))
        assert torch.equal(epochs[-1], torch.stack([clip_of(dataset[i]) for i in range(len(dataset))]))
    assert not torch.equal(epochs[0], epochs[1])


def are_shared(samples: list[Sample]) -> set[bool]:
    batch = collate(samples)
    return {tensor.is_shared() for tensor in (batch["clips"], batch["labels"], batch["indices"])}


def test_a_batch_is_put_into_shared_memory_before_a_decoding_process_sends_it(manifest: Manifest) -> None:
    for num_workers in (0, 1):
        loader = DataLoader(training(manifest), batch_size=8, num_workers=num_workers, collate_fn=are_shared)
        assert list(loader) == [{num_workers > 0}]


def test_an_epoch_left_early_does_not_leak_into_the_next(manifest: Manifest) -> None:
    dataset = training(manifest)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate, persistent_workers=True)
    next(iter(loader))
    dataset.set_epoch(1)
    seen = torch.cat([batch["clips"] for batch in loader])
    assert torch.equal(seen, torch.stack([clip_of(dataset[i]) for i in range(len(dataset))]))


def test_in_training_an_unreadable_clip_is_replaced_and_named(manifest: Manifest) -> None:
    broken = break_clip(manifest, 2)
    dataset = training(manifest)
    sample = dataset[2]
    assert clip_of(sample).shape == (4, 3, 32, 32)
    assert sample["index"] != 2
    assert sample["label"] == dataset.targets[sample["index"]]
    assert [name for name, _ in sample["failures"]] == [broken]
    again = training(manifest)[2]
    assert (again["index"], again["failures"]) == (sample["index"], sample["failures"])
    assert torch.equal(clip_of(again), clip_of(sample))
    replacements = set()
    for epoch in range(50):
        dataset.set_epoch(epoch)
        replacements.add((replaced := dataset[2])["index"])
        assert len(replaced["failures"]) == 1  # itself is not tried again
    assert replacements == set(range(len(dataset))) - {2}


@pytest.mark.parametrize("has_tokens", [False, True])
def test_a_video_that_has_gone_is_a_failure_too(manifest: Manifest, tmp_path: Path, has_tokens: bool) -> None:
    manifest.entries[0].path.unlink()
    dataset = training(manifest)
    dataset.tokens = TokenCache(tmp_path / "cache", scope={}, max_bytes=10**6) if has_tokens else None
    assert [name for name, _ in dataset[0]["failures"]] == [manifest.entries[0].name]


def test_where_nothing_is_readable_a_training_sample_is_none_with_all_that_was_tried(manifest: Manifest) -> None:
    names = {break_clip(manifest, index) for index in range(len(manifest.entries))}
    sample = training(manifest)[0]
    assert sample["clip"] is None
    assert len(sample["failures"]) == 10
    assert {name for name, _ in sample["failures"]} <= names
    assert len(collate([sample])["labels"]) == 0


def test_in_evaluation_an_unreadable_clip_is_dropped_and_named(manifest: Manifest) -> None:
    broken = break_clip(manifest, 1)
    dataset = EvaluationClips(manifest, CONFIG, labels=manifest.labels)
    batch = collate([dataset[0], dataset[1], dataset[2]])
    assert batch["clips"].shape == (2, 1, 4, 3, 32, 32)
    assert batch["indices"].tolist() == [0, 2]
    assert batch["labels"].tolist() == [list(dataset.targets[0]), list(dataset.targets[2])]
    assert [name for name, _ in batch["failures"]] == [broken]


def test_a_batch_may_hold_no_readable_clip(manifest: Manifest) -> None:
    break_clip(manifest, 0)
    batch = collate([EvaluationClips(manifest, CONFIG, labels=manifest.labels)[0]])
    assert len(batch["clips"]) == len(batch["labels"]) == len(batch["indices"]) == 0
    assert len(batch["failures"]) == 1


def test_labels_are_positions_in_the_given_names(manifest: Manifest) -> None:
    labels = ("spare", *reversed(manifest.labels))
    dataset = EvaluationClips(manifest, CONFIG, labels=labels)
    assert [labels[target] for (target,) in dataset.targets] == [entry.label for entry in manifest.entries]


def test_classes_that_are_not_among_the_labels_are_named(manifest: Manifest) -> None:
    with pytest.raises(DataError, match="2 classes of the data missing from the labels: right, up;"):
        EvaluationClips(manifest, CONFIG, labels=["left", "down"])


def test_a_clip_without_a_label_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path\nleft/left_00.mp4\n")
    with pytest.raises(DataError, match=r"left/left_00.mp4 has no label; expected one of left"):
        EvaluationClips(read_manifest(tmp_path / "l.csv"), CONFIG, labels=["left"])


def test_the_order_of_an_epoch_is_a_permutation_of_its_own() -> None:
    order = epoch_order(50, seed=3, epoch=2)
    assert sorted(order) == list(range(50))
    assert order == epoch_order(50, seed=3, epoch=2)
    assert order != epoch_order(50, seed=3, epoch=3)
    assert order != epoch_order(50, seed=4, epoch=2)
    assert epoch_order(0, seed=0, epoch=0) == []


def test_a_balanced_epoch_has_every_class_equally_often_and_other_clips_of_a_large_one_each_time() -> None:
    targets = [(0,)] * 70 + [(1,)] * 5 + [(3,)] * 25
    order = balanced_order(targets, seed=3, epoch=2)
    assert order == balanced_order(targets, seed=3, epoch=2)
    assert order != balanced_order(targets, seed=3, epoch=3)
    assert order != balanced_order(targets, seed=4, epoch=2)
    assert len(order) == len(set(order)) == 100
    counts = Counter(targets[index % 100] for index in order)
    assert sorted(counts) == [(0,), (1,), (3,)]
    assert set(counts.values()) == {33, 34}
    visits = Counter(index % 100 for index in order)
    assert max(visits[index] for index in range(70)) == 1
    assert {visits[index] for index in range(70, 75)} <= {6, 7}
    seen = {index for epoch in range(12) for index in balanced_order(targets, seed=3, epoch=epoch)}
    assert set(range(100)) <= seen
    assert balanced_order([], seed=0, epoch=0) == []


def test_every_visit_of_a_clip_in_one_epoch_has_a_view_of_its_own(manifest: Manifest) -> None:
    clips = training(manifest)
    first, again = clips[1], clips[1 + len(clips)]
    assert (again["index"], again["label"]) == (first["index"], first["label"]) == (1, first["label"])
    assert not torch.equal(clip_of(first), clip_of(again))
    assert torch.equal(clip_of(again), clip_of(clips[1 + len(clips)]))
    store = ViewStore(num_clips=len(clips), view_shape=tuple(clip_of(first).shape), max_bytes=2**30)
    clips.store = store
    assert torch.equal(clip_of(again), clip_of(clips[1 + len(clips)]))
    break_clip(manifest, 1)
    assert clips[1 + len(clips)]["failures"]


def test_views_drawn_ahead_are_the_views_drawn_in_their_own_epoch(manifest: Manifest) -> None:
    plain = training(manifest, seed=3)
    per_epoch = len(manifest.entries) * (8 + 4 * 3 * 32**2)
    store = ViewStore(num_clips=len(manifest.entries), view_shape=(4, 3, 32, 32), max_bytes=3 * per_epoch)
    assert store.epochs_ahead == 3
    ahead = TrainingClips(
        manifest,
        CONFIG,
        labels=manifest.labels,
        augmentation=Augmentation(),
        seed=3,
        store=store,
        num_epochs=6,
    )
    loader = DataLoader(
        ahead, batch_size=2, collate_fn=collate, num_workers=2, persistent_workers=True, multiprocessing_context="spawn"
    )
    for epoch in range(6):
        ahead.set_epoch(epoch)
        plain.set_epoch(epoch)
        clips = torch.cat([batch["clips"] for batch in loader])
        expected = torch.stack([clip_of(plain[index]) for index in range(len(plain))])
        assert torch.equal(clips, expected), epoch
    assert any(store.take(index, 5) is not None for index in range(len(plain)))  # what the workers have drawn


@pytest.mark.parametrize("max_bytes", [0, 2**30])
def test_views_that_come_again_are_those_of_the_first_epochs_in_turn(manifest: Manifest, max_bytes: int) -> None:
    fresh = training(manifest, seed=3)
    again = TrainingClips(
        manifest,
        CONFIG,
        labels=manifest.labels,
        augmentation=Augmentation(),
        seed=3,
        store=ViewStore(
            num_clips=len(manifest.entries), view_shape=(4, 3, 32, 32), max_bytes=max_bytes, max_epochs_ahead=2
        ),
        num_epochs=8,
        views_per_clip=3,
    )
    for epoch in range(8):
        again.set_epoch(epoch)
        fresh.set_epoch(epoch % 3)
        for index in (0, 1, 1 + len(fresh)):
            assert torch.equal(clip_of(again[index]), clip_of(fresh[index])), (epoch, index)


@pytest.mark.parametrize(
    ("views_per_clip", "drawn"),
    [
        (None, [8, 5, 5, 2]),  # clip 0 in epoch 0, clip 3 in 0 and 5, clip 0 in 8: not all in the same epoch
        (4, [4, 4, 4, 4, 4, 4]),
    ],
)
def test_a_video_is_decoded_once_for_the_epochs_that_fit(
    views_per_clip: int | None, drawn: list[int], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ViewStore(num_clips=len(manifest.entries), view_shape=(4, 3, 32, 32), max_bytes=2**30)
    assert store.epochs_ahead == 7
    dataset = TrainingClips(
        manifest,
        CONFIG,
        labels=manifest.labels,
        augmentation=Augmentation(),
        store=store,
        num_epochs=10,
        views_per_clip=views_per_clip,
    )
    opened = []
    original = dataset_module.load_random_views

    def count(path: Path, *args: Any, **kwargs: Any) -> torch.Tensor:
        opened.append(len(kwargs["generators"]))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(dataset_module, "load_random_views", count)
    for epoch in range(10):
        dataset.set_epoch(epoch)
        dataset[0], dataset[3]
    assert opened == drawn


def test_a_disk_that_fills_up_stops_the_drawing_ahead_and_every_process_knows(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ViewStore(num_clips=len(manifest.entries), view_shape=(4, 3, 32, 32), max_bytes=2**30)
    ahead = TrainingClips(manifest, CONFIG, labels=manifest.labels, augmentation=Augmentation(), seed=3, store=store)
    plain = training(manifest, seed=3)

    def refuse(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwrite", refuse)
    loader = DataLoader(ahead, batch_size=2, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
    for epoch in range(2):
        ahead.set_epoch(epoch)
        plain.set_epoch(epoch)
        clips = torch.cat([batch["clips"] for batch in loader])
        assert torch.equal(clips, torch.stack([clip_of(plain[index]) for index in range(len(plain))]))
    assert store.problem() == "No space left on device"
    assert len(store.epochs_to_draw(0, 0)) == 1


def test_a_store_leaves_nothing_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    view = torch.arange(4 * 3 * 8 * 8).to(torch.uint8).view(4, 3, 8, 8)
    store.put(1, 5, torch.stack([view, view.flip(0)]))
    assert torch.equal(take(store, 1, 6), view.flip(0))
    assert store.take(1, 7) is None
    assert store.take(0, 5) is None
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_those_of_the_part_of_the_video_that_is_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    first = manifest.entries[0]
    times = ({}, {"start_seconds": 0.1}, {"end_seconds": 0.9}, {"frames_per_second": 25.0})
    changed = [replace(first, **each) for each in times]  # type: ignore[arg-type]
    clips = training(replace(manifest, entries=tuple(changed)))
    clips.tokens = TokenCache(tmp_path / "cache", scope={}, max_bytes=10**6)
    again = training(replace(manifest, entries=(first,) * len(changed)))
    again.tokens = clips.tokens
    for place in range(1, len(changed)):
        assert clips[place]["key"] != again[place]["key"]
    assert clips[0]["key"] == again[0]["key"]


def test_a_single_clip_that_is_unreadable_has_no_replacement(manifest: Manifest) -> None:
    broken = break_clip(manifest, 0)
    sample = training(replace(manifest, entries=manifest.entries[:1]))[0]
    assert sample["clip"] is None
    assert [name for name, _ in sample["failures"]] == [broken]


def test_a_store_that_cannot_be_read_says_so_and_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    store.put(1, 5, torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8))

    def refuse(*args: Any) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.pread", refuse)
    assert store.take(1, 5) is None
    assert store.problem() == os.strerror(errno.EIO)


def test_a_store_whose_file_is_cut_off_says_so_and_gives_nothing() -> None:
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    store.put(1, 5, torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8))
    os.ftruncate(store._descriptor, store._view_start(1, 0) + 100)
    assert store.take(1, 5) is None
    assert store.problem() == os.strerror(errno.EIO)


def test_a_view_that_is_written_in_pieces_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr("os.pwrite", lambda descriptor, content, place: write(descriptor, content[:100], place))
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    view = torch.arange(4 * 3 * 8 * 8).to(torch.uint8).view(4, 3, 8, 8)
    store.put(0, 5, view[None])
    store.put(1, 5, view.flip(0)[None])
    assert torch.equal(take(store, 0, 5), view)
    assert torch.equal(take(store, 1, 5), view.flip(0))


@pytest.mark.parametrize(("error", "told"), [(OSError(errno.EDQUOT, "quota"), errno.EDQUOT), (OSError(), errno.EIO)])
def test_a_view_for_which_there_is_no_room_is_not_found_and_no_other_is_tried(
    monkeypatch: pytest.MonkeyPatch, error: OSError, told: int
) -> None:
    write, tried = os.pwrite, []

    def refuse_views(descriptor: int, content: memoryview, place: int) -> int:
        tried.append(place)
        if len(content) > 8:
            raise error
        return write(descriptor, content, place)

    monkeypatch.setattr("os.pwrite", refuse_views)
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    for epoch in (5, 6):
        store.put(1, epoch, torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8))
        assert store.take(1, epoch) is None
    assert len(tried) == 1
    assert store.problem() == os.strerror(told)


def test_the_file_of_a_store_is_closed_with_it() -> None:
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    descriptor = store._descriptor
    os.fstat(descriptor)
    del store
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)


def test_a_store_without_a_folder_for_its_file_says_so_and_draws_nothing_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    assert store.epochs_ahead == 0
    assert store.problem() == os.strerror(errno.ENOENT)
    store.put(1, 5, torch.zeros(1, 4, 3, 8, 8, dtype=torch.uint8))
    assert store.take(1, 5) is None


def test_a_store_takes_half_of_the_free_disk_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    per_epoch = 2 * (8 + 4 * 3 * 8 * 8)

    class Usage:
        free = 6 * per_epoch

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    store = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    assert store.epochs_ahead == 3
    view = torch.arange(4 * 3 * 8 * 8).to(torch.uint8).view(1, 4, 3, 8, 8)
    store.put(1, 5, view.repeat(3, 1, 1, 1, 1))
    assert torch.equal(take(store, 1, 7), view[0])
    assert store.take(0, 7) is None
    Usage.free = per_epoch
    nearly_full = ViewStore(num_clips=2, view_shape=(4, 3, 8, 8), max_bytes=2**20)
    assert nearly_full.epochs_ahead == 0
    assert nearly_full.problem() == os.strerror(errno.ENOSPC)


def take(store: ViewStore, index: int, epoch: int) -> torch.Tensor:
    view = store.take(index, epoch)
    assert view is not None
    return view


def test_a_store_without_room_draws_nothing_ahead(manifest: Manifest) -> None:
    store = ViewStore(num_clips=10**9, view_shape=(4, 3, 32, 32), max_bytes=2**30)
    assert store.epochs_ahead == 0
    assert store.problem() is None  # as was asked for
    dataset = TrainingClips(manifest, CONFIG, labels=manifest.labels, augmentation=Augmentation(), store=store)
    assert torch.equal(clip_of(dataset[1]), clip_of(training(manifest)[1]))


def test_views_of_a_file_that_lost_a_frame_do_not_depend_on_those_drawn_with_them(tmp_path: Path) -> None:
    frames = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None, None] * 4, 64, axis=1)
    frames = np.ascontiguousarray(np.broadcast_to(frames, (60, 64, 64, 3)))
    write_video(tmp_path / "a.mp4", frames, frames_per_second=30)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][8]
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    assert packet.pos is not None
    data[packet.pos + 4 : packet.pos + packet.size] = bytes(packet.size - 4)  # the frame's length stays as it is
    (tmp_path / "a.mp4").write_bytes(data)
    with VideoReader(tmp_path / "a.mp4") as reader:
        reader.read([50])
        assert not reader.has_lost_frames
        reader.read(range(20))
        assert reader.has_lost_frames
    manifest = Manifest((Entry(tmp_path / "a.mp4", "a.mp4", "a"),), ("a", "b"))
    for seed in range(8):
        clips = training(manifest, seed=seed)
        clips.store = ViewStore(num_clips=1, view_shape=(4, 3, 32, 32), max_bytes=10**8)
        ahead = []
        for epoch in range(8):
            clips.set_epoch(epoch)
            ahead.append(clip_of(clips[0]))
        clips.store = None
        for epoch in range(8):
            clips.set_epoch(epoch)
            assert torch.equal(clip_of(clips[0]), ahead[epoch]), (seed, epoch)


def test_what_cannot_be_read_of_a_later_view_leaves_this_one_as_it_is(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = clip_of(training(manifest)[0])
    original = dataset_module.load_random_views

    def load(path: Any, config: Any, *, generators: Any, **options: Any) -> torch.Tensor:
        if len(generators) > 1:
            raise VideoError("a frame of a later view is damaged")
        return original(path, config, generators=generators, **options)

    monkeypatch.setattr(dataset_module, "load_random_views", load)
    clips = training(manifest)
    clips.store = ViewStore(num_clips=len(clips), view_shape=(4, 3, 32, 32), max_bytes=10**8)
    sample = clips[0]
    assert sample["failures"] == []
    assert torch.equal(clip_of(sample), expected)
