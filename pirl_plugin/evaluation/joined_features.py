"""Joins features of several networks (PIRL-ens.: two ResNet-50s, Section 3.2) that VISSL's extraction wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pirl_plugin.evaluation.extracted_features import collect, layers_and_splits
from pirl_plugin.evaluation.measures import unit
from pirl_plugin.validation import ConfigError


def join(features: Sequence[np.ndarray], normalise: bool = True) -> np.ndarray:
    """Concatenate the features of several networks, image by image.

    Args:
        features: float [images, d_i] of each network.
        normalise: scale each network's vectors to unit length first, so that none outweighs the others.

    Returns:
        float32 [images, sum of d_i].
    """
    parts = [part.astype(np.float32) for part in features]
    if normalise:
        parts = [unit(part) for part in parts]
    return np.concatenate(parts, axis=1)


def join_folders(
    folders: Sequence[str | Path], output: str | Path, normalise: bool = True
) -> dict[tuple[str, str], tuple[int, int]]:
    """Join all layers and splits that several extractions of the same images have in common.

    Args:
        folders: output folders of `pirl extract-features`, one per network, at least two.
        output: folder for `rank0_chunk0_<split>_<layer>_{features,targets,inds}.npy`, for VISSL's tools.
        normalise: as in `join`.

    Returns:
        (images, dimensions) by (split, layer).

    Raises:
        ConfigError: if a folder holds no features, the output already holds some, the folders have none in common, or
            the numbers, places or labels of the images differ.
    """
    if len(folders) < 2:
        raise ConfigError(f"Features of {len(folders)} network(s) were given; joining takes at least two.")
    found = [layers_and_splits(folder) for folder in folders]
    for folder, pairs in zip(folders, found, strict=True):
        if not pairs:
            raise ConfigError(f"{folder} holds no extracted features (rank*_chunk*_<split>_<layer>_features.npy).")
    common = sorted(set.intersection(*found))
    if not common:
        raise ConfigError(f"The extractions have no split and layer in common: {[sorted(pairs) for pairs in found]}.")
    output = Path(output)
    if any(output.resolve() == Path(folder).resolve() for folder in folders) or layers_and_splits(output):
        raise ConfigError(f"{output} holds features already; give another --output for the joined ones.")
    output.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for split, layer in common:
        features, targets, indices = zip(*(collect(folder, split, layer) for folder in folders), strict=True)
        for folder, other, order in zip(folders[1:], targets[1:], indices[1:], strict=True):
            if not (np.array_equal(targets[0], other) and np.array_equal(indices[0], order)):
                raise ConfigError(
                    f"{folders[0]} and {folder} have {len(targets[0])} and {len(other)} images of the split {split} or "
                    f"different places or labels: extract both from the same images."
                )
        joined = join(features, normalise)
        stem = output / f"rank0_chunk0_{split}_{layer}"
        np.save(f"{stem}_features.npy", joined)
        np.save(f"{stem}_targets.npy", targets[0].reshape(len(joined), -1))
        np.save(f"{stem}_inds.npy", np.arange(len(joined)))
        sizes[split, layer] = joined.shape
    return sizes
