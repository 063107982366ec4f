"""The seeded set T of patch permutations, of any size from 1 to n! (Section 4.2, Figure 7)."""

from __future__ import annotations

import functools
import math
import random

import numpy as np

from pirl_plugin.validation import ConfigError


@functools.lru_cache(maxsize=4)
def permutation_set(num_patches: int, size: int, seed: int = 0) -> np.ndarray:
    """`size` different permutations of `num_patches` patches.

    The first is the identity, so that size 1 is the identity alone; the others are a uniformly random choice
    that depends only on `seed`. Sets with the same seed are nested: a smaller one is the start of a larger one.

    Args:
        num_patches: n, at least 1.
        size: |T|, from 1 to n!.
        seed: seed of the choice.

    Returns:
        uint8 [size, num_patches]; row t lists the patch at each place. Do not write to it.

    Raises:
        ConfigError: size outside [1, n!].
    """
    total = math.factorial(num_patches)
    if not 1 <= size <= total:
        raise ConfigError(
            f"num_permutations is {size}; {num_patches} patches have 1 to {num_patches}! = {total} permutations."
        )
    ranks = np.zeros(size, dtype=np.int64) if total < 2**63 else np.zeros(size, dtype=object)
    if total <= 10**6:
        ranks[1:] = 1 + np.random.default_rng(seed).permutation(total - 1)[: size - 1]
    else:
        # Too many to shuffle: draw one by one and skip those already drawn.
        rng, seen = random.Random(seed), set[int]()
        while len(seen) < size - 1:
            rank = rng.randrange(1, total)
            if rank not in seen:
                seen.add(rank)
                ranks[len(seen)] = rank
    permutations = unrank(ranks, num_patches)
    permutations.setflags(write=False)
    return permutations


def unrank(ranks: np.ndarray, num_patches: int) -> np.ndarray:
    """The permutations at given ranks in lexicographic order (0: the identity), by their Lehmer code.

    Args:
        ranks: integers [size] in [0, num_patches!).

    Returns:
        uint8 [size, num_patches].
    """
    ranks = ranks.copy()
    remaining = np.tile(np.arange(num_patches, dtype=np.uint8), (len(ranks), 1))
    result = np.empty_like(remaining)
    rows = np.arange(len(ranks))
    for place in range(num_patches):
        weight = math.factorial(num_patches - 1 - place)
        digit = (ranks // weight).astype(np.int64)
        ranks = ranks - digit * weight
        result[:, place] = remaining[rows, digit]
        keep = np.arange(remaining.shape[1]) != digit[:, None]
        remaining = remaining[keep].reshape(len(rows), -1)
    return result
