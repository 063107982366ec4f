"""Where features are computed."""

from __future__ import annotations

import torch

from pirl_plugin.validation import ConfigError


def choose_device(name: str | None = None) -> torch.device:
    """The device of a name such as `cpu`, `cuda` or `cuda:1`; None for the GPU where there is one, else the CPU.

    Raises:
        ConfigError: for one that PyTorch does not know, or that this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"--device is {name!r}, which this machine cannot use ({reason}); give cpu.") from error
    return device
