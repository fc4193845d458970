"""What happens to memory that this process has freed."""

import ctypes
import os
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
_NEVER = -1
_LARGE_BYTES, _MANY = 32 * 2**20, 65_536


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees and reuse it, instead of handing it back to the system.

    By default glibc hands every large tensor back and requests it again at the next step, when each of its pages
    has to be cleared and mapped: a tenth of a training step on a CPU (docs/log.md). This is a choice for a whole
    process, so commands make it and the library does not. Nothing happens if the C library is not glibc, or if
    the environment has malloc settings (GLIBC_TUNABLES, MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_MAX_ ...).
    """
    if _is_glibc() and not _is_set_up():
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _NEVER)


def keep_no_freed_memory() -> None:
    """Undo `keep_freed_memory` in a process that was forked from one that keeps its memory.

    A process that decodes videos takes blocks of many sizes, and may have many siblings: keeping memory would cost it
    more than it gains. The limits are those that glibc itself arrives at when large blocks come and go.
    """
    if _is_glibc() and not _is_set_up():
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, _MANY)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def hand_back_freed_memory() -> None:
    """Hand kept memory back to the system once, before the memory of the process is measured."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    """Whether the C library is glibc: musl also has the query, but no answer to it."""
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    with suppress(OSError):
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


def _is_set_up() -> bool:
    """Whether someone has set up malloc for this process."""
    return any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
