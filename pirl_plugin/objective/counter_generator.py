"""Random numbers that depend only on a key and a counter: the same on every device, for any number of processes.

The generator is SplitMix64 (Steele et al. 2014): number k of a key is a mix of the bits of key + k GAMMA.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

# SplitMix64's constants, as the int64 values with the same bits.
GAMMA, FIRST_FACTOR, SECOND_FACTOR = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def mix(bits: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place; int64 arithmetic wraps around, and `>>` needs the sign bits masked."""
    bits ^= (bits >> 30) & (2**34 - 1)
    bits *= FIRST_FACTOR
    bits ^= (bits >> 27) & (2**37 - 1)
    bits *= SECOND_FACTOR
    bits ^= (bits >> 31) & (2**33 - 1)
    return bits


def keys(numbers: Tensor, seed: int, step: int = 0) -> Tensor:
    """The generator's state for each of `numbers` int64 [n], for a seed and step: int64 [n], on the same device."""
    of_step = mix(torch.full_like(numbers[:1], (seed * 2**32 + step) % 2**63) * GAMMA)
    return mix((numbers * GAMMA).bitwise_xor_(of_step))


@functools.cache
def _quantiles() -> np.ndarray:
    """The standard normal distribution at the middles of 65,536 equal shares: float32 [65536]."""
    shares = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(shares).float().numpy()


def normal(keys: Tensor, count: int) -> Tensor:
    """`count` standard normal numbers for each key int64 [n]: float32 [n, count], each from 16 bits.

    For a CPU, where NumPy's unsigned arithmetic is several times faster than PyTorch's signed arithmetic.
    """
    counters = np.arange(1, -(-count // 4) + 1, dtype=np.uint64) * np.uint64(GAMMA % 2**64)
    bits = keys.numpy().view(np.uint64)[:, None] + counters
    shifted = np.empty_like(bits)
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR), (31, None)):  # as in `mix`
        np.right_shift(bits, shift, out=shifted)
        bits ^= shifted
        if factor is not None:
            bits *= np.uint64(factor % 2**64)
    return torch.from_numpy(_quantiles().take(bits.view(np.uint16).reshape(len(keys), -1)[:, :count]))
