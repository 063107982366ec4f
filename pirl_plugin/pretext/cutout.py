"""A pretext task that is not in the paper: a square of the image is covered (as in cut-out, DeVries & Taylor 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pirl_plugin.pretext.base import SingleViewTransform, draw_number, register_pretext
from pirl_plugin.validation import ConfigError, check_integer


def cover(view: Tensor, cell: int, grid_size: int) -> Tensor:
    """Cover a cell of a grid with the view's mean colour.

    Args:
        view: uint8 [3, S, S].
        cell: from 0, row by row, to grid_size^2 - 1; cells differ by a pixel if grid_size does not divide S.
        grid_size: cells per side, at most S.

    Returns:
        uint8 [3, S, S], a copy.
    """
    size = view.shape[-1]
    bounds = [size * number // grid_size for number in range(grid_size + 1)]
    row, column = divmod(cell, grid_size)
    covered = view.clone()
    mean = view.float().mean(dim=(1, 2), keepdim=True).round().to(torch.uint8)
    covered[:, bounds[row] : bounds[row + 1], bounds[column] : bounds[column + 1]] = mean
    return covered


@register_pretext("cutout_transform")
class CutoutTransform(SingleViewTransform):
    """T = nothing covered, or one cell of a grid.

    Args:
        grid_size: cells per side.
        num_transformations: |T|, from 1 (nothing covered) to grid_size^2 + 1; null for all.
        **common: arguments of SingleViewTransform.
    """

    def __init__(self, grid_size: int = 3, num_transformations: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.grid_size = check_integer(grid_size, f"{self.name}.grid_size", 1, 64)
        if self.grid_size > self.pretext_crop_size:
            raise ConfigError(
                f"{self.name}.grid_size is {grid_size}; it must be at most pretext_crop_size, {self.pretext_crop_size}."
            )
        most = self.grid_size**2 + 1
        number = most if num_transformations is None else num_transformations
        self.num_transformations = check_integer(number, f"{self.name}.num_transformations (|T|)", 1, most)

    def transform(self, view: Tensor, generator: torch.Generator | None) -> Tensor:
        number = draw_number(self.num_transformations, generator)
        return cover(view, number - 1, self.grid_size) if number else view
