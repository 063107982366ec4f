"""Images that cannot be read are named once, left out, and counted next to the result."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np

from pirl_plugin.data.file_lists import printable
from pirl_plugin.validation import ConfigError

NUM_NAMED = 20  # files that the log names


class Unreadable:
    """The files that an evaluation could not read; serves as `on_unreadable` of pirl_plugin.network.features.embed.

    Attributes:
        reasons: file -> why.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def __call__(self, file: str | os.PathLike[str], error: Exception) -> None:
        name = os.fspath(file)
        if name in self.reasons:
            return
        self.reasons[name] = f"{type(error).__name__}: {error}"
        if len(self.reasons) <= NUM_NAMED:
            logging.warning(f"Could not be read and is left out: {printable(name)} ({self.reasons[name]})")
        elif len(self.reasons) == NUM_NAMED + 1:
            logging.warning("... and more; their number is given at the end")

    def __len__(self) -> int:
        return len(self.reasons)

    def read(self, files: Sequence[str | os.PathLike[str]]) -> np.ndarray:
        """Which of `files` were read: bool [files].

        Raises:
            ConfigError: if none was read.
        """
        read = np.array([os.fspath(file) not in self.reasons for file in files], dtype=bool)
        if not read.any():
            first = os.fspath(files[0])
            raise ConfigError(
                f"None of the {len(files)} images can be read; the first: {printable(first)} ({self.reasons[first]})."
            )
        return read

    def __str__(self) -> str:
        """A sentence for the result; empty where all could be read."""
        if not self.reasons:
            return ""
        names = [printable(name) for name in self.reasons]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        one = len(names) == 1
        verb = "image could not be read and was" if one else "images could not be read and were"
        return f"{len(names)} {verb} left out: {shown}"
