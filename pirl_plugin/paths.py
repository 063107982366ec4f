"""Where the files that come with the package are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def config_folder() -> Path:
    """The folder `configs`: inside the package (wheel) or beside it (checkout, editable)."""
    spec = find_spec("pirl_plugin")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
