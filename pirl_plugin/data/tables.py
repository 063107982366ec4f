"""Tables as folders of images: what Hugging Face `datasets` saved by save_to_disk, and Parquet files.

An image has the path <table>/<class>/<name>, or <table>/<name> without a column of classes; images come in the order of
rows. pyarrow lists a table once; nothing of `datasets` is needed, and no code that came with the data is run.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
from collections import OrderedDict
from typing import Any

from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.file_parts import read_part
from pirl_plugin.data.kept_index import Index, kept_index
from pirl_plugin.data.table_columns import Columns, columns_of, import_pyarrow, refuse_labels
from pirl_plugin.data.table_files import TableFiles, is_table, table_files
from pirl_plugin.data.table_index import IN_ONE_PIECE, LARGEST_GROUP, MISSING, VERSION, entries_of, images_of
from pirl_plugin.validation import ConfigError


class Table(Index):
    """A table; its images by their names.

    Attributes:
        files: what it is made of.

    Raises:
        ConfigError: where it cannot be a table of images.
        MissingPackageError: without pyarrow, which lists it and unpacks Parquet.
    """

    def __init__(self, path: str) -> None:
        self.path, self.files = path, table_files(path)
        super().__init__(kept_index(path, _key(path, self.files), lambda: entries_of(path, self.files), "table."))
        if not os.path.isdir(path):
            return
        with os.scandir(path) as found:
            folders = [entry.name for entry in found if entry.is_dir()]
        for name in folders:
            if len(self.below(os.fsencode(name) + b"/")):
                raise ConfigError(
                    f"{printable(path)} has a folder {printable(name)}, and images of a class of that name in its "
                    f"table: name the folder anew."
                )

    def read(self, place: int) -> bytes:
        """The bytes of an image.

        Raises:
            OSError: where they are not there, or the file was replaced since it was listed.
        """
        entry = self.entries[place]
        path, state = self.files.paths[entry["file"]], self.files.states[entry["file"]]
        now = os.stat(path)
        if (now.st_size, now.st_mtime_ns) != state:
            raise OSError(errno.ESTALE, "it was replaced since it was listed", path)
        group, offset, size = int(entry["group"]), int(entry["offset"]), int(entry["size"])
        if size == MISSING:
            raise OSError(errno.ENODATA, "the row has no bytes of an image", path)
        if group == IN_ONE_PIECE:
            data = read_part(path, state, offset, size)
            if len(data) != size:
                raise OSError(errno.EIO, "the file ends before this image does", path)
            return data
        value = _groups.images(path, state, group)[offset]
        if not value.is_valid:
            raise OSError(errno.ENODATA, "the row has no bytes of an image", path)
        return bytes(value.as_py())


class _Groups:
    """The row groups that were unpacked last in this process, LARGEST_GROUP bytes in all at most.

    Files are opened for each anew, so that forked processes share no place in one.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple, Any] = OrderedDict()

    def images(self, path: str, state: tuple[int, int], group: int) -> Any:
        key = (path, state, group)
        found = self.kept.pop(key, None)
        if found is None:
            pyarrow = import_pyarrow(path)
            with pyarrow.parquet.ParquetFile(path) as opened:
                found = images_of(opened, group, columns_of(path, opened.schema_arrow, {}))
        self.kept[key] = found
        while len(self.kept) > 1 and sum(images.nbytes for images in self.kept.values()) > LARGEST_GROUP:
            self.kept.popitem(last=False)
        return found


_groups = _Groups()


def _key(path: str, files: TableFiles) -> str:
    """By which an index of these files is known: their sizes together, and a hash of the names and state of each."""
    below = os.path.dirname(path) if os.path.isfile(path) else path
    each = [(os.path.relpath(file, below), *state) for file, state in zip(files.paths, files.states, strict=True)]
    digest = hashlib.blake2b(repr((each, files.features)).encode(errors="surrogateescape"), digest_size=8)
    return f"{sum(size for size, _ in files.states)}-{digest.hexdigest()}.v{VERSION}.npy"


opened = functools.lru_cache(maxsize=256)(Table)


def opened_anew(path: str) -> Table:
    """A table as it is now: `opened`, unless its files were replaced."""
    if opened(path).files != table_files(path):
        opened.cache_clear()
    return opened(path)


def refuse_unlabelled(path: str | os.PathLike[str]) -> None:
    """Say why the images of a table have no classes; nothing of what is no table.

    Raises:
        ConfigError: for a table.
    """
    path = os.fspath(path)
    if is_table(path):
        refuse_labels(path, _columns(path))


def _columns(path: str) -> Columns:
    pyarrow, files = import_pyarrow(path), table_files(path)
    if files.saved:
        with pyarrow.memory_map(files.paths[0]) as stream:
            schema = pyarrow.ipc.open_stream(stream).schema
    else:
        schema = pyarrow.parquet.read_schema(files.paths[0])
    return columns_of(path, schema, files.features)
