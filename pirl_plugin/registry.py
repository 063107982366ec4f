"""Registries of parts by name: pretext tasks, contrast forms, memory banks, losses and evaluations.

A new part is one file with one decorator. PIRL_PLUGIN_MODULES names your own files, imported in every process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from pirl_plugin.validation import ConfigError, check_choice

Part = TypeVar("Part")
VARIABLE = "PIRL_PLUGIN_MODULES"


class Registry(Mapping[str, Part], Generic[Part]):
    """Parts of one kind by name, in order of registration.

    Args:
        kind: what the parts are, for messages, e.g. "pretext transform".

    Example:
        >>> shapes = Registry("shape")
        >>> shapes.register("round", "a circle")
        'a circle'
        >>> shapes["round"], list(shapes)
        ('a circle', ['round'])
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}
        self._followers: list[Callable[[str, Part], object]] = []

    def register(self, name: str, part: Part) -> Part:
        """Register `part` under `name` and return it.

        Raises:
            ConfigError: if another part has that name.
        """
        known = self._parts.get(name)
        if known is not None and _identity(known) != _identity(part):
            raise ConfigError(
                f"There is already a {self.kind} named {name!r}, of {_identity(known)[0]}; choose another name."
            )
        self._parts[name] = part
        for follower in self._followers:
            follower(name, part)
        return part

    def follow(self, follower: Callable[[str, Part], object]) -> None:
        """Call `follower(name, part)` for each part, including parts registered later."""
        self._followers.append(follower)
        for name, part in list(self._parts.items()):
            follower(name, part)

    def find(self, name: object, where: str) -> Part:
        """The part of that name.

        Args:
            where: the key that names it, for the message.

        Raises:
            ConfigError: naming the parts that exist.
        """
        return self._parts[check_choice(name, list(self._parts), where)]

    def __getitem__(self, name: str) -> Part:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def _identity(part: object) -> tuple[str | None, str]:
    """Module and name: a spawned process or a notebook cell may import and register the same part again."""
    # For an entry of a table, the module and name of its function.
    part = getattr(part, "definition", getattr(part, "read", part))
    module = getattr(part, "__module__", None)
    return "__main__" if module == "__mp_main__" else module, getattr(part, "__qualname__", repr(part))


def import_user_modules() -> None:
    """Import the .py files and modules that the environment variable PIRL_PLUGIN_MODULES names, in every process.

    They are separated as in PATH.

    Raises:
        ConfigError: if one does not exist.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        try:
            _import_file(name) if name.endswith(".py") else importlib.import_module(name)
        except (FileNotFoundError, ImportError) as error:
            raise ConfigError(
                f"{VARIABLE} names {name!r}, which cannot be imported ({error}); give a .py file or a module."
            ) from error


def _import_file(file: str) -> None:
    path = Path(file).resolve()
    # Two files may have the same name.
    name = f"pirl_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # transforms are pickled for the loader's workers
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
