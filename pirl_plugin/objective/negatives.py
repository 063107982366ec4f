"""Drawing D_N: images uniformly at random from D, except the query's own image (Section 2.1).

The draw depends only on the seed, the step and the image: it is the same on every device, for any number of
processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pirl_plugin.objective import counter_generator
from pirl_plugin.objective.counter_generator import GAMMA, mix

NEGATIVES = ("per_image", "shared", "all")

SHARED_KEY = -1  # instead of an image's number, if the batch has one draw


def draw(keys: Tensor, count: int, size: int) -> Tensor:
    """`count` numbers for each key, uniform in [0, size), with replacement: int64 [B, count].

    From 53 random bits each: probabilities differ by at most a factor of 1 + size / 2^53.
    """
    if keys.is_cuda:
        from pirl_plugin.objective.triton_contrast import available, draw_on_gpu

        if available(keys.device):
            return draw_on_gpu(keys, count, size)
    steps = torch.arange(1, count + 1, device=keys.device) * GAMMA
    drawn = torch.empty(len(keys), count, dtype=torch.int64, device=keys.device)
    at_once = max(1, len(keys)) if keys.is_cuda else 1  # on a CPU, what fits the cache
    for rows, key in zip(drawn.split(at_once), keys.split(at_once), strict=True):
        bits = mix(key.unsqueeze(1) + steps)
        bits >>= 11
        bits &= 2**53 - 1
        rows.copy_(bits.double().mul_(2.0**-53 * size))  # rounds down
    return drawn


def draw_negatives(indices: Tensor, num_rows: int, num_negatives: int, seed: int = 0, step: int = 0) -> Tensor:
    """N rows for each image, uniform over the other |D| - 1, with replacement.

    Args:
        indices: int64 [B], the images' own rows; ignored images (negative) get any rows.
        num_rows: |D|, at least 2.
        num_negatives: N.
        seed, step: at least 0; a different seed or step gives a different draw.

    Returns:
        int64 [B, N] in [0, |D|), never the image's own row. The same image has the same draw in the same step.
    """
    own = indices.clamp(min=0)
    drawn = draw(counter_generator.keys(own, seed, step), num_negatives, num_rows - 1)
    return drawn.add_(drawn >= own.unsqueeze(1))


def draw_shared_negatives(
    num_rows: int, num_negatives: int, seed: int = 0, step: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """N rows for the whole (global) batch, uniform over all |D|, with replacement: int64 [N].

    Each image must ignore its own row if that was drawn; what it keeps is uniform over the others.
    """
    key = counter_generator.keys(torch.full((1,), SHARED_KEY, device=device), seed, step)
    return draw(key, num_negatives, num_rows).squeeze(0)
