"""Finds what registers itself: the package's pretext tasks, and files of the user's own."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path

from pirl_plugin.validation import ConfigError

VARIABLE = "PIRL_PLUGIN_MODULES"


def import_pretext_tasks() -> None:
    """Import every module beside this one that has the decorator `register_pretext`: a new task is one file."""
    for path in sorted((Path(__file__).parent / "pretext").glob("*.py")):
        if "\n@register_pretext(" in path.read_text(encoding="utf-8"):
            importlib.import_module(f"pirl_plugin.pretext.{path.stem}")


def import_user_modules() -> None:
    """Import the .py files and modules that the environment variable PIRL_PLUGIN_MODULES names, in every process.

    They are separated as in PATH.

    Raises:
        ConfigError: where one is not there.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        try:
            _import_file(name) if name.endswith(".py") else importlib.import_module(name)
        except (FileNotFoundError, ModuleNotFoundError) as error:
            raise ConfigError(
                f"{VARIABLE} names {name!r}, which cannot be imported ({error}); give a .py file or a module."
            ) from error


def _import_file(file: str) -> None:
    path = Path(file).resolve()
    # Two files may have the same name.
    name = f"pirl_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # transforms are pickled for the loader's workers
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
