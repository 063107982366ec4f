"""The list of images of a large folder, kept from run to run: on a cluster's disk, walking a million takes minutes.

A list holds as long as no folder in it has changed: the time of a folder changes with every name that comes or goes.
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

MANY = 10_000  # images; fewer are listed in a moment
SETTLED_SECONDS = 2.0  # a folder that changed so shortly ago may change again within the same tick of its clock
VERSION = 1  # of what counts as an image, and of the file


def _file(folder: str) -> Path:
    return cache_of(folder, f"v{VERSION}.npz")


def changed(folder: str) -> int:
    """When names last came to a folder or went, in ns; -1 where it is not there."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def read(folder: str) -> Iterator[str] | None:
    """Names of the images of a folder, relative to it and in the order of a walk; None where no list holds."""
    try:
        with np.load(_file(folder), allow_pickle=False) as kept:
            folders = [os.fsdecode(name) for name in kept["folders"].tolist()]
            times = kept["times"].tolist()
            if any(changed(os.path.join(folder, name)) != when for name, when in zip(folders, times, strict=True)):
                return None
            names = kept["names"].tolist()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or torn
        return None
    logging.info(f"{folder}: {len(names)} images, by the list of before; none of its folders has changed")
    return map(os.fsdecode, names)


def write(folder: str, names: Sequence[str], folders: Mapping[str, int], began: float) -> None:
    """Keep a list, where it can be kept.

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
