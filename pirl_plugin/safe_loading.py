"""Files of tensors, read without running code from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pirl_plugin.validation import ConfigError

# NumPy 1 and 2 name the same function differently.
_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_VALUES: list[Any] = [
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")},
]
# Old checkpoints of VISSL hold numbers of NumPy, which are plain values: VISSL's own reading takes them, too.
torch.serialization.add_safe_globals(_NUMPY_VALUES)


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
