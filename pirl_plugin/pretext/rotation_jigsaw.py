"""Rotation and jigsaw together (Section 4.3): the image is turned, then cut into patches that are shuffled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pirl_plugin.pretext.base import draw_number, register_pretext
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.pretext.rotation import rotate
from pirl_plugin.validation import check_integer


@register_pretext("rotation_jigsaw_transform")
class RotationJigsawTransform(JigsawPatchTransform):
    """T = rotations x permutations.

    Args:
        num_rotations: from 1 to 4: the first ones of 0, 90, 180 and 270 degrees.
        **common: arguments of JigsawPatchTransform; |T| = num_rotations x num_permutations.
    """

    def __init__(self, num_rotations: int = 4, **common: Any) -> None:
        super().__init__(**common)
        self.num_rotations = check_integer(num_rotations, f"{self.name}.num_rotations", 1, 4)

    def transform_canvas(self, canvas: Tensor, generator: torch.Generator | None) -> Tensor:
        return rotate(canvas, draw_number(self.num_rotations, generator))
