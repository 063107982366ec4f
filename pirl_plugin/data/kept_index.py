"""What is in an archive or a table of images, and where: written once, as a plain .npy array beside it.

The array's name has the size and time of what it lists: of one that was replaced, another index is made.
"""

from __future__ import annotations

import bisect
import contextlib
import glob
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pirl_plugin.data.file_lists import printable
from pirl_plugin.paths import cache_of, written_whole


class Index:
    """Images by their names.

    Attributes:
        entries: a structured array of one entry an image, with `name`, as bytes, and what else is known of it;
            `by_name` has the numbers of all entries in the order of names.
    """

    def __init__(self, entries: np.ndarray) -> None:
        # As plain arrays: a memmap takes several times as long to give one element.
        self.entries, self.names, self.by_name = map(np.asarray, (entries, entries["name"], entries["by_name"]))

    def place(self, name: bytes) -> int | None:
        """The number of the entry of a name; None where there is none."""
        found = self._before(name)
        if found == len(self.by_name) or self.names[self.by_name[found]] != name:
            return None
        return int(self.by_name[found])

    def below(self, folder: bytes) -> np.ndarray:
        """Numbers of the entries below a folder, b"a/b/" or b"" for all, in ascending order."""
        if not folder:
            return np.arange(len(self.names))
        after = folder[:-1] + bytes([folder[-1] + 1])
        return np.sort(self.by_name[self._before(folder) : self._before(after)])

    def _before(self, name: bytes) -> int:
        """How many names come before one."""
        return bisect.bisect_left(self.by_name, name, key=self.names.__getitem__)


def kept_index(path: str, key: str, listed: Callable[[], np.ndarray], kind: str = "") -> np.ndarray:
    """The entries of an archive or table, mapped from a file that is written where there is none yet.

    Args:
        path: of what is listed.
        key: "<size>-<time>.v<version>.npy", by which its state is known.
        listed: lists it.
        kind: stands before the key where another index may have the name.
    """
    whole = os.path.abspath(path)
    files = [Path(whole).with_name(f".{Path(whole).name}.{kind}{key}"), cache_of(path, kind + key)]
    for file in files:
        with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or torn
            return np.load(file, mmap_mode="r", allow_pickle=False)
    logging.info(f"Listing {printable(path)}, once ...")
    entries = listed()
    for file in files:
        with contextlib.suppress(OSError, EOFError):
            write_index(file, entries, file.name.removesuffix(key))
            return np.load(file, mmap_mode="r", allow_pickle=False)
    folders = " nor in ".join(str(file.parent) for file in files)
    logging.warning(f"The index of {printable(path)} can be kept neither in {folders}.")
    return entries


def write_index(file: Path, entries: np.ndarray, start: str) -> None:
    """Write an index, and delete those from before its archive or table was replaced, whose names start alike."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as written:
        np.save(written, entries, allow_pickle=False)
    for old in file.parent.glob(f"{glob.escape(start)}*-*.v*.npy"):
        if old != file:
            old.unlink(missing_ok=True)
