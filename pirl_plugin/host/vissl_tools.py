"""Finds VISSL's scripts, which are in packages named `tools` and `extra_scripts`, even if others use these names."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# Name here -> file beside the package vissl.
SCRIPTS = {
    "vissl_tool_train_svm": "tools/train_svm.py",
    "vissl_tool_create_low_shot_samples": "extra_scripts/create_low_shot_samples.py",
}


class VisslScripts(importlib.abc.MetaPathFinder):
    """Finds SCRIPTS under unique names, also in processes that receive their functions by name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module in SCRIPTS; None for all others."""
        vissl = importlib.util.find_spec("vissl") if fullname in SCRIPTS else None
        if vissl is None or vissl.origin is None:
            return None
        return importlib.util.spec_from_file_location(fullname, Path(vissl.origin).parents[1] / SCRIPTS[fullname])


def find_scripts() -> bool:
    """Put one `VisslScripts` first; returns whether it was added now."""
    if any(isinstance(finder, VisslScripts) for finder in sys.meta_path):
        return False
    sys.meta_path.insert(0, VisslScripts())
    return True


def script(name: str) -> ModuleType:
    """A script of VISSL, e.g. `train_svm`."""
    return importlib.import_module(f"vissl_tool_{name}")
