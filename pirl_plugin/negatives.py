"""Drawing D_N: images uniformly at random from D without the query's own (Section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

NEGATIVES = ("per_image", "shared", "all")


def draw_negatives(
    indices: Tensor, num_rows: int, num_negatives: int, generator: torch.Generator | None = None
) -> Tensor:
    """N rows for each image, uniform over the other |D| - 1, with replacement.

    Args:
        indices: int64 [B], the images' own rows; ignored images (negative) get any rows.
        num_rows: |D|, at least 2.
        num_negatives: N.
        generator: on the device of `indices`.

    Returns:
        int64 [B, N] in [0, |D|), never the image's own row.
    """
    drawn = torch.randint(num_rows - 1, (len(indices), num_negatives), generator=generator, device=indices.device)
    return drawn + (drawn >= indices.clamp(min=0).unsqueeze(1))


def draw_shared_negatives(
    indices: Tensor, num_rows: int, num_negatives: int, generator: torch.Generator | None = None
) -> Tensor:
    """N rows for the whole batch, uniform over all |D|, with replacement: int64 [N] on the device of `indices`.

    Each image must pass over its own row where that was drawn; what it keeps is uniform over the others.
    """
    return torch.randint(num_rows, (num_negatives,), generator=generator, device=indices.device)
