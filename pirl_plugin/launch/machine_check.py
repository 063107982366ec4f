"""Checks on every node, before anything is loaded, that the machine can run a config."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from typing import Any

import torch
from vissl.utils.checkpoint import get_checkpoint_folder

from pirl_plugin.launch.initial_weights import check_initial_weights
from pirl_plugin.network.devices import emulates_bfloat16, unusable_gpus
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.training import checkpoint_folder
from pirl_plugin.validation import ConfigError

LONGEST_SOCKET = 107  # letters in the path of a Unix socket
SOCKET = "/pymp-12345678/listener-12345678"  # what multiprocessing adds to the temporary folder
PREFETCHED = 2  # batches that each worker prefetches, PyTorch's default
SHARED_MEMORY = "/dev/shm"


def check_machine(config: Any) -> None:
    """Raise if this machine or the named files do not fit a run.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    distributed, weights = config.DISTRIBUTED, config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    if distributed.NUM_NODES > 1 and distributed.INIT_METHOD == "tcp" and distributed.RUN_ID == "auto":
        raise ConfigError(
            f"DISTRIBUTED.RUN_ID is 'auto', but {distributed.NUM_NODES} nodes must be told where to meet: give the "
            f"first node's address, config.DISTRIBUTED.RUN_ID=<host>:<port>."
        )
    if config.MACHINE.DEVICE == "gpu":
        check_gpus(config)
    if config.MACHINE.DEVICE == "gpu" and torch.cuda.device_count() < distributed.NUM_PROC_PER_NODE:
        raise ConfigError(
            f"DISTRIBUTED.NUM_PROC_PER_NODE is {distributed.NUM_PROC_PER_NODE}, but this machine has "
            f"{torch.cuda.device_count()} usable GPUs; lower it, or set config.MACHINE.DEVICE=cpu and "
            f"config.DISTRIBUTED.BACKEND=gloo."
        )
    if config.MACHINE.DEVICE == "cpu" and distributed.BACKEND == "nccl":
        raise ConfigError(
            "DISTRIBUTED.BACKEND is 'nccl', which is for GPUs, but MACHINE.DEVICE is 'cpu'; set it to gloo."
        )
    optimizer = config.OPTIMIZER
    if optimizer.use_larc and optimizer.name != "sgd_fsdp" and importlib.util.find_spec("apex") is None:
        raise ConfigError("OPTIMIZER.use_larc is true, which needs NVIDIA's apex; install that, or set it to false.")
    if config.DATA.NUM_DATALOADER_WORKERS:
        check_temporary_folder()
        check_shared_memory(config)
    if weights and checkpoint_folder.newest(config, get_checkpoint_folder(config)) is None:  # else the run resumes
        check_initial_weights(config)


def check_gpus(config: Any) -> None:
    """Raise if this build of PyTorch cannot use the GPUs, and warn of what will be slow on them.

    Raises:
        ConfigError: naming what to install.
    """
    for fault in unusable_gpus():
        raise ConfigError(f"MACHINE.DEVICE is gpu, but {fault}; or set it to cpu.")
    step = config.TRAINER.get("PIRL_TRAIN_STEP", {})
    if step.get("precision") == "bfloat16" and emulates_bfloat16():
        logging.warning(
            f"TRAINER.PIRL_TRAIN_STEP.precision is bfloat16, for which {torch.cuda.get_device_name()} has no units: it "
            f"is emulated and slow. float16 and float32 are faster there."
        )


def check_temporary_folder() -> None:
    """Raise if TMPDIR is too long for Python's processes to reach each other.

    Raises:
        ConfigError: naming it and how long it may be.
    """
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) + len(SOCKET) > LONGEST_SOCKET:
        raise ConfigError(
            f"The temporary folder {folder} has {len(os.fsencode(folder))} letters, too many for loader workers to be "
            f"reached: set TMPDIR to one of at most {LONGEST_SOCKET - len(SOCKET)}, such as /tmp."
        )


def batch_bytes(config: Any) -> int:
    """Bytes of one batch of the plugin's views in shared memory; 0 for transforms of VISSL."""
    entry = config.DATA.TRAIN.TRANSFORMS[0] if config.DATA.TRAIN.TRANSFORMS else {}
    if entry.get("name") not in PRETEXT_TRANSFORMS:
        return 0
    task = PRETEXT_TRANSFORMS[entry["name"]].from_config(entry)
    views = task.pretext_views(torch.zeros(3, 64, 64, dtype=torch.uint8), None).numel() if task.num_views else 0
    size = 1 if task.normalize_on == "device" else 4
    return config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * size * (3 * task.image_crop_size**2 + views)


def check_shared_memory(config: Any, folder: str = SHARED_MEMORY) -> None:
    """Raise if the workers' batches do not fit into shared memory: they would die of a bus error.

    Raises:
        ConfigError: naming how much is needed and how much is free.
    """
    try:
        state = os.statvfs(folder)
    except OSError:
        return  # not Linux
    workers = config.DATA.NUM_DATALOADER_WORKERS * config.DISTRIBUTED.NUM_PROC_PER_NODE
    needed, free = workers * PREFETCHED * batch_bytes(config), state.f_bavail * state.f_frsize
    if needed > free:
        raise ConfigError(
            f"DATA.NUM_DATALOADER_WORKERS is {config.DATA.NUM_DATALOADER_WORKERS}, whose batches need "
            f"{needed / 2**20:.0f} MB of shared memory on this node, but {folder} has {free / 2**20:.0f} MB free: "
            f"lower it, or make {folder} larger (docker run --shm-size, or --ipc=host)."
        )
