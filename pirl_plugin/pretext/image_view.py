"""No pretext task: NPID and NPID++ (lambda = 0) use the plain image only."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from pirl_plugin.pretext.base import PretextTransform, register_pretext


@register_pretext("image_view_transform")
class ImageViewTransform(PretextTransform):
    """The plain view of the image, as the other tasks make it, and nothing else.

    Args:
        **common: arguments of PretextTransform.
    """

    @property
    def num_views(self) -> int:
        return 0

    def pretext_reduction(self, width: int, height: int) -> float:
        return float("inf")

    def pretext_views(self, image: Image.Image | Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.empty(0, 3, self.image_crop_size, self.image_crop_size, dtype=torch.uint8)
