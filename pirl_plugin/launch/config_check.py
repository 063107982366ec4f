"""What must agree in a config, and between it and this machine, before anything is loaded."""

from __future__ import annotations

import os
from typing import Any

import torch
from vissl.utils.checkpoint import get_checkpoint_folder

from pirl_plugin.data.image_files import EXTENSIONS, check_list, list_images, walk_images
from pirl_plugin.host.loss_settings import pirl_loss_class
from pirl_plugin.launch.initial_weights import check_initial_weights
from pirl_plugin.launch.pirl_check import check_pirl
from pirl_plugin.training import checkpoint_folder
from pirl_plugin.validation import ConfigError, check_integer


def check_config(config: Any) -> None:
    """Refuse a config that cannot train as it says.

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
                f"they must be as many."
            )
        for source, path in zip(sources, paths, strict=False):
            if source in ("image_files", "disk_folder"):
                _check_folder(f"DATA.{split}.DATA_PATHS", str(path), source)


def _check_folder(key: str, path: str, source: str) -> None:
    if source == "image_files" and os.path.isfile(path) and path.endswith((".txt", ".npy")):
        check_list(path, list_images(path))
        return
    if not os.path.isdir(path):
        raise ConfigError(f"{key} is {path!r}; there is no such folder (or .txt or .npy list) of images.")
    if next(walk_images(path), None) is None:
        raise ConfigError(f"{key} is {path!r}, which holds no image; it needs files ending in {', '.join(EXTENSIONS)}.")


def check_machine(config: Any) -> None:
    """Refuse a run that this machine or the files it names cannot serve.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    distributed, weights = config.DISTRIBUTED, config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    if distributed.NUM_NODES > 1 and distributed.INIT_METHOD == "tcp" and distributed.RUN_ID == "auto":
        raise ConfigError(
            f"DISTRIBUTED.RUN_ID is 'auto', but {distributed.NUM_NODES} nodes must be told where to meet: give the "
            f"first node's address, config.DISTRIBUTED.RUN_ID=<host>:<port>."
        )
    if config.MACHINE.DEVICE == "gpu" and torch.cuda.device_count() < distributed.NUM_PROC_PER_NODE:
        raise ConfigError(
            f"DISTRIBUTED.NUM_PROC_PER_NODE is {distributed.NUM_PROC_PER_NODE}, but this machine has "
            f"{torch.cuda.device_count()} usable GPUs; lower it, or set config.MACHINE.DEVICE=cpu and "
            f"config.DISTRIBUTED.BACKEND=gloo."
        )
    if weights and checkpoint_folder.newest(config, get_checkpoint_folder(config)) is None:  # else a run goes on
        check_initial_weights(config)
