"""The rows of a table of images, by name, and where the bytes of each image are in its files.

Arrow streams, and Parquet files whose column of images is not compressed (as `datasets` writes it), have the bytes of
an image in one piece, which is read like that of a tar. Of others, the row group is kept in which an image is.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.table_columns import Columns, columns_of, import_pyarrow
from pirl_plugin.data.table_files import TableFiles
from pirl_plugin.validation import ConfigError

VERSION = 1
IN_ONE_PIECE = -1  # `group` where an image's bytes begin at `offset` of the file; else `offset` is a row of the group
MISSING = -1  # `size` of an image whose bytes are not there
LARGEST_GROUP = 2**28  # bytes that are unpacked for one image
LARGEST_SHARE_MISSING = 0.1
END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream


class Rows(NamedTuple):
    """Some rows of a file, one after the other."""

    paths: Sequence[str | None]
    labels: Sequence[int | None]
    offsets: np.ndarray
    sizes: np.ndarray
    group: int = IN_ONE_PIECE
    missing: int = 0  # images without bytes
    unpacked: int = 0  # bytes that are unpacked to read one of them


def entries_of(path: str, files: TableFiles) -> np.ndarray:
    """One entry for each row, in the order of rows, as pirl_plugin.data.kept_index.Index wants them.

    Raises:
        ConfigError: where there is no row, a file is torn or of other columns than the first, an image would take too
            much unpacking, or too many have no bytes.
        MissingPackageError: without pyarrow.
    """
    pyarrow = import_pyarrow(path)
    rows: list[Rows] = []
    numbers: list[int] = []  # of the file, for each of `rows`
    first: Columns | None = None
    for number, file in enumerate(files.paths):
        try:
            columns, parts = (_of_stream if files.saved else _of_parquet)(pyarrow, file, files.features)
            first = first or columns
            if columns != first:
                raise ConfigError(f"{printable(file)} has other columns than {printable(files.paths[0])}.")
            for part in parts:
                rows.append(part)
                numbers.append(number)
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigError(
                f"{printable(file)} cannot be read to its end ({_one_line(error)}); copy it again, or make it anew."
            ) from error
    count = sum(len(part.sizes) for part in rows)
    if first is None or not count:
        raise ConfigError(f"The table {printable(path)} holds no image.")
    missing = sum(part.missing for part in rows)
    if missing > LARGEST_SHARE_MISSING * count:
        raise ConfigError(
            f"{missing} of the {count} images of {printable(path)} are not in it (the column {first.image} has no "
            f"bytes there, at most a path): load it with datasets where the files are, and save it by save_to_disk, "
            f"which puts them in."
        )
    if missing:
        logging.warning(f"{missing} of the {count} images of {printable(path)} have no bytes; they are unreadable.")
    if sum(part.unpacked for part in rows) > LARGEST_GROUP:
        most = max(part.unpacked for part in rows) / 2**20
        logging.warning(
            f"{printable(path)} is compressed: in random order, up to {most:.3g} MiB are unpacked for each image. "
            f"Loaded with datasets and saved by save_to_disk, it is read as fast as files."
        )
    names = _names(path, first, rows, count)
    longest = max(map(len, names))
    fields = [("file", "<i4"), ("group", "<i4"), ("offset", "<i8"), ("size", "<i8"), ("by_name", "<i4")]
    entries = np.zeros(count, [("name", f"S{longest}"), *fields])
    entries["name"] = names
    entries["file"] = np.repeat(numbers, [len(part.sizes) for part in rows])
    entries["group"] = np.repeat([part.group for part in rows], [len(part.sizes) for part in rows])
    entries["offset"] = np.concatenate([part.offsets for part in rows])
    entries["size"] = np.concatenate([part.sizes for part in rows])
    entries["by_name"] = np.argsort(entries["name"], kind="stable")
    return entries


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _names(path: str, columns: Columns, rows: list[Rows], count: int) -> list[bytes]:
    """<class>/<file name>, or the path as it stands where there is no class.

    In place of the file names, row numbers in the whole table, where an image has none or one that another has.
    """
    own: list[str] = []
    folders: list[str] = []
    class_names = columns.classes[columns.label] if columns.label else ()
    shown = [_folder(path, name) for name in class_names]
    for part in rows:
        for name, label in zip(part.paths, part.labels, strict=True):
            folders.append("" if label is None or label < 0 else f"{shown[label] if label < len(shown) else label}/")
            own.append(_file_name(name or "", whole=not columns.classes))
    names = [folder + name for folder, name in zip(folders, own, strict=True)]
    if not all(own) or len(set(names)) < count:
        digits = len(str(count - 1))
        names = [f"{folder}{number:0{digits}d}" for number, folder in enumerate(folders)]
    return [name.encode(errors="surrogateescape") for name in names]


def _folder(path: str, name: str) -> str:
    """A class as the name of a folder."""
    if name in ("", ".", "..") or "\0" in name:
        raise ConfigError(f"{printable(path)} has a class named {name!r}, of which no folder can be: name it anew.")
    return name.replace("%", "%25").replace("/", "%2F")


def _file_name(path: str, whole: bool) -> str:
    """A path without folders, unless all of it is wanted and it leads nowhere else; empty where it is no name."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in path:
        return ""
    return "/".join(parts) if whole and not path.startswith("/") else parts[-1]


def _of_stream(pyarrow: Any, path: str, features: dict) -> tuple[Columns, Iterator[Rows]]:
    """What an Arrow stream holds; it is mapped, and the bytes of images are not read."""
    mapped = pyarrow.memory_map(path).read_buffer()
    if mapped.size < len(END) or mapped[-len(END) :].to_pybytes() != END:
        raise OSError("its end mark is missing")
    stream = pyarrow.ipc.open_stream(mapped)
    columns = columns_of(path, stream.schema, features)

    def rows() -> Iterator[Rows]:
        for batch in stream:
            if not batch.num_rows:
                continue
            images = batch.column(columns.image)
            data = images.field("bytes") if columns.in_struct else images
            there = np.asarray(data.is_valid()) & np.asarray(images.is_valid())
            width = np.int64 if str(data.type) == "large_binary" else np.int32
            _, ends, values = data.buffers()
            bounds = np.frombuffer(ends, width)[data.offset : data.offset + len(data) + 1].astype(np.int64)
            begin = 0 if values is None else values.address - mapped.address
            if not 0 <= begin <= begin + int(bounds[-1]) <= mapped.size:
                raise ConfigError(
                    f"{printable(path)} is compressed: load it with datasets, and save it by save_to_disk."
                )
            sizes = np.where(there, np.diff(bounds), MISSING)
            paths = images.field("path").to_pylist() if columns.with_path else [None] * len(data)
            labels = batch.column(columns.label).to_pylist() if columns.label else [None] * len(data)
            yield Rows(paths, labels, begin + bounds[:-1], sizes, missing=int((~there).sum()))

    return columns, rows()


def _of_parquet(pyarrow: Any, path: str, features: dict) -> tuple[Columns, Iterator[Rows]]:
    """What a Parquet file holds; images are read only where they are not compressed, to find their places."""
    opened = pyarrow.parquet.ParquetFile(path)
    columns = columns_of(path, opened.schema_arrow, features)
    (leaf,) = columns.leaves("bytes")

    def rows() -> Iterator[Rows]:
        for group in range(opened.num_row_groups):
            known = opened.metadata.row_group(group)
            (chunk,) = [c for c in map(known.column, range(known.num_columns)) if c.path_in_schema == leaf]
            if chunk.total_uncompressed_size > LARGEST_GROUP:
                raise ConfigError(
                    f"{printable(path)} has a row group with {chunk.total_uncompressed_size / 2**20:.3g} MiB of "
                    f"images, of which all are unpacked to read one: load it with datasets and save it by "
                    f"save_to_disk, or write it with a row_group_size of 100."
                )
            wanted = columns.leaves("path") if columns.with_path else []
            wanted += [columns.label] if columns.label else []
            others = opened.read_row_group(group, wanted, use_threads=False)
            none = [None] * known.num_rows
            labels = others.column(columns.label).to_pylist() if columns.label else none
            paths = none
            if columns.with_path:
                paths = [row and row["path"] for row in others.column(columns.image).to_pylist()]
            places = None
            if chunk.compression == "UNCOMPRESSED":
                places = _places(path, opened, group, columns, chunk)
            if places is not None:
                yield Rows(paths, labels, *places, missing=int((places[1] == MISSING).sum()))
                continue
            missing = chunk.statistics.null_count if chunk.statistics is not None else 0
            in_group, unknown = np.arange(known.num_rows), np.zeros(known.num_rows, np.int64)
            yield Rows(paths, labels, in_group, unknown, group, missing or 0, chunk.total_uncompressed_size)

    return columns, rows()


def _places(path: str, opened: Any, group: int, columns: Columns, chunk: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Offsets and sizes of the images of a row group, where the file has the bytes of each in one piece.

    They are looked for, one after the other, so that nothing is assumed of pages.
    """
    with open(path, "rb") as file:
        file.seek(chunk.data_page_offset)
        raw = file.read(chunk.total_compressed_size)
    offsets, sizes, after = [], [], 0
    for value in images_of(opened, group, columns):
        data = value.as_py()
        offsets.append(chunk.data_page_offset + after)
        sizes.append(MISSING if data is None else len(data))
        if not data:
            continue
        start = struct.pack("<I", len(data)) + data[:64]  # as Parquet's plain encoding has it
        found = raw.find(start, after)
        while found >= 0 and not raw.startswith(data, found + 4):
            found = raw.find(start, found + 1)
        if found < 0:  # encoded otherwise, as where images come twice
            return None
        offsets[-1] = chunk.data_page_offset + found + 4
        after = found + 4 + len(data)
    return np.array(offsets, np.int64), np.array(sizes, np.int64)


def images_of(opened: Any, group: int, columns: Columns) -> Any:
    """The images of a row group of pyarrow's ParquetFile: its array of bytes, without threads."""
    chunks = opened.read_row_group(group, columns.leaves("bytes"), use_threads=False).column(columns.image)
    image = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()
    return image.field("bytes") if columns.in_struct else image
