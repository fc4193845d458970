"""Files are there whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from stadapter.durable import remove_parts, write_where_told, write_whole
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
    kept = (".file.txt.123", ".file.jsonl.123", ".other.json.123", "file.json", "file.json.123")
    for name in (".file.json.123", ".file.json.4567", *kept):
        (tmp_path / name).touch()
    remove_parts(tmp_path / "file.json")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="this system has no names for open files")
def test_a_file_that_is_named_by_its_descriptor_stays_the_one_that_is_open(tmp_path: Path) -> None:
    """As with --json /dev/stdout > report.json."""
    with (tmp_path / "report.json").open("wb", buffering=0) as file:
        write_where_told(Path(f"/dev/fd/{file.fileno()}"), b"report\n")
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(tmp_path / "report.json"))
    assert (tmp_path / "report.json").read_bytes() == b"report\n"
