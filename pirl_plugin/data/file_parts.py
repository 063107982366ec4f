"""Parts of large files, read with pread: workers need no lock, and forked ones read by their parent's open file."""

from __future__ import annotations

import contextlib
import functools
import os


class _File:
    """A file that is open for reading until this object is gone."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.number)


@functools.lru_cache(maxsize=64)  # few stay open
def _file(path: str, size: int, changed: int) -> _File:
    return _File(path)


def read_part(path: str, state: tuple[int, int], offset: int, count: int) -> bytes:
    """`count` bytes of a file from `offset` on, or fewer where it ends before.

    Args:
        state: of the file, its size in bytes and when it changed in ns: one that was replaced is opened anew.

    Raises:
        OSError: where it cannot be read.
    """
    return os.pread(_file(path, *state).number, count, offset)
