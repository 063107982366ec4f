"""The jigsaw pretext task (Section 2.3): nine patches of the image in a random order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pirl_plugin.pretext.base import PretextTransform, draw_number, register_pretext
from pirl_plugin.pretext.crops import draw_crop_box, image_size, largest_reduction, resized_crop
from pirl_plugin.pretext.permutations import permutation_set
from pirl_plugin.validation import ConfigError, check_integer, check_interval


def cut_patches(canvas: Tensor, grid_size: int, patch_size: int, offsets: Tensor) -> Tensor:
    """Cut one patch out of each cell of a grid, row by row.

    Args:
        canvas: [C, S, S] with S divisible by grid_size; the cells are S / grid_size wide.
        grid_size: n_side; there are n = n_side^2 cells.
        patch_size: P, at most the cell's width.
        offsets: int64 [n, 2], (down, right) of each patch in its cell, in [0, S / n_side - P].

    Returns:
        [n, C, P, P], a copy, channels last in memory.
    """
    cell = canvas.shape[-1] // grid_size
    pixels, patches = canvas.permute(1, 2, 0), []
    for number, (down, right) in enumerate(offsets.tolist()):
        top, left = (number // grid_size) * cell + down, (number % grid_size) * cell + right
        patches.append(pixels[top : top + patch_size, left : left + patch_size])
    return torch.stack(patches).permute(0, 3, 1, 2)


@register_pretext("jigsaw_patch_transform")
class JigsawPatchTransform(PretextTransform):
    """Nine patches in a random order t in T, beside a view of the image.

    A RandomResizedCrop (area >= 60%) is resized to 255x255 and divided into 3x3 cells of 85; a random 64x64
    patch of each cell is one view. T holds `num_permutations` permutations of the nine.

    Args:
        patch_crop_size: side of the canvas that is divided, in pixels; divisible by grid_size.
        patch_crop_scale: share of the image's area that the canvas covers, (low, high) in (0, 1].
        grid_size: cells per side.
        patch_size: side of a patch, in pixels, at most the cell's; all offsets are equally likely.
        num_permutations: |T|, from 1 (the identity alone) to grid_size^2 factorial; null for all of them.
        permutation_seed: which permutations, if not all.
        **common: arguments of PretextTransform.

    Example:
        >>> from PIL import Image
        >>> transform = JigsawPatchTransform()
        >>> image_view, patches = transform.views(Image.new("RGB", (320, 240)))
        >>> image_view.shape, patches.shape
        (torch.Size([3, 224, 224]), torch.Size([9, 3, 64, 64]))
    """

    branch = "jigsaw"

    def __init__(
        self,
        patch_crop_size: int = 255,
        patch_crop_scale: Sequence[float] = (0.6, 1.0),
        grid_size: int = 3,
        patch_size: int = 64,
        num_permutations: int | None = None,
        permutation_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.grid_size = check_integer(grid_size, f"{self.name}.grid_size", 1, 16)
        self.patch_crop_size = check_integer(patch_crop_size, f"{self.name}.patch_crop_size", 1)
        self.patch_crop_scale = check_interval(patch_crop_scale, f"{self.name}.patch_crop_scale", 1e-6, 1.0)
        if self.patch_crop_size % self.grid_size:
            raise ConfigError(
                f"{self.name}.patch_crop_size is {patch_crop_size}, which a grid of {grid_size} x {grid_size} "
                f"does not divide; it must be a multiple of grid_size."
            )
        cell = self.patch_crop_size // self.grid_size
        self.patch_size = check_integer(patch_size, f"{self.name}.patch_size", 1)
        if self.patch_size > cell:
            raise ConfigError(
                f"{self.name}.patch_size is {patch_size}; it must fit the grid's cells of {cell} x {cell} pixels "
                f"(patch_crop_size {patch_crop_size} / grid_size {grid_size})."
            )
        everything = math.factorial(self.num_views)
        if num_permutations is None:
            num_permutations = everything
        # Raises for |T| outside [1, n!]. The set itself is made where it is used, not sent to every worker.
        self.num_permutations = check_integer(num_permutations, f"{self.name}.num_permutations (|T|)", 1, everything)
        if self.num_permutations > 10**7:
            raise ConfigError(
                f"{self.name}.num_permutations is {self.num_permutations}; it must be at most 10,000,000, "
                f"because the set is held in memory."
            )
        self.permutation_seed = check_integer(permutation_seed, f"{self.name}.permutation_seed", 0)

    @property
    def num_views(self) -> int:
        return self.grid_size**2

    def pretext_reduction(self, width: int, height: int) -> float:
        return largest_reduction(width, height, self.patch_crop_scale, self.patch_crop_size)

    def draw_permutation(self, generator: torch.Generator | None) -> Tensor:
        """A permutation drawn uniformly from T: int64 [n], the patch at each place."""
        permutations = permutation_set(self.num_views, self.num_permutations, self.permutation_seed)
        return torch.from_numpy(permutations[draw_number(len(permutations), generator)].astype("int64"))

    def transform_canvas(self, canvas: Tensor, generator: torch.Generator | None) -> Tensor:
        """Change the crop uint8 [3, S, S] before it is cut; does nothing here."""
        return canvas

    def pretext_views(self, image: Image.Image | Tensor, generator: torch.Generator | None) -> Tensor:
        """uint8 [n, 3, patch_size, patch_size], already in the permutation's order."""
        box = draw_crop_box(*image_size(image), self.patch_crop_scale, generator=generator)
        canvas = self.transform_canvas(resized_crop(image, box, self.patch_crop_size), generator)
        jitter = self.patch_crop_size // self.grid_size - self.patch_size
        offsets = torch.randint(jitter + 1, (self.num_views, 2), generator=generator)
        patches = cut_patches(canvas, self.grid_size, self.patch_size, offsets)
        return patches[self.draw_permutation(generator)]
