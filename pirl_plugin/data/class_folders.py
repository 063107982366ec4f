"""Classes of images by the folder that they are in."""

from __future__ import annotations

import os
from pathlib import Path

from pirl_plugin.data import archives, tables
from pirl_plugin.data.file_names import is_hidden
from pirl_plugin.validation import ConfigError


def class_folders(folder: str | os.PathLike) -> list[Path]:
    """The sub-folders of a folder, archive or table, one a class, in the order of their names."""
    found = sorted(path for path in Path(folder).glob("*") if path.is_dir() and not is_hidden(path.name))
    if found and not tables.is_table(folder):
        return found
    return [Path(folder, name) for name in archives.class_names(folder) or ()]


def labelled_class_folders(folder: str | os.PathLike) -> list[Path]:
    """`class_folders`, at least two.

    Raises:
        ConfigError: where there are fewer.
    """
    classes = class_folders(folder)
    if not classes:
        tables.refuse_unlabelled(folder)
    if len(classes) < 2:
        raise ConfigError(f"{folder} has {len(classes)} sub-folders; labels need one sub-folder a class.")
    return classes


def check_same_classes(*folders: str | os.PathLike) -> None:
    """Refuse folders whose class folders differ: classes are numbered by their names' order in each.

    Raises:
        ConfigError: naming what only one of them has, or where one has fewer than two.
    """
    names = [{path.name for path in labelled_class_folders(folder)} for folder in folders]
    different = set[str]().union(*names) - names[0].intersection(*names)
    if different:
        raise ConfigError(
            f"{' and '.join(map(str, folders))} must have the same class folders; only one has "
            f"{', '.join(sorted(different))}."
        )
