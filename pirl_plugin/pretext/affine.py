"""A pretext task beyond the paper: the image is turned, moved, scaled and sheared."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from pirl_plugin.pretext.base import SingleViewTransform, draw_number, register_pretext
from pirl_plugin.validation import ConfigError, check_integer, check_interval, check_number


def affine_matrix(angle: float, scale: float, shear: float, move: tuple[float, float]) -> Tensor:
    """The map from positions in the result to positions in the view, about its centre: float [2, 3].

    Positions are in [-1, 1] (left to right, top to bottom). The view is sheared by `shear` degrees along x, scaled by
    `scale`, turned counter-clockwise by `angle` degrees and moved by `move` (shares of its width and height).
    """
    turn, tangent = math.radians(angle), math.tan(math.radians(shear))
    rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
    forward = scale * rotation @ torch.tensor([[1.0, tangent], [0.0, 1.0]], dtype=torch.float64)
    inverse = torch.linalg.inv(forward)
    offset = -inverse @ torch.tensor([[2 * move[0]], [2 * move[1]]], dtype=torch.float64)
    return torch.cat([inverse, offset], dim=1).float()


def warp(view: Tensor, matrix: Tensor) -> Tensor:
    """The view seen through `affine_matrix`, bilinear, mirrored at its border: uint8 [3, S, S] -> the same."""
    grid = affine_grid(matrix.unsqueeze(0), [1, *view.shape], align_corners=False)
    warped = grid_sample(view.unsqueeze(0).float(), grid, padding_mode="reflection", align_corners=False)
    return warped[0].round_().clamp_(0, 255).to(torch.uint8)


@register_pretext("affine_transform")
class AffineTransform(SingleViewTransform):
    """T = random affine maps: all that the ranges allow, or a fixed set of them.

    Args:
        degrees: largest turn either way, in [0, 180].
        scale: (low, high) of the factor, drawn log-uniformly.
        shear: largest shear either way, in degrees, in [0, 80].
        translation: largest move either way, as a share of the side, in [0, 1].
        num_transformations: |T|, the number of maps, drawn once, the first the identity; null: a new map each time.
        set_seed: seed of the set of maps, if there is one.
        **common: arguments of SingleViewTransform.
    """

    def __init__(
        self,
        degrees: float = 45.0,
        scale: tuple[float, float] = (0.75, 1.33),
        shear: float = 20.0,
        translation: float = 0.1,
        num_transformations: int | None = None,
        set_seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.degrees = check_number(degrees, f"{self.name}.degrees", 0, 180)
        self.scale = check_interval(scale, f"{self.name}.scale", 0.01, 100.0)
        self.shear = check_number(shear, f"{self.name}.shear", 0, 80)
        self.translation = check_number(translation, f"{self.name}.translation", 0, 1)
        if num_transformations is not None:
            check_integer(num_transformations, f"{self.name}.num_transformations (|T|)", 1, 10**6)
        if (
            num_transformations != 1
            and not any((self.degrees, self.shear, self.translation))
            and self.scale == (1.0, 1.0)
        ):
            raise ConfigError(f"{self.name} allows only the identity; give degrees, scale, shear or translation.")
        self.num_transformations = num_transformations
        self.set_seed = check_integer(set_seed, f"{self.name}.set_seed", 0)

    def draw_matrix(self, generator: torch.Generator | None) -> Tensor:
        """A map within the ranges: float [2, 3], see affine_matrix."""
        turn, grow, shear, right, down = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        low, high = map(math.log, self.scale)
        move = (self.translation * (2 * right - 1), self.translation * (2 * down - 1))
        angle, scale = self.degrees * (2 * turn - 1), math.exp(low + (high - low) * grow)
        return affine_matrix(angle, scale, self.shear * (2 * shear - 1), move)

    @functools.cached_property
    def maps(self) -> Tensor:
        """T, if it is a fixed set: float [|T|, 2, 3]."""
        generator = torch.Generator().manual_seed(self.set_seed)
        assert self.num_transformations is not None
        drawn = [self.draw_matrix(generator) for _ in range(self.num_transformations - 1)]
        return torch.stack([torch.eye(2, 3), *drawn])

    def transform(self, view: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.num_transformations is None:
            return warp(view, self.draw_matrix(generator))
        return warp(view, self.maps[draw_number(self.num_transformations, generator)])
