"""Lists of files as text, one path per line, for any name that a file system can hold.

Names are bytes; those that are not UTF-8 are written unchanged. A name that a line cannot hold (with a line break, or
with blanks or quotes at its ends) is written in double quotes with JSON's escapes; any path may be written this way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pirl_plugin.paths import written_whole
from pirl_plugin.validation import ConfigError

_BOM = b"\xef\xbb\xbf"


def printable(name: str | os.PathLike[str]) -> str:
    """A name for a message or a terminal: unprintable characters and line breaks are escaped."""
    text = os.fspath(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def as_line(name: str) -> str:
    """A path as a line of a list, without the line break."""
    plain = name == name.strip() and not name.startswith(('"', "\ufeff")) and not {"\n", "\r"} & set(name)
    return name if plain else json.dumps(name)


def write_list(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Write a list, completely or not at all."""
    with written_whole(Path(path)) as file:
        file.writelines(os.fsencode(as_line(name)) + b"\n" for name in names)


def read_list(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the paths of a list as written there; empty lines are skipped.

    Raises:
        ConfigError: if it is not text, or a quoted line has no end.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise ConfigError(
                        f"The file list {printable(path)} cannot be read as text: it is in UTF-16; save it as UTF-8."
                    )
                line = line.removeprefix(_BOM)
            if b"\0" in line:
                raise ConfigError(
                    f"The file list {printable(path)} cannot be read as text: line {number} has a zero byte; it needs "
                    f"one path per line."
                )
            name = os.fsdecode(line).strip()
            if name.startswith('"'):
                try:
                    name = json.loads(name)
                except ValueError as error:
                    raise ConfigError(
                        f"Line {number} of the file list {printable(path)} starts with a quote and is not a quoted "
                        f"path ({error}); write it without quotes, or escape quotes and backslashes in it."
                    ) from error
            if name:
                yield name
