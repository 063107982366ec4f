"""Rendezvous of the ranks of a run, with a time limit for that and for each collective, and the orderly end."""

from __future__ import annotations

import datetime
import gc
import os
import secrets
import time
from typing import Any

import torch
from torch.distributed import PrefixStore, Store, rendezvous

from pirl_plugin.training.settings import WHERE, StepSettings
from pirl_plugin.validation import ConfigError

TORCHRUN = "TORCHELASTIC_RUN_ID"  # in the environment of a process that torchrun started


def join(config: Any, run_id: str, rank: int, local_rank: int) -> Store:
    """`init_process_group` for a rank of several, before VISSL calls it with PyTorch's default timeout.

    VISSL uses an existing process group.

    Args:
        config: the `config` node.
        run_id: the rendezvous address, <host>:<port>.

    Returns:
        the store of the rendezvous.

    Raises:
        ConfigError: if not all ranks arrive in time.
    """
    settings = StepSettings.of_run(config)
    world_size = config.DISTRIBUTED.NUM_NODES * config.DISTRIBUTED.NUM_PROC_PER_NODE
    if config.MACHINE.DEVICE == "gpu":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:  # else each rank uses all cores, and they wait for each other
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.DISTRIBUTED.NUM_PROC_PER_NODE))
    url = f"{config.DISTRIBUTED.INIT_METHOD}://{run_id}"
    limit = datetime.timedelta(seconds=settings.rendezvous_seconds)
    try:
        store, rank, world_size = next(rendezvous(url, rank, world_size, timeout=limit))
        store = PrefixStore(_meet(store, rank, world_size, limit.total_seconds()), store)
    except (torch.distributed.DistStoreError, TimeoutError) as error:
        raise ConfigError(
            f"Rank {rank} waited {limit.total_seconds():.0f} s ({WHERE}.rendezvous_seconds) at {url} for the other "
            f"ranks of {world_size}; not all arrived: see the other nodes' logs, which may say why they did not start."
        ) from error
    timeout = datetime.timedelta(minutes=settings.timeout_minutes)
    store.set_timeout(timeout)
    torch.distributed.init_process_group(
        config.DISTRIBUTED.BACKEND, store=store, rank=rank, world_size=world_size, timeout=timeout
    )
    return store


def leave() -> None:
    """End the process group, if there is one, after a run that ended well or was asked to stop; VISSL does not.

    A thread of gloo that still has a tensor of the last collective to free when Python ends aborts the process (2 of
    300 ranks on a busy machine), and the launcher takes the run for failed. After an error a rank must not wait for
    others here.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # trainer and network, which hold the group
        torch.distributed.destroy_process_group()
        gc.collect()


def _meet(store: Store, rank: int, world_size: int, seconds: float) -> str:
    """Wait for all ranks and agree on a name for this attempt.

    init_process_group has only one limit for this and for all collectives. And torchrun may use one store for all
    attempts, which still has addresses of ended processes; its nodes do not count attempts consistently.

    Raises:
        TimeoutError: if not all ranks arrive.
    """
    deadline, own = time.monotonic() + seconds, secrets.token_hex(8)
    others = [f"join/{number}" for number in range(1, world_size)]
    if rank == 0:
        for key in others:
            store.delete_key(key)  # from an earlier attempt; ranks that join now set it again
    while not (store.check(others) if rank == 0 else store.check([f"answer/{own}"])):
        if rank != 0:
            store.set(f"join/{rank}", own)
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.1)
    if rank != 0:
        return store.get(f"answer/{own}").decode()
    for key in others:
        store.set(f"answer/{store.get(key).decode()}", own)
    return own
