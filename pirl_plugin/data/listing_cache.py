"""Caches the list of images of a large folder between runs: on a cluster's disk, walking a million takes minutes.

A list is valid as long as no folder in it has changed: a folder's mtime changes when a name is added or removed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pirl_plugin.paths import cache_of, written_whole

MANY = 10_000  # images; fewer are listed quickly
SETTLED_SECONDS = 2.0  # a folder changed more recently may change again within the same clock tick
VERSION = 1  # of the rule for what counts as an image, and of the file format


def _file(folder: str) -> Path:
    return cache_of(folder, f"v{VERSION}.npz")


def changed(folder: str) -> int:
    """When names were last added to a folder or removed, in ns; -1 if it does not exist."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def read(folder: str) -> Iterator[str] | None:
    """Names of the images of a folder, relative to it and in the order of a walk; None if there is no valid list."""
    try:
        with np.load(_file(folder), allow_pickle=False) as kept:
            folders = [os.fsdecode(name) for name in kept["folders"].tolist()]
            times = kept["times"].tolist()
            if any(changed(os.path.join(folder, name)) != when for name, when in zip(folders, times, strict=True)):
                return None
            names = kept["names"].tolist()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # missing or incomplete
        return None
    logging.info(f"{folder}: {len(names)} images, from the cached list; none of its folders has changed")
    return map(os.fsdecode, names)


def write(folder: str, names: Sequence[str], folders: Mapping[str, int], began: float) -> None:
    """Cache a list, if the cache can be written.

    Args:
        names: relative to `folder`.
        folders: relative to `folder` -> `changed` before they were listed.
        began: time.time() when the walk began.
    """
    if max(folders.values()) > (began - SETTLED_SECONDS) * 1e9:
        return
    file = _file(folder)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as written:
            np.savez(
                written,
                names=np.array([os.fsencode(name) for name in names]),
                folders=np.array([os.fsencode(name) for name in folders]),
                times=np.array(list(folders.values()), dtype=np.int64),
            )
