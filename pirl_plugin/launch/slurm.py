"""Reads SLURM's environment, and submits jobs by submitit."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pirl_plugin.validation import ConfigError

MAX_TIMEOUTS = 10_000  # how often a job that ran out of time is requeued; submitit's default is 3
SIGNAL_DELAY_SECONDS = 120  # how long before its end a job is signalled; a step may then take `grace_seconds`


def node_id(given: int, overrides: list[str], environment: Mapping[str, str] = os.environ) -> int:
    """The number of this node: as given, else SLURM's in a job step.

    VISSL uses SLURM's even if another is given.

    Args:
        given: the composed `node_id`.
        overrides: the command line's, which show whether it was given.

    Raises:
        ConfigError: if SLURM started several tasks on a node, which would all be the same node.
    """
    if "SLURM_STEP_NODELIST" not in environment or any(one.startswith("node_id=") for one in overrides):
        return given
    tasks, nodes = int(environment.get("SLURM_STEP_NUM_TASKS", 1)), int(environment.get("SLURM_STEP_NUM_NODES", 1))
    if tasks > nodes:
        raise ConfigError(
            f"SLURM started {tasks} tasks on {nodes} node(s), and each would be a whole node of the run: start one per "
            f"node (srun --ntasks-per-node=1), which starts DISTRIBUTED.NUM_PROC_PER_NODE processes itself, or give "
            f"each its own node_id."
        )
    return int(environment["SLURM_NODEID"])


@contextlib.contextmanager
def executor_of_a_long_run(config: Any) -> Iterator[None]:
    """While VISSL submits: an executor of submitit that requeues a run until it is done, with or without a GPU."""
    import submitit

    original = submitit.AutoExecutor

    class Executor(submitit.AutoExecutor):
        def __init__(self, folder: str) -> None:
            super().__init__(folder=folder, slurm_max_num_timeout=MAX_TIMEOUTS)

        def update_parameters(self, **parameters: Any) -> None:
            if config.MACHINE.DEVICE == "cpu":  # a cluster without GPUs rejects a request for them
                del parameters["gpus_per_node"]
            super().update_parameters(slurm_signal_delay_s=SIGNAL_DELAY_SECONDS, **parameters)

    submitit.AutoExecutor = Executor
    try:
        yield
    finally:
        submitit.AutoExecutor = original
