"""How the ranks of a run meet, with a limit of time for that and for each collective."""

from __future__ import annotations

import datetime
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
    """`init_process_group` for a rank of a run of several, in place of VISSL's, which waits as long as PyTorch does.

    VISSL takes the process group that is there.

    Args:
        config: the `config` node.
        run_id: where they meet: <host>:<port>.

    Returns:
        the store that the ranks met at.

    Raises:
        ConfigError: where not all ranks come in time.
    """
    settings = StepSettings.of_run(config)
    world_size = config.DISTRIBUTED.NUM_NODES * config.DISTRIBUTED.NUM_PROC_PER_NODE
    if config.MACHINE.DEVICE == "gpu":
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:  # else each rank takes all cores, and they wait for each other
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.DISTRIBUTED.NUM_PROC_PER_NODE))
    url = f"{config.DISTRIBUTED.INIT_METHOD}://{run_id}"
    limit = datetime.timedelta(seconds=settings.rendezvous_seconds)
    try:
        store, rank, world_size = next(rendezvous(url, rank, world_size, timeout=limit))
        store = PrefixStore(_meet(store, rank, world_size, limit.total_seconds()), store)
    except (torch.distributed.DistStoreError, TimeoutError) as error:
        raise ConfigError(
            f"Rank {rank} waited {limit.total_seconds():.0f} s ({WHERE}.rendezvous_seconds) at {url} for the other "
            f"ranks of {world_size}; not all came: see the log of the other nodes, which may have refused to start."
        ) from error
    timeout = datetime.timedelta(minutes=settings.timeout_minutes)
    store.set_timeout(timeout)
    torch.distributed.init_process_group(
        config.DISTRIBUTED.BACKEND, store=store, rank=rank, world_size=world_size, timeout=timeout
    )
    return store


def _meet(store: Store, rank: int, world_size: int, seconds: float) -> str:
    """Wait for all and agree on a name for this attempt.

    init_process_group has one limit for this and for all collectives. And torchrun may give all attempts one store, in
    which the addresses of ended processes still are; its nodes do not count the attempts alike.

    Raises:
        TimeoutError: where not all come.
    """
    deadline, own = time.monotonic() + seconds, secrets.token_hex(8)
    others = [f"join/{number}" for number in range(1, world_size)]
    if rank == 0:
        for key in others:
            store.delete_key(key)  # of an attempt before; who joins now says so again
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
