"""The rotation pretext task (Section 4.3): the image turned by 0, 90, 180 or 270 degrees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pirl_plugin.pretext.base import SingleViewTransform, draw_number, register_pretext
from pirl_plugin.validation import check_integer


def rotate(view: Tensor, quarter_turns: int) -> Tensor:
    """Turn a square view [..., S, S] counter-clockwise by quarter_turns x 90 degrees; no pixel is interpolated.

    Raises:
        ValueError: for a view that is not square.
    """
    if view.shape[-1] != view.shape[-2]:
        raise ValueError(f"A rotation by 90 degrees needs a square view; this one is {tuple(view.shape[-2:])} pixels.")
    return torch.rot90(view, quarter_turns, dims=(-2, -1)).contiguous()


@register_pretext("rotation_transform")
class RotationTransform(SingleViewTransform):
    """T = {0, 90, 180, 270 degrees}.

    Args:
        num_rotations: |T|, from 1 (the identity alone) to 4: the first ones of these angles.
        **common: arguments of SingleViewTransform.

    Example:
        >>> from PIL import Image
        >>> image_view, rotated = RotationTransform().views(Image.new("RGB", (320, 240)))
        >>> rotated.shape
        torch.Size([1, 3, 224, 224])
    """

    branch = "rotation"

    def __init__(self, num_rotations: int = 4, **common: Any) -> None:
        super().__init__(**common)
        self.num_rotations = check_integer(num_rotations, f"{self.name}.num_rotations (|T|)", 1, 4)

    def transform(self, view: Tensor, generator: torch.Generator | None) -> Tensor:
        return rotate(view, draw_number(self.num_rotations, generator))
