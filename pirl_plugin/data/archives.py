"""Archives as folders of images: tar, tar of tars (as ImageNet's training set ships), zip, and tables of images.

Nothing is unpacked. Tables (pirl_plugin.data.tables) are what Hugging Face `datasets` saves, and Parquet files.

A member has the path that it would have in the unpacked folder: `train.tar/n01440764/1.JPEG`; archives inside an
archive or a folder stand for folders of their name without the ending. All functions that read an image by its path
(`read_file`) take such a path, and lists of files may name it. Members are found by an index beside the archive, mapped
into memory and so shared by all processes, and read with pread: workers need no lock.
"""

from __future__ import annotations

import errno
import functools
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pirl_plugin.data import tables
from pirl_plugin.data.archive_index import ENDINGS, STORED, index_of, refuse_compressed
from pirl_plugin.data.file_parts import read_part
from pirl_plugin.data.kept_index import Index
from pirl_plugin.data.tables import Table
from pirl_plugin.validation import ConfigError


class Archive(Index):
    """A tar or zip; its members by their names, as os.walk would list them.

    Args:
        size, changed: of the file, in bytes and ns.

    Attributes:
        entries: one of `pirl_plugin.data.archive_index.entries_dtype` for each image, in the order of a walk.
    """

    def __init__(self, path: str, size: int, changed: int) -> None:
        super().__init__(index_of(path))
        self.path, self.state = path, (size, changed)

    def read(self, place: int) -> bytes:
        """The bytes of an entry.

        Raises:
            OSError: where the archive is shorter than its index says.
        """
        entry = self.entries[place]
        packed, size = int(entry["packed"]), int(entry["size"])
        data = read_part(self.path, self.state, int(entry["offset"]), size if packed == STORED else packed)
        if packed != STORED:
            data = zlib.decompress(data, -zlib.MAX_WBITS, size)
        if len(data) != size:
            raise OSError(errno.EIO, "the archive ends before this member does", self.path)
        return data


_opened = functools.lru_cache(maxsize=4096)(Archive)


def _open(path: str) -> Archive:
    now = os.stat(path)
    return _opened(path, now.st_size, now.st_mtime_ns)  # another, where it was replaced


Opener = Callable[[str], Archive | Table]


@functools.lru_cache(maxsize=65_536)
def _folder(folder: str) -> tuple[Opener, str, bytes] | None:
    """The archive or table in which a folder lies, how it is opened, and the folder's name there, with a slash."""
    inside: list[str] = []
    while True:
        below = os.fsencode("".join(f"{part}/" for part in reversed(inside)))
        if not os.path.isdir(folder):
            for candidate in (folder, *(folder + ending for ending in ENDINGS)):
                if candidate.lower().endswith(ENDINGS) and os.path.isfile(candidate):
                    return _open, candidate, below
        if tables.is_table(folder or "."):
            return tables.opened, folder or ".", below
        if not folder or os.path.isdir(folder):
            return None
        folder, last = os.path.split(folder)
        inside.append(last)


def find(path: str) -> tuple[Archive | Table, int] | None:
    """The archive and the number of the entry of a member by its path; None where it is not in an archive."""
    folder, name = os.path.split(path)
    found = _folder(folder)
    if found is None:
        return None
    opener, root, below = found
    archive = opener(root)
    place = archive.place(below + os.fsencode(name))
    return None if place is None else (archive, place)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, or of a member of an archive.

    Raises:
        OSError: where there is neither.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        found = find(os.fspath(path))
        if found is None:
            raise
        return found[0].read(found[1])


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a named pipe, which no one may ever write to, is empty then."""
    return os.open(path, flags | os.O_NONBLOCK)


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
    """Paths of all images in an archive, a table or a folder in one, in their order; None where it is neither."""
    path = os.fspath(path).rstrip("/")
    found: tuple[Opener, str, bytes] | None
    if is_archive(path):
        found = (_open, path, b"")
    elif tables.is_table(path):
        found = (tables.opened_anew, path, b"")
    else:
        found = None if os.path.exists(path) else _folder(path)
    if found is None:
        return None
    opener, root, below = found
    archive = opener(root)
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
    if os.path.isdir(path) and not tables.is_table(path):
        return [Path(archive).stem for archive in archives_below(path)] or None
    found = members(path)
    if found is None:
        return None
    start = len(os.path.join(os.fspath(path).rstrip("/"), ""))
    return sorted({name[start:].split("/", 1)[0] for name in found if "/" in name[start:]})
