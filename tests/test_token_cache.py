"""Tokens on disk: found again as they were, bounded, whole or not at all."""

import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stadapter.token_cache import TokenCache, default_folder

SCOPE = {"backbone_sha256": "abc", "num_blocks": 10}
TOKENS = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 4)  # (T, N, D)


def make(folder: Path, *, max_bytes: int = 10**6, **scope: Any) -> TokenCache:
    return TokenCache(folder, scope=SCOPE | scope, max_bytes=max_bytes)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def taken(cache: TokenCache, key: str) -> torch.Tensor:
    tokens = cache.take(key)
    assert tokens is not None
    return tokens


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"frames")
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_found_again_as_they_were_by_this_run_and_the_next(tmp_path: Path, dtype: torch.dtype) -> None:
    given = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    cache = make(tmp_path)
    assert cache.take("first") is None
    cache.put(["first", "second"], given)
    for each in (cache, make(tmp_path)):
        assert taken(each, "first").dtype == dtype
        assert torch.equal(taken(each, "first"), given[0])
        assert torch.equal(taken(each, "second"), given[1])
        assert each.take("third") is None
    assert cache.problem() is None


def test_nothing_is_made_before_there_is_something_to_keep(tmp_path: Path) -> None:
    assert make(tmp_path / "cache").take("first") is None
    assert not (tmp_path / "cache").exists()


def test_tokens_of_another_scope_are_not_found(tmp_path: Path) -> None:
    make(tmp_path).put(["view"], TOKENS[None])
    for changed in ({"backbone_sha256": "abd"}, {"num_blocks": 11}, {"more": None}):
        assert make(tmp_path, **changed).take("view") is None
    assert make(tmp_path).take("view") is not None


def test_the_key_of_a_view_tells_its_file_and_all_that_was_drawn(tmp_path: Path, video: Path) -> None:
    cache = make(tmp_path)
    view: dict[str, Any] = {"draw": (0, 1, 2, 0), "times": (None, None, None)}
    others = video.with_name("other.mp4"), tmp_path / "elsewhere" / video.name
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(video.read_bytes())
        os.utime(other, ns=(video.stat().st_atime_ns, video.stat().st_mtime_ns))
    draws = ((1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1))
    times = ((0.5, None, None), (None, 0.5, None), (None, None, 25))
    keys = {
        cache.key(video, **view),
        *(cache.key(other, **view) for other in others),
        *(cache.key(video, **view | {"draw": draw}) for draw in draws),
        *(cache.key(video, **view | {"times": each}) for each in times),
    }
    assert len(keys) == 10
    assert cache.key(video, **view) in keys


def test_a_changed_video_has_another_key(tmp_path: Path, video: Path) -> None:
    cache = make(tmp_path)
    before = video.stat()
    first = cache.key(video)
    video.write_bytes(b"Frames")
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    later = cache.key(video)
    video.write_bytes(b"frames and more")
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len({first, later, cache.key(video)}) == 3
    with pytest.raises(FileNotFoundError):
        cache.key(tmp_path / "gone.mp4")


def test_a_folder_of_frames_has_another_key_when_one_of_them_changes(tmp_path: Path) -> None:
    folder, cache = tmp_path / "frames", make(tmp_path)
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(b"frame")
    keys = [cache.key(folder)]
    (folder / "1.jpg").write_bytes(b"another")
    keys.append(cache.key(folder))
    (folder / "2.jpg").unlink()
    assert len({*keys, cache.key(folder)}) == 3


@pytest.mark.parametrize("harm", ["cut off", "empty", "one bit", "of another key"])
def test_a_damaged_file_is_removed_counted_and_made_anew(tmp_path: Path, harm: str) -> None:
    cache = make(tmp_path)
    cache.put(["view"], TOKENS[None])
    (path,) = files(tmp_path)
    content = path.read_bytes()
    if harm == "of another key":
        path.rename(path.with_name("other.safetensors"))
        assert cache.take("other") is None
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        path.write_bytes({"cut off": content[:-1], "empty": b"", "one bit": flipped}[harm])
        assert cache.take("view") is None
    assert files(tmp_path) == []
    assert cache.num_damaged() == 1
    cache.put(["view"], TOKENS[None])
    assert torch.equal(taken(cache, "view"), TOKENS)


def test_what_other_runs_have_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    earlier = make(tmp_path, num_blocks=1)
    earlier.put([f"view {number}" for number in range(10)], TOKENS.expand(10, -1, -1, -1))
    (size,) = {path.stat().st_size for path in files(tmp_path)}
    for number in range(10):
        path = next(path for path in files(tmp_path) if path.stem == f"view {number}")
        os.utime(path, (time.time() - 1000 + number, time.time() - 1000 + number))
    assert make(tmp_path, num_blocks=1).take("view 0") is not None  # now it is the one used last
    time.sleep(0.01)
    cache = make(tmp_path, max_bytes=10 * size)
    cache.put(["new"], TOKENS[None])
    assert cache.problem() is None
    left = {path.stem for path in files(tmp_path)}
    assert left == {"new", "view 0", *(f"view {number}" for number in range(3, 10))}
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 10 * size


def test_what_a_killed_process_left_half_written_goes_too_and_other_files_stay(tmp_path: Path) -> None:
    make(tmp_path).put(["view"], TOKENS[None])
    (kept,) = files(tmp_path)
    part = kept.with_name(".another.safetensors.4711")
    theirs = [tmp_path / "holiday.mp4", tmp_path / "more.safetensors", kept.parent / "notes.txt"]
    for path in (part, *theirs):
        path.write_bytes(bytes(10_000))
        os.utime(path, (1, 1))
    cache = make(tmp_path, max_bytes=5_000)
    cache.put(["new"], TOKENS[None])
    assert cache.problem() is None
    assert not part.exists()
    assert all(path.exists() for path in theirs)


def test_what_this_run_uses_stays_when_its_views_do_not_all_fit(tmp_path: Path) -> None:
    make(tmp_path).put(["earlier"], TOKENS[None])
    size = files(tmp_path)[0].stat().st_size
    time.sleep(0.01)
    cache = make(tmp_path, max_bytes=3 * size)
    assert cache.take("earlier") is not None
    for number in range(4):
        cache.put([f"view {number}"], TOKENS[None])
    assert {path.stem for path in files(tmp_path)} == {"earlier", "view 0", "view 1"}
    assert cache.problem() == f"its {3 * size / 1e9:.3g} GB are full, or the disk is"
    assert torch.equal(taken(cache, "view 1"), TOKENS)


def test_what_others_write_meanwhile_counts(tmp_path: Path) -> None:
    make(tmp_path).put(["earlier 00"], TOKENS[None])
    size = files(tmp_path)[0].stat().st_size
    time.sleep(0.01)
    cache = make(tmp_path, max_bytes=32 * size)
    for number in range(40):
        cache.put([f"ours    {number:02}"], TOKENS[None])
        make(tmp_path).put([f"theirs  {number:02}"], TOKENS[None])
    assert cache.problem() is not None
    assert 14 <= len([path for path in files(tmp_path) if path.stem.startswith("ours")]) <= 18


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_nothing_is_kept_and_it_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    cache = make(tmp_path)
    cache.put(["before"], TOKENS[None])
    calls = []

    def refuse(*args: Any) -> int:
        calls.append(args)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    for key in ("view", "another"):
        cache.put([key], TOKENS[None])
        assert cache.take(key) is None
    assert len(calls) == 1
    assert cache.problem() == os.strerror(number)
    assert torch.equal(taken(cache, "before"), TOKENS)
    assert [path.stem for path in files(tmp_path)] == ["before"]


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = make(tmp_path / "file")
    cache.put(["view"], TOKENS[None])
    assert cache.problem() in (os.strerror(errno.ENOTDIR), os.strerror(errno.EEXIST))
    assert cache.take("view") is None


def test_a_disk_is_filled_by_half_of_what_is_free_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path).put(["earlier"], TOKENS[None])
    size = files(tmp_path)[0].stat().st_size

    class Usage:
        free = 4 * size

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    cache = make(tmp_path)
    assert cache.take("earlier") is not None
    for number in range(4):
        cache.put([f"view {number}"], TOKENS[None])
    assert {path.stem for path in files(tmp_path)} == {"earlier", "view 0", "view 1"}


def put_and_take(folder: Path, failures: Any) -> None:
    cache = make(folder)
    for _ in range(40):
        cache.put(["view"], TOKENS[None])
        tokens = cache.take("view")
        if tokens is None or not torch.equal(tokens, TOKENS) or cache.num_damaged():
            failures.put("not whole")


def test_processes_that_keep_the_same_view_at_the_same_time_do_not_harm_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    processes = [context.Process(target=put_and_take, args=(tmp_path, failures)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert failures.empty()
    assert [path.name for path in files(tmp_path)] == ["view.safetensors"]


def test_the_default_folder_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "stadapter"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "stadapter"
