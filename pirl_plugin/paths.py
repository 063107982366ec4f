"""Where the package's own files are, and the names of files that are still being written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from pirl_plugin.validation import ConfigError


def unfinished(path: Path) -> Path:
    """A temporary name beside a file, unique to this process on any machine; a run deletes left-over ones."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.unfinished")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name only once it is complete."""
    torn = unfinished(path)
    try:
        with torn.open("wb") as file:
            yield file
        os.replace(torn, path)
    finally:
        torn.unlink(missing_ok=True)


def prepare_output(path: Path, where: str) -> None:
    """Make the folder of a file that will end a long work, and see at its start that the file can be written.

    Raises:
        ConfigError: naming `where` and the file, if it cannot.
    """
    if path.is_dir():
        raise ConfigError(f"{where} is {path}, which is a folder; give the name of a file.")
    trial = unfinished(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ConfigError(
            f"{where} is {path}, which cannot be written ({error.strerror}); give another place."
        ) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file with `written_whole`."""
    with written_whole(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


def cache_of(path: str, ending: str) -> Path:
    """The file in the user's cache folder that keeps information on a file or folder between runs.

    The cache folder is XDG_CACHE_HOME, else ~/.cache.
    """
    name = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=12).hexdigest()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "pirl_plugin" / f"{name}.{ending}"


def config_folder() -> Path:
    """The folder `configs`: inside the package (wheel) or beside it (checkout, editable)."""
    spec = find_spec("pirl_plugin")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
