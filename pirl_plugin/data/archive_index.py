"""What is in an archive, and where: see pirl_plugin.data.kept_index."""

from __future__ import annotations

import logging
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.file_names import is_hidden, is_image
from pirl_plugin.data.kept_index import kept_index
from pirl_plugin.validation import ConfigError

ENDINGS = (".tar", ".zip")
COMPRESSED = {  # endings of archives in which no member can be read without all before it -> the command that helps
    (".tar.gz", ".tgz"): "gunzip", (".tar.bz2", ".tbz2", ".tbz"): "bunzip2", (".tar.xz", ".txz"): "unxz",
    (".tar.zst", ".tzst"): "unzstd",
}  # fmt: skip
MAGIC = {b"\x1f\x8b": ".tar.gz", b"BZh": ".tar.bz2", b"\xfd7zXZ": ".tar.xz", b"\x28\xb5\x2f\xfd": ".tar.zst"}
VERSION = 2
STORED = -1  # `packed` of a member that is not compressed


class Member(NamedTuple):
    """An image in an archive."""

    name: bytes  # with slashes, as in the unpacked folder
    offset: int  # of its first byte in the archive
    size: int
    packed: int = STORED  # bytes in the archive, where it is deflated


def entries_dtype(longest_name: int) -> np.dtype:
    """Of one member: 28 bytes and the longest name; `by_name` has the numbers of all entries in the order of names."""
    numbers = [("offset", "<i8"), ("size", "<i8"), ("packed", "<i8"), ("by_name", "<i4")]
    return np.dtype([("name", f"S{max(1, longest_name)}"), *numbers])


def index_of(path: str) -> np.ndarray:
    """The entries of an archive's images in the order in which a walk lists the unpacked folder, mapped from a file.

    Raises:
        ConfigError: where the archive is torn, compressed as a whole, has no image, or a name that leads out of it.
    """
    known = os.stat(path)
    return kept_index(path, f"{known.st_size}-{known.st_mtime_ns}.v{VERSION}.npy", lambda: _entries(path))


def _entries(path: str) -> np.ndarray:
    refuse_compressed(path)
    found = list(_members_of_zip(path) if path.lower().endswith(".zip") else _members_of_tar(path))
    unique = {member.name: member for member in found}  # unpacking, too, leaves the last of a name
    if len(unique) < len(found):
        logging.warning(
            f"{printable(path)} has {len(found) - len(unique)} members under names that others have: the last of a "
            f"name counts, as in unpacking."
        )
    if not unique:
        raise ConfigError(f"The archive {printable(path)} holds no image.")
    ordered = sorted(unique.values(), key=lambda member: walk_order(os.fsdecode(member.name)))
    entries = np.zeros(len(ordered), entries_dtype(max(map(len, unique))))
    for field in Member._fields:
        entries[field] = [getattr(member, field) for member in ordered]
    entries["by_name"] = np.argsort(entries["name"], kind="stable")
    return entries


def walk_order(name: str) -> list[str]:
    """By which names come in the order of a walk: of each folder the files first, then the folders in it."""
    *folders, file = name.split("/")
    return [*(f"1{folder}" for folder in folders), f"0{file}"]


def refuse_compressed(path: str) -> None:
    """Refuse an archive that is compressed as a whole, by its name or its first bytes.

    Raises:
        ConfigError: with the command that helps.
    """
    with open(path, "rb") as file:
        start = file.read(8)
    ending = next((ending for magic, ending in MAGIC.items() if start.startswith(magic)), "")
    lower = path.lower()
    for endings, command in COMPRESSED.items():
        if lower.endswith(endings) or (ending in endings and lower.endswith(".tar")):
            raise ConfigError(
                f"The archive {printable(path)} is compressed as a whole, so that no image can be read without all "
                f"before it: {command} it once, or unpack it (JPEGs gain nothing by it)."
            )


def _name(path: str, name: str) -> bytes | None:
    """A member's name as in the unpacked folder; None for what is no image or hidden."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ConfigError(f"The archive {printable(path)} has a member {name!r}, which leads out of it.")
    if not parts or any(map(is_hidden, parts)) or not is_image(parts[-1]):
        return None
    return os.fsencode("/".join(parts))


def _members_of_tar(path: str) -> Iterator[Member]:
    with open(path, "rb") as file:
        yield from _members_from(path, file, "", 0, os.fstat(file.fileno()).st_size)


def _members_from(path: str, file: BinaryIO, below: str, start: int, end: int) -> Iterator[Member]:
    """Of the tar that begins at `start`; those of tars in it are below a folder of their name."""
    places: dict[str, tuple[int, int]] = {}
    links: list[tuple[str, str]] = []
    nested: list[tuple[str, int, int]] = []
    file.seek(start)
    try:
        archive = tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else it keeps all
            name, offset = member.name, member.offset_data
            if member.isfile() and offset + member.size > end:
                raise tarfile.ReadError("unexpected end of data")
            if member.issparse():
                raise ConfigError(f"The archive {printable(path)} has a sparse member {name!r}: pack it without -S.")
            if member.islnk() or member.issym():
                target = member.linkname if member.islnk() else os.path.join(os.path.dirname(name), member.linkname)
                links.append((name, os.path.normpath(target)))
            elif member.isfile() and name.lower().endswith(".tar") and not is_hidden(os.path.basename(name)):
                nested.append((name[:-4], offset, offset + member.size))
            elif member.isfile():
                places[os.path.normpath(name)] = (offset, member.size)
                if kept := _name(path, below + name):
                    yield Member(kept, offset, member.size)
        _check_end(file, archive.offset, end)
    except tarfile.TarError as error:
        raise ConfigError(
            f"The archive {printable(path)} cannot be read to its end ({error}); copy it again, or make it anew."
        ) from error
    missing = 0
    for name, target in links:
        kept = _name(path, below + name)
        if kept and target in places:
            yield Member(kept, *places[target])
        missing += bool(kept) and target not in places
    if missing:
        logging.warning(f"{printable(path)} has {missing} links to files that are not in it; they are left out.")
    for name, first, last in nested:
        yield from _members_from(path, file, f"{below}{name}/", first, last)


def _check_end(file: BinaryIO, place: int, end: int) -> None:
    """Raise unless a tar ends at `place`: tarfile takes a damaged header for the end, and so does a hole of zeros.

    Raises:
        tarfile.ReadError: saying where.
    """
    file.seek(place)
    if end - place < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it lacks the zeros at its end")
    while (left := end - file.tell()) > 0:
        if file.read(min(left, 2**20)).strip(b"\0"):
            raise tarfile.ReadError(f"after {place:,} bytes, no member begins, but more follows")


def _members_of_zip(path: str) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for member in archive.infolist():
                kept = None if member.is_dir() else _name(path, member.filename)
                if kept is None:
                    continue
                if stat.S_ISLNK(member.external_attr >> 16):
                    logging.warning(f"{printable(path)} has a link {member.filename!r}, which is left out.")
                    continue
                if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ConfigError(
                        f"The archive {printable(path)} has a member {member.filename!r} that is encrypted, or "
                        f"compressed otherwise than by deflate: pack it anew with zip -0."
                    )
                file.seek(member.header_offset + 26)
                lengths = file.read(4)
                offset = member.header_offset + 30 + sum(np.frombuffer(lengths, "<u2").tolist())
                packed = STORED if member.compress_type == zipfile.ZIP_STORED else member.compress_size
                yield Member(kept, offset, member.file_size, packed)
    except zipfile.BadZipFile as error:
        raise ConfigError(
            f"The archive {printable(path)} cannot be read to its end ({error}); copy it again, or make it anew."
        ) from error
