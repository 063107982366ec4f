"""The environment variables that a log shows: none that could hold a secret."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

# What explains how a run computed, and nothing else: a cluster's users read each other's logs.
SHOWN = re.compile(
    r"(CUDA|NCCL|GLOO|OMP|MKL|OPENBLAS|TORCH|TORCHELASTIC|TRITON|PYTORCH|SLURM|SLURMD|PIRL_PLUGIN|VISSL)_\w+|"
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|HOSTNAME|PYTHONPATH|PYTHONHASHSEED"
)
NEVER_SHOWN = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH|JWT|COOKIE|SESSION|URL|URI", re.IGNORECASE)


def log_environment(environment: Mapping[str, str]) -> None:
    """In place of VISSL's print_system_env_info, which writes every variable with its value.

    Args:
        environment: as os.environ.
    """
    shown = {key for key in environment if SHOWN.fullmatch(key) and not NEVER_SHOWN.search(key)}
    for key in sorted(shown):
        logging.info(f"{key}:\t{environment[key]}")
    logging.info(f"Set, too, with values that are not logged: {', '.join(sorted(set(environment) - shown))}")
