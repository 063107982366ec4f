"""VISSL's scripts, which lie in packages named `tools` and `extra_scripts`, found whatever else has such a name."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

SCRIPTS = ("tools.train_svm", "extra_scripts.create_low_shot_samples")  # those that the plugin runs


class VisslScripts(importlib.abc.MetaPathFinder):
    """Finds SCRIPTS beside the package vissl, before a package of the same name on the user's path is asked.

    Processes that are started find them by these names, too: a script's own functions are sent to them by name.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Of a module in SCRIPTS; None for all others."""
        if fullname not in SCRIPTS:
            return None
        vissl = importlib.util.find_spec("vissl")
        if vissl is None or vissl.origin is None:
            return None
        file = Path(vissl.origin).parent.parent.joinpath(*fullname.split(".")).with_suffix(".py")
        return importlib.util.spec_from_file_location(fullname, file) if file.is_file() else None


def find_scripts() -> bool:
    """Put one `VisslScripts` first; whether it was not there."""
    if any(isinstance(finder, VisslScripts) for finder in sys.meta_path):
        return False
    sys.meta_path.insert(0, VisslScripts())
    return True
