"""Where the files that come with the package are, and what a file is called while it is written."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path


def unfinished(path: Path) -> Path:
    """A name beside a file that no other process writes to, here or elsewhere; a run deletes what was left over."""
    return path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.unfinished")


def cache_folder() -> Path:
    """Where what can be made again is kept from run to run: the user's cache folder (XDG_CACHE_HOME, ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pirl_plugin")


def config_folder() -> Path:
    """The folder `configs`: inside the package (wheel) or beside it (checkout, editable)."""
    spec = find_spec("pirl_plugin")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
