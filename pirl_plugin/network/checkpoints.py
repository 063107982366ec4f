"""Checkpoint files, read without running code from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pirl_plugin.validation import ConfigError


def read_safely(path: str | Path) -> Any:
    """What `torch.save` wrote to a file, on the CPU, without running code from it.

    Raises:
        ConfigError: where the file is missing, cut short or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"There is no checkpoint file at {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{path} is not a checkpoint that can be read safely (tensors and plain values only): {reason}"
        ) from error


# NumPy 1 and 2 name the same function differently.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_VALUES = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")},
]
# Old checkpoints of VISSL hold numbers of NumPy, which are plain values: VISSL's own reading takes them, too.
torch.serialization.add_safe_globals(_NUMPY_VALUES)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A VISSL checkpoint on the CPU, read without running code from it.

    Raises:
        ConfigError: as `read_safely`, and where the file is another's.
    """
    checkpoint = read_safely(path)
    if not isinstance(checkpoint, dict) or "classy_state_dict" not in checkpoint:
        raise ConfigError(f"{path} is not a checkpoint of VISSL: it has no classy_state_dict.")
    return checkpoint


def bank_rows(checkpoint: Any, source: str) -> Tensor:
    """The whole bank in a checkpoint of this plugin or of VISSL's PIRL or NPID: float32 [|D|, d], of unit norm.

    Raises:
        ConfigError: where there is none.
    """
    loss = checkpoint.get("loss") if isinstance(checkpoint, Mapping) else None
    loss = loss if isinstance(loss, Mapping) else {}
    if "memory_bank.rows" in loss:
        return loss["memory_bank.rows"].float()
    if "nce_average.memory" in loss:  # whose first rows are shorter with every rank
        return normalize(loss["nce_average.memory"].float(), dim=1)
    where = " (but names the shard files of one)" if "memory_bank._extra_state" in loss else ""
    raise ConfigError(f"{source} holds no memory bank{where}; initial_rows needs a checkpoint that does.")


def read_bank_rows(path: str | Path) -> Tensor:
    """`bank_rows` of a checkpoint file, read without running code from it."""
    return bank_rows(read_safely(path), str(path))
