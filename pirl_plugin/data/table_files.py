"""Which files a table of images is made of: what Hugging Face `datasets` saves by save_to_disk, and Parquet files.

Data sets of several splits (training, test) are no table: each split is one.
"""

from __future__ import annotations

import glob
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pirl_plugin.data.archive_index import ENDINGS
from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.file_names import is_hidden, is_image
from pirl_plugin.validation import ConfigError

STATE, FEATURES, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"  # files of save_to_disk
DEEPEST = 3  # folders above a Parquet file, as in <data set>/data/<config>/<split>; no walk through all of a disk
SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d{5,})-of-(?P<count>\d{5,})\.parquet", re.IGNORECASE)
SPLIT_WORD = re.compile(r"(?:^|[^a-z])(train|test|val|dev|eval)(?:ing|idation|id|elopment|uation)?(?:[^a-z]|$)")


@dataclass(frozen=True)
class TableFiles:
    """The files of a table, in the order of its rows.

    Attributes:
        paths: of Arrow streams or of Parquet files.
        states: the size of each in bytes, and when it changed, in ns.
        saved: whether they are Arrow streams, of a folder that save_to_disk made.
        features: column -> what `datasets` says of it; empty where only the files say it.
    """

    paths: tuple[str, ...]
    states: tuple[tuple[int, int], ...]
    saved: bool
    features: dict[str, Any]


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a Parquet file, a folder of such, what save_to_disk made, or a split's start.

    A folder with images or archives of them is none.
    """
    path = os.fspath(path)
    if os.path.isfile(path):
        return _is_parquet(path)
    if not os.path.isdir(path):
        return bool(_shards_of(path))
    return os.path.isfile(os.path.join(path, SPLITS)) or _is_saved(path) or bool(_parquet_below(path))


def table_files(path: str) -> TableFiles:
    """The files of a table.

    Raises:
        ConfigError: where there are several splits, a file is missing, or what save_to_disk wrote beside is torn.
    """
    if os.path.isfile(os.path.join(path, SPLITS)):
        folders = sorted(str(found.parent) for found in Path(path).glob(f"*/{STATE}"))
        raise ConfigError(
            f"{printable(path)} is a data set of several splits, each of which is a folder of its own: give one of "
            f"{printable(', '.join(folders)) or 'them, which are missing'}."
        )
    saved = os.path.isdir(path) and _is_saved(path)
    features: dict[str, Any] = {}
    if saved:
        paths = _saved_files(path)
        features = _json(os.path.join(path, FEATURES)).get("features") or {}
    elif os.path.isfile(path):
        paths = [path]
    else:
        paths = sorted(_parquet_below(path) if os.path.isdir(path) else _shards_of(path))
        _refuse_several_splits(path, paths)
        _refuse_missing_shards(paths)
    try:
        known = [os.stat(file) for file in paths]
    except OSError as error:
        raise ConfigError(
            f"{printable(path)} lacks its file {printable(str(error.filename))}: copy the whole folder again."
        ) from error
    return TableFiles(tuple(paths), tuple((one.st_size, one.st_mtime_ns) for one in known), saved, features)


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _json(path: str) -> dict[str, Any]:
    """The mapping in a file that save_to_disk wrote; empty where there is no such file."""
    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{printable(path)} cannot be read ({error}): copy or save the data set again.") from error
    return found if isinstance(found, dict) else {}


def _is_saved(folder: str) -> bool:
    try:
        return b'"_data_files"' in Path(folder, STATE).read_bytes()  # others write a state.json, too
    except OSError:
        return False


def _saved_files(folder: str) -> list[str]:
    state = _json(os.path.join(folder, STATE))
    if state.get("_indices_data_files"):
        raise ConfigError(
            f"{printable(folder)} was saved with a list of the rows that count, as old versions of datasets did: load "
            f"it with datasets, and save it again."
        )
    try:
        names = [str(file["filename"]) for file in state["_data_files"]]
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{os.path.join(printable(folder), STATE)} names no data files; save it again.") from error
    for name in names:
        if os.path.basename(name) != name:
            raise ConfigError(f"{printable(folder)} names the data file {name!r}, which leads out of it.")
    return [os.path.join(folder, name) for name in names]


def _parquet_below(folder: str) -> list[str]:
    """Parquet files up to DEEPEST folders deep, in no order; none beside images or archives, which are the data."""
    found: list[str] = []
    waiting = [(folder, 0)]
    while waiting:
        parent, depth = waiting.pop()
        try:
            entries = list(os.scandir(parent))
        except OSError:  # whoever lists images says so
            return []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                if depth < DEEPEST:
                    waiting.append((entry.path, depth + 1))
            elif is_image(entry.name) or entry.name.lower().endswith(ENDINGS):
                return []
            elif _is_parquet(entry.name):
                found.append(entry.path)
    return found


def _shards_of(start: str) -> list[str]:
    """The files data/train-00000-of-00002.parquet ... of a split `data/train`."""
    found = glob.glob(f"{glob.escape(start)}-*-of-*") if start else []
    return [path for path in found if (shard := SHARD.fullmatch(path)) and shard["split"] == start]


def _split_of(path: str, below: str) -> str:
    """What tells the split of a file from others: how its shards begin, else the word for it in its path."""
    if shard := SHARD.fullmatch(path):
        return shard["split"]
    word = SPLIT_WORD.search(os.path.relpath(path, below).lower())
    return word[1] if word else ""


def _refuse_several_splits(path: str, paths: list[str]) -> None:
    splits: dict[str, list[str]] = {}
    for file in paths:
        splits.setdefault(_split_of(file, path), []).append(file)
    if len(splits) == 1:
        return
    given = []
    for split, files in splits.items():
        own, word = os.path.dirname(files[0]), SPLIT_WORD.search(os.path.basename(files[0]).lower())
        given.append(split if SHARD.fullmatch(files[0]) else files[0] if word or own == path else own)
    raise ConfigError(
        f"{printable(path)} holds Parquet files of several splits or data sets: give one of "
        f"{printable(', '.join(given))}."
    )


def _refuse_missing_shards(paths: list[str]) -> None:
    shards = [shard for path in paths if (shard := SHARD.fullmatch(path))]
    if not shards:
        return
    there, count = {int(shard["number"]) for shard in shards}, int(shards[0]["count"])
    missing = [number for number in range(count) if number not in there]
    if missing or len(shards) != count:
        what = f"{len(missing)} are missing, the first number {missing[0]}" if missing else "some are there twice"
        raise ConfigError(
            f"Of the {count} files {printable(shards[0]['split'])}-*-of-{shards[0]['count']}.parquet {what}: "
            f"download them again."
        )
