"""Classes of images by the folder that they are in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
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
        raise ConfigError(f"{folder} has {len(classes)} sub-folders; labels need one sub-folder per class.")
    return classes


def is_list(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a list of images."""
    return os.path.isfile(path) and Path(path).suffix in (".txt", ".npy")


def classes_of(files: Sequence[str], path: str | os.PathLike[str]) -> list[str]:
    """The class of each image of a data set: the first folder below `path` or, for a list, below the folder of all.

    Args:
        files: absolute, or as `path` is.

    Raises:
        ConfigError: where images lie outside any class folder, or all are of one class.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files]) if is_list(path) else path
    parts = [Path(os.path.relpath(file, root)).parts for file in files]
    if any(len(part) < 2 for part in parts):
        tables.refuse_unlabelled(path)
        raise ConfigError(f"{path} has images outside class folders; labels need one sub-folder per class.")
    names = [part[0] for part in parts]
    if len(set(names)) < 2:
        raise ConfigError(f"{path} has images of one class only, {names[0]!r}; labels need at least two classes.")
    return names


def check_same_classes(*folders: str | os.PathLike) -> None:
    """Refuse folders whose class folders differ: classes are numbered by their names' order in each.

    Raises:
        ConfigError: naming what only one of them has, or where one has fewer than two.
    """
    check_same_names({str(folder): {path.name for path in labelled_class_folders(folder)} for folder in folders})


def check_splits(train: str | os.PathLike, test: str | os.PathLike) -> None:
    """`check_same_classes`, of two different folders: on images that it learned from, any network looks good.

    Raises:
        ConfigError: also if both are the same folder.
    """
    if os.path.realpath(train) == os.path.realpath(test):
        raise ConfigError(f"--train and --test are both {train}; measure on other images than those that are learned.")
    check_same_classes(train, test)


def check_same_names(names: Mapping[str, set[str]]) -> None:
    """Refuse data sets, by path, whose classes have different names.

    Raises:
        ConfigError: naming what only one of them has.
    """
    every = list(names.values())
    different = every[0].union(*every) - every[0].intersection(*every)
    if different:
        raise ConfigError(
            f"{' and '.join(names)} must have the same class folders; only one has {', '.join(sorted(different))}."
        )
