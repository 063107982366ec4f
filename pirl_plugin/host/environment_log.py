"""Logs environment variables, except those that could hold a secret."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

# Only what affects how a run computes: users of a cluster read each other's logs.
SHOWN = re.compile(
    r"(CUDA|NCCL|GLOO|OMP|MKL|OPENBLAS|TORCH|TORCHELASTIC|TRITON|PYTORCH|SLURM|SLURMD|PIRL_PLUGIN|VISSL)_\w+|"
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|HOSTNAME|PYTHONPATH|PYTHONHASHSEED"
)
NEVER_SHOWN = re.compile(r"KEY|TOKEN|SECRET|PASS|PWD|CREDENTIAL|AUTH|JWT|COOKIE|SESSION|URL|URI", re.IGNORECASE)


def log_environment(environment: Mapping[str, str]) -> None:
    """Replaces VISSL's print_system_env_info, which logs every variable with its value.

    Args:
        environment: like os.environ.
    """
    shown = {key for key in environment if SHOWN.fullmatch(key) and not NEVER_SHOWN.search(key)}
    for key in sorted(shown):
        logging.info(f"{key}:\t{environment[key]}")
    logging.info(f"Also set, with values not logged: {', '.join(sorted(set(environment) - shown))}")
