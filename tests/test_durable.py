"""Files are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from stadapter.durable import remove_parts, write_whole
from stadapter.errors import ArtefactError


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ArtefactError, match="No space left on device; make room"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        done.append("folder" if os.path.samestat(os.fstat(descriptor), os.stat(tmp_path)) else "content")
        sync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        assert source.read_bytes() == b"new"
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr("os.fsync", note_sync)
    monkeypatch.setattr("os.replace", note_replace)
    write_whole(tmp_path / "file", b"new")
    assert done == ["content", "rename", "folder"]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".file.123", "file", ".other.123", "file.123"):
        (tmp_path / name).touch()
    remove_parts(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.123", "file", "file.123"]
