"""Reads files of tensors without running code from them."""

from __future__ import annotations

import argparse
import re
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
# Old VISSL checkpoints hold NumPy numbers, which are plain values and which VISSL's own loading accepts as well.
# SupContrast and others save their command line with the weights: a bag of attributes, without code.
torch.serialization.add_safe_globals([*_NUMPY_VALUES, argparse.Namespace])

SAVED = (b"pk", b"\x80")  # the first bytes of what torch.save writes: a zip or, before PyTorch 1.6, a pickle
# The first bytes of files that are often found in place of a checkpoint.
_OTHERS = {
    b"version https://git-lfs": "a pointer of git LFS, not the file itself: fetch it with `git lfs pull`",
    b"<!doctype": "a web page, probably from a failed download: download it again",
    b"<html": "a web page, probably from a failed download: download it again",
    b"<?xml": "an XML message, probably from a failed download: download it again",
}


def read_safely(path: str | Path) -> Any:
    """Load a file that `torch.save` wrote, onto the CPU and without running code from it.

    Raises:
        ConfigError: if the file is missing, cut short or holds anything but tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"There is no checkpoint file at {path}.")
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    for other, what in _OTHERS.items():
        if start.startswith(other):
            raise ConfigError(f"{path} is {what}.")
    if not start:
        raise ConfigError(f"{path} is empty.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = _reason(error) if start.startswith(SAVED) else "torch.save did not write it"
        raise ConfigError(
            f"{path} is not a checkpoint that can be read safely (tensors and plain values only): {why}"
        ) from error


def _reason(error: Exception) -> str:
    """Why `torch.load` rejected a file, without its advice to run the file's code."""
    text = " ".join(str(error).split())
    named = re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)", text)
    if named:
        return (
            f"it holds an object of {named.group(1)}; if you trust it, load the file with the code that wrote it "
            f"and save only its state_dict"
        )
    if "TorchScript" in text:
        return "it is a TorchScript program; save the state_dict of the network that it was made of"
    if "archive" in text or "EOF" in text or "central directory" in text:
        return "it is cut short or damaged"
    return text.split(". ")[0][:200] or type(error).__name__
