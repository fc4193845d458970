"""What the frozen blocks make of a view of a clip, kept on disk: computed once, and kept for later runs.

    folder/tokens-2/<hash of what all views share>/<hash of the view>.safetensors

A file is a sha256 followed by what it covers: one tensor under its own name. It is written under another name first, so
that several processes may store the same view. Files are read only if they are whole; anything missing is recomputed.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from stadapter.paths import expanded

_FORMAT = "tokens-2"
_SUFFIX = ".safetensors"
_DIGEST_BYTES = 32
_SHARE_BETWEEN_SCANS = 1 / 16
"""Share of the room that this process writes before it checks again what others have written."""


class TokenCache:
    """Tokens (T, N, D) of views, by key; bounded, on disk, shared by processes and by runs.

    When there is no room, what other runs have not used for longest is removed. What this run has used stays, because
    every epoch needs it again: if there are more views than fit, the first ones are kept and the rest recomputed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, scope: Mapping[str, Any], max_bytes: int) -> None:
        """Prepare to read and write; opens nothing.

        Args:
            folder: where to keep files; created when there is something to keep.
            scope: everything that determines the tokens of a view besides the view itself, as JSON values.
            max_bytes: room for the files of all scopes together; new ones also take at most half of the free disk. Each
                of several processes that write at the same time may exceed it by a sixteenth.
        """
        self.folder = expanded(folder).absolute() / _FORMAT
        self.max_bytes = max_bytes
        self._scope = self.folder / _hash(scope)
        self._started = time.time()
        self._limit_bytes: int | None = None
        self._used_bytes = self._written_bytes = 0
        self._problem: str | None = None
        # In shared memory: the training process reports what a decoding process finds.
        self._num_damaged = torch.zeros((), dtype=torch.int64)
        self._num_damaged.share_memory_()  # type: ignore[no-untyped-call]

    def key(self, path: Path, **view: Any) -> str:
        """The name under which the tokens of a view are kept.

        Args:
            path: the video, or the folder of its frames: name, sizes and modification times are part of the key.
            view: everything that determines the view besides `scope`, as JSON values.

        Raises:
            OSError: the file does not exist.
        """
        return _hash({"path": str(path.absolute()), "files": _identity(path), **view})

    def take(self, key: str) -> Tensor | None:
        """The tokens of a view, if they are stored; a damaged file is removed."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        tokens = _unpack(content, key)
        with suppress(OSError):
            if tokens is None:
                self._num_damaged += 1
                path.unlink()
            else:
                os.utime(path)
        return tokens

    def put(self, keys: Sequence[str], tokens: Tensor) -> None:
        """Store the tokens (C, T, N, D) of C views, if there is room; if there is none, `problem` says so."""
        for key, each in zip(keys, tokens.cpu(), strict=True):
            if self._problem is not None:
                return
            content = _pack(each, key)
            try:
                if self._make_room(len(content)):
                    _write(self._path(key), content)
                    self._written_bytes += len(content)
                else:
                    self._problem = f"its {self.max_bytes / 1e9:.3g} GB are full, or the disk is"
            except OSError as error:
                self._problem = error.strerror or str(error)

    def problem(self) -> str | None:
        """Why no more tokens are stored, if that is the case."""
        return self._problem

    def num_damaged(self) -> int:
        """How many of the files that all processes have read so far were damaged."""
        return int(self._num_damaged)

    def _path(self, key: str) -> Path:
        return self._scope / f"{key}{_SUFFIX}"

    def _make_room(self, num_bytes: int) -> bool:
        """Whether there is room for this much more, if necessary after removing what other runs left."""
        if self._limit_bytes is None:
            self._scope.mkdir(parents=True, exist_ok=True)
            self._used_bytes = self._count_used()
            self._limit_bytes = min(self.max_bytes, self._used_bytes + shutil.disk_usage(self._scope).free // 2)
        elif self._written_bytes > self.max_bytes * _SHARE_BETWEEN_SCANS:
            self._used_bytes, self._written_bytes = self._count_used(), 0
        limit = self._limit_bytes - self._written_bytes - num_bytes
        if self._used_bytes <= limit:
            return True
        # Remove more than is needed, so that the next calls need not scan again.
        wanted = limit - self.max_bytes * _SHARE_BETWEEN_SCANS
        for used, size, path in sorted(self._files()):
            if used >= self._started or self._used_bytes <= wanted:
                break
            path.unlink(missing_ok=True)
            self._used_bytes -= size
        return self._used_bytes <= limit

    def _count_used(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each file was last used, its size and its path; includes parts left by a killed process."""
        found = []
        for path in self.folder.glob(f"*/*{_SUFFIX}*"):
            with suppress(OSError):  # another process may have removed it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


def default_folder() -> Path:
    """The folder in which programs keep what can be recreated."""
    with suppress(RuntimeError):  # the system knows no home folder
        return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "stadapter"
    return Path(tempfile.gettempdir()) / "stadapter"


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _identity(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of a file, or of every file in a folder of frames."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    statuses = [(file.name, file.stat()) for file in files]
    return [(name, status.st_size, status.st_mtime_ns) for name, status in statuses]


def _pack(tokens: Tensor, key: str) -> bytes:
    body = save({key: tokens.contiguous()})
    return hashlib.sha256(body).digest() + body


def _unpack(content: bytes, key: str) -> Tensor | None:
    """The tensor of a file; None if the file is damaged, or belongs to another key."""
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    with suppress(safetensors.SafetensorError):
        return load(body).get(key)
    return None


def _write(path: Path, content: bytes) -> None:
    """Write a file whole, though not durably: what a power cut destroys is recomputed."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
