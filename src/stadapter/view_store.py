"""Training views drawn ahead of their epoch, kept on disk."""

# T frames, H W pixels, E epochs

import errno
import math
import os
import shutil
import tempfile
import weakref
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_EPOCHS_AHEAD = 7


class ViewStore:
    """Training views drawn ahead of their epoch, in a file that all decoding processes share.

    A video is decoded once for the views of several epochs: with small data sets decoding is most of the work, and
    views at training size are small. What is drawn stays the same, because a view is a pure function of its epoch.

        stamps (clips, epochs ahead) int64: epoch + 1, 0 for empty      views (clips, epochs ahead, T, 3, H, W) uint8

    The file has no name: its disk space is freed however the run ends, even by SIGKILL. If there is no
    room for it, or no more room, views are drawn for one epoch at a time: slower, but the same.
    """

    def __init__(
        self,
        *,
        num_clips: int,
        view_shape: tuple[int, ...],
        max_bytes: int,
        max_epochs_ahead: int = MAX_EPOCHS_AHEAD,
    ) -> None:
        """Lay out as many epochs ahead as fit into `max_bytes` and half of the free disk, up to the maximum given."""
        self._view_shape, self._view_bytes = view_shape, math.prod(view_shape)
        self._descriptor = -1
        # In shared memory: the training process reports what a worker finds.
        self._error_number = torch.zeros((), dtype=torch.int64)
        self._error_number.share_memory_()  # type: ignore[no-untyped-call]
        per_epoch = num_clips * (8 + self._view_bytes)
        self.epochs_ahead = min(max_epochs_ahead, max_bytes // per_epoch)
        self._stamps_bytes = 8 * num_clips * self.epochs_ahead
        if not self.epochs_ahead:
            return
        try:
            self.epochs_ahead = min(self.epochs_ahead, _free_bytes() // 2 // per_epoch)
            self._stamps_bytes = 8 * num_clips * self.epochs_ahead
            self._open(self.epochs_ahead * per_epoch)
        except OSError as error:
            self.epochs_ahead = 0
            self._give_up(error)

    def problem(self) -> str | None:
        """Why no more views are stored, if that is the case."""
        number = int(self._error_number)
        return os.strerror(number) if number else None

    def epochs_to_draw(self, index: int, epoch: int) -> range:
        """The epochs for which to draw clip `index` when it is decoded in `epoch`.

        The spans of the clips end in different epochs, so that about the same number of clips is decoded in every epoch
        after the first.
        """
        span = self.epochs_ahead + 1 if not self.problem() else 1
        return range(epoch, epoch + span - (epoch + index) % span)

    def take(self, index: int, epoch: int) -> Tensor | None:
        """The view of clip `index` in `epoch`, (T, 3, H, W), if it has been drawn."""
        if self._descriptor < 0:
            return None
        try:
            stamps = self._read(8 * self.epochs_ahead, 8 * index * self.epochs_ahead)
            found = np.flatnonzero(np.frombuffer(stamps, np.int64) == epoch + 1)
            if not len(found):
                return None
            view = self._read(self._view_bytes, self._view_start(index, int(found[0])))
        except OSError as error:
            self._give_up(error)
            return None
        return torch.frombuffer(view, dtype=torch.uint8).view(self._view_shape)

    def put(self, index: int, epoch: int, views: Tensor) -> None:
        """Store the views (E, T, 3, H, W) of clip `index` for the E epochs from `epoch` on, if there is room."""
        if self._descriptor < 0 or self.problem():
            return
        try:
            for place, view in enumerate(views):
                self._write(view.numpy().tobytes(), self._view_start(index, place))
                self._write(np.int64(epoch + place + 1).tobytes(), 8 * (index * self.epochs_ahead + place))
        except OSError as error:
            self._give_up(error)

    def _open(self, num_bytes: int) -> None:
        if not num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not hasattr(os, "pread"):  # not a POSIX system
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        with tempfile.TemporaryFile(prefix="stadapter-views-") as file:
            file.truncate(num_bytes)  # takes up no space yet
            self._own(os.dup(file.fileno()))

    def _own(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def _view_start(self, index: int, place: int) -> int:
        return self._stamps_bytes + (index * self.epochs_ahead + place) * self._view_bytes

    def _read(self, num_bytes: int, position: int) -> bytearray:
        content = bytearray(os.pread(self._descriptor, num_bytes, position))
        if len(content) < num_bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return content

    def _write(self, content: bytes, position: int) -> None:
        remaining = memoryview(content)
        while remaining:
            written = os.pwrite(self._descriptor, remaining, position)
            remaining, position = remaining[written:], position + written

    def _give_up(self, error: OSError) -> None:
        self._error_number.fill_(error.errno or errno.EIO)

    def __getstate__(self) -> dict[str, object]:
        # For sending to a process that is spawned, not forked.
        return {**self.__dict__, "_descriptor": DupFd(self._descriptor) if self._descriptor >= 0 else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_descriptor": -1}
        if state["_descriptor"] is not None:
            self._own(state["_descriptor"].detach())


def _free_bytes() -> int:
    return shutil.disk_usage(tempfile.gettempdir()).free
