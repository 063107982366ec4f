"""Archives as folders of images: tar, tar of tars (as ImageNet's training set ships) and zip. Nothing is unpacked.

A member has the path that it would have in the unpacked folder: `train.tar/n01440764/1.JPEG`; archives inside an
archive or a folder stand for folders of their name without the ending. All functions that read an image by its path
(`read_file`) take such a path, and lists of files may name it. Members are found by an index beside the archive, mapped
into memory and so shared by all processes, and read with pread: workers need no lock.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import functools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pirl_plugin.data.archive_index import ENDINGS, STORED, index_of, refuse_compressed
from pirl_plugin.validation import ConfigError


class _File:
    """A file that is open for reading until this object is gone."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.close(self.number)


@functools.lru_cache(maxsize=64)  # few stay open; a forked process reads by its parent's, which pread allows
def _file(path: str, size: int, changed: int) -> _File:
    return _File(path)


class Archive:
    """An archive; its members by their names, as os.walk would list them.

    Args:
        size, changed: of the file, in bytes and ns.

    Attributes:
        entries: one of `pirl_plugin.data.archive_index.entries_dtype` for each image, in the order of a walk.
    """

    def __init__(self, path: str, size: int, changed: int) -> None:
        self.path, self.state = path, (size, changed)
        self.entries = index_of(path)
        self.names, self.by_name = self.entries["name"], self.entries["by_name"]

    def place(self, name: bytes) -> int | None:
        """The number of the entry of a name; None where there is none."""
        found = self._before(name)
        if found == len(self.by_name) or self.names[self.by_name[found]] != name:
            return None
        return int(self.by_name[found])

    def below(self, folder: bytes) -> np.ndarray:
        """Numbers of the entries below a folder, b"a/b/" or b"" for all, in the order of a walk."""
        if not folder:
            return np.arange(len(self.names))
        after = folder[:-1] + bytes([folder[-1] + 1])
        return np.sort(self.by_name[self._before(folder) : self._before(after)])

    def _before(self, name: bytes) -> int:
        """How many names come before one."""
        return bisect.bisect_left(self.by_name, name, key=self.names.__getitem__)

    def read(self, place: int) -> bytes:
        """The bytes of an entry.

        Raises:
            OSError: where the archive is shorter than its index says.
        """
        entry, file = self.entries[place], _file(self.path, *self.state)
        packed, size = int(entry["packed"]), int(entry["size"])
        data = os.pread(file.number, size if packed == STORED else packed, int(entry["offset"]))
        if packed != STORED:
            data = zlib.decompress(data, -zlib.MAX_WBITS, size)
        if len(data) != size:
            raise OSError(errno.EIO, "the archive ends before this member does", self.path)
        return data


_opened = functools.lru_cache(maxsize=4096)(Archive)


def _open(path: str) -> Archive:
    now = os.stat(path)
    return _opened(path, now.st_size, now.st_mtime_ns)  # another, where it was replaced


@functools.lru_cache(maxsize=65_536)
def _folder(folder: str) -> tuple[str, bytes] | None:
    """The archive in which a folder lies that is none on the disk, and the folder's name there, with a slash."""
    inside: list[str] = []
    while folder and not os.path.isdir(folder):
        for candidate in (folder, *(folder + ending for ending in ENDINGS)):
            if candidate.lower().endswith(ENDINGS) and os.path.isfile(candidate):
                return candidate, os.fsencode("".join(f"{part}/" for part in reversed(inside)))
        folder, last = os.path.split(folder)
        inside.append(last)
    return None


def find(path: str) -> tuple[Archive, int] | None:
    """The archive and the number of the entry of a member by its path; None where it is not in an archive."""
    folder, name = os.path.split(path)
    found = _folder(folder)
    if found is None:
        return None
    archive = _open(found[0])
    place = archive.place(found[1] + os.fsencode(name))
    return None if place is None else (archive, place)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, or of a member of an archive.

    Raises:
        OSError: where there is neither.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        found = find(os.fspath(path))
        if found is None:
            raise
        return found[0].read(found[1])


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or a member of an archive of this path."""
    return os.path.isfile(path) or find(os.fspath(path)) is not None


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a tar or zip file.

    Raises:
        ConfigError: for one that is compressed as a whole, with the command that helps.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        return False
    refuse_compressed(path)
    return path.lower().endswith(ENDINGS)


def members(path: str | os.PathLike[str]) -> Iterator[str] | None:
    """Paths of all images in an archive or in a folder of one, in the order of a walk; None where it is neither."""
    path = os.fspath(path).rstrip("/")
    found = (path, b"") if is_archive(path) else None if os.path.exists(path) else _folder(path)
    if found is None:
        return None
    archive, below = _open(found[0]), found[1]
    return (os.path.join(path, os.fsdecode(archive.names[n][len(below) :])) for n in archive.below(below))


def archives_below(folder: str | os.PathLike[str]) -> list[str]:
    """The archives directly in a folder, in the order of the folders that they stand for.

    Raises:
        ConfigError: where two stand for the same folder, or one for a folder that is there.
    """
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        path, stem = os.path.join(folder, name), os.path.splitext(name)[0]
        if name.startswith(".") or not is_archive(path):
            continue
        other = found.get(stem) or (stem if os.path.isdir(os.path.join(folder, stem)) else None)
        if other is not None:
            raise ConfigError(f"{folder} has {name} and {other}, which stand for the same folder: leave one of them.")
        found[stem] = name
    return [os.path.join(folder, found[stem]) for stem in sorted(found)]


def images_in_archives(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Paths of the images of all archives directly in a folder, each below a folder of its name without the ending."""
    for path in archives_below(folder):
        below, names = os.path.splitext(path)[0], _open(path).names
        yield from (os.path.join(below, os.fsdecode(name)) for name in names)


def class_names(path: str | os.PathLike[str]) -> list[str] | None:
    """The folders at the top of an archive, or those that the archives of a folder stand for; None without archives."""
    if os.path.isdir(path):
        return [Path(archive).stem for archive in archives_below(path)] or None
    found = members(path)
    if found is None:
        return None
    start = len(os.path.join(os.fspath(path).rstrip("/"), ""))
    return sorted({name[start:].split("/", 1)[0] for name in found if "/" in name[start:]})
