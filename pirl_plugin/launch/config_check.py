"""Checks before anything is loaded that a config is consistent, and that its data exist on this machine."""

from __future__ import annotations

import os
from typing import Any

from pirl_plugin.data import archives, tables
from pirl_plugin.data.class_folders import check_same_names, classes_of, is_list, labelled_class_folders
from pirl_plugin.data.file_names import EXTENSIONS
from pirl_plugin.data.image_files import check_list, list_images, walk_images
from pirl_plugin.host.loss_settings import pirl_loss_class
from pirl_plugin.launch.pirl_check import check_pirl
from pirl_plugin.validation import ConfigError, check_integer


def check_config(config: Any) -> None:
    """Raise if a run could not train as configured.

    Args:
        config: the `config` node (VISSL's AttrDict), before VISSL infers anything from it.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    _check_data(config)
    if pirl_loss_class(config) is not None:
        check_pirl(config)


def _check_data(config: Any) -> None:
    check_integer(config.DATA.TRAIN.BATCHSIZE_PER_REPLICA, "DATA.TRAIN.BATCHSIZE_PER_REPLICA", 1)
    for split in ("TRAIN", "TEST"):
        data = config.DATA[split]
        sources, paths = data.DATA_SOURCES, data.DATA_PATHS
        if isinstance(paths, str):
            raise ConfigError(f"DATA.{split}.DATA_PATHS is {paths!r}; it must be a list, [{paths}].")
        if paths and len(paths) != len(sources):
            raise ConfigError(
                f"DATA.{split}.DATA_PATHS has {len(paths)} entries and DATA_SOURCES {len(sources)}; "
                f"they must have the same number."
            )
        for source, path in zip(sources, paths, strict=False):
            if source in ("image_files", "disk_folder"):
                _check_folder(f"DATA.{split}.DATA_PATHS", str(path), source)
                _check_limit(config, split, str(path))
    _check_labels(config)


def _check_labels(config: Any) -> None:
    """Refuse splits whose classes have different names: each numbers its own."""
    splits = [config.DATA[split] for split in ("TRAIN", "TEST")]
    for split in splits:
        named = list(split.LABEL_SOURCES) in (["disk_folder"], ["torchvision_dataset"])
        read = list(split.DATA_SOURCES) in (["disk_folder"], ["image_files"])
        if not (named and read and split.DATA_PATHS):
            return
    check_same_names({str(split.DATA_PATHS[0]): _class_names(str(split.DATA_PATHS[0])) for split in splits})


def _class_names(path: str) -> set[str]:
    if is_list(path):
        return set(classes_of(list_images(path), path))
    return {folder.name for folder in labelled_class_folders(path)}


def _check_limit(config: Any, split: str, path: str) -> None:
    data, distributed = config.DATA[split], config.DISTRIBUTED
    limit, key = data.DATA_LIMIT, f"DATA.{split}.DATA_LIMIT"
    if limit == -1:
        return
    skipped = data.DATA_LIMIT_SAMPLING.SKIP_NUM_SAMPLES
    number = len(list_images(path)) - skipped
    less = f" less the {skipped} of DATA_LIMIT_SAMPLING.SKIP_NUM_SAMPLES" if skipped else ""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= number:
        raise ConfigError(f"{key} is {limit!r}; {path} holds {number} images{less}: give at most that, or -1 for all.")
    batch = data.BATCHSIZE_PER_REPLICA * distributed.NUM_NODES * distributed.NUM_PROC_PER_NODE
    if data.DROP_LAST and limit < batch:
        raise ConfigError(
            f"{key} is {limit}, fewer than one global batch of {batch} (BATCHSIZE_PER_REPLICA times ranks): raise it, "
            f"or lower the batch."
        )


def _check_folder(key: str, path: str, source: str) -> None:
    if source == "image_files" and is_list(path):
        check_list(path, list_images(path))
        return
    table = tables.is_table(path)
    if table or not os.path.isdir(path):
        if archives.members(path) is None:
            raise ConfigError(
                f"{key} is {path!r}; there is no such folder, archive, table, or .txt or .npy list of images."
            )
        if source != "image_files":
            what = "a table" if table else "an archive"
            raise ConfigError(
                f"{key} is {path!r}, {what}, which {source} does not read: use DATA_SOURCES=[image_files] (with "
                f"LABEL_SOURCES=[torchvision_dataset] if labels are needed)."
            )
        return
    if next(walk_images(path), None) is None and (source != "image_files" or not archives.archives_below(path)):
        raise ConfigError(f"{key} is {path!r}, which holds no image; it needs files ending in {', '.join(EXTENSIONS)}.")
