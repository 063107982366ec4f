"""Reads the features that VISSL's extraction writes: rank*_chunk*_<split>_<layer>_{features,targets,inds}.npy."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from pirl_plugin.validation import ConfigError


def layers_and_splits(folder: str | Path) -> set[tuple[str, str]]:
    """(split, layer) of all features in a folder."""
    names = [path.name for path in Path(folder).glob("rank*_chunk*_*_*_features.npy")]
    matches = (re.fullmatch(r"rank\d+_chunk\d+_([^_]+)_(.+)_features\.npy", name) for name in names)
    return {(match.group(1), match.group(2)) for match in matches if match}


def delete(folder: str | Path) -> None:
    """Delete the features of an earlier extraction, which would be taken for more of the same."""
    for path in Path(folder).glob("rank*_chunk*_*.npy"):
        path.unlink(missing_ok=True)


def collect(folder: str | Path, split: str, layer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All features of one split and layer, in ascending order of the image index.

    An image that several ranks read (a padded sampler repeats some) is used once.

    Returns:
        features float32 [images, dimensions] (flattened), targets int64 [images] or, of several labels each, [images,
        classes], and the images' places in the data set, int64 [images].

    Raises:
        ConfigError: if there are none.
    """
    ending = f"_{split}_{layer}_features.npy"
    stems = sorted(str(path).removesuffix("features.npy") for path in Path(folder).glob(f"rank*_chunk*{ending}"))
    if not stems:
        raise ConfigError(f"{folder} holds no features of the split {split} and layer {layer} (rank*_chunk*{ending}).")
    features, targets, indices = (
        np.concatenate([np.load(f"{stem}{part}.npy", allow_pickle=False) for stem in stems])
        for part in ("features", "targets", "inds")
    )
    indices, first = np.unique(indices.reshape(-1), return_index=True)
    features, targets = (values[first].reshape(len(first), -1) for values in (features, targets))
    return features, targets[:, 0] if targets.shape[1] == 1 else targets, indices
