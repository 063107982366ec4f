"""RandomResizedCrop, with drawing the box separate from applying it."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

ASPECT_RATIO = (3 / 4, 4 / 3)


def draw_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = ASPECT_RATIO,
    generator: torch.Generator | None = None,
) -> tuple[int, int, int, int]:
    """A random box as torchvision's RandomResizedCrop draws it.

    The area is uniform in `scale` (shares of the image's), the aspect ratio log-uniform in `ratio`, the place
    uniform; after ten boxes that do not fit, the largest central box with an allowed ratio.

    Returns:
        (left, top, right, bottom) in whole pixels, inside the image, at least one pixel wide and high.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        share, turn = torch.rand(2, generator=generator).tolist()
        area = width * height * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = math.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * turn)
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(torch.randint(width - crop_width + 1, (), generator=generator))
            top = int(torch.randint(height - crop_height + 1, (), generator=generator))
            return left, top, left + crop_width, top + crop_height
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def largest_reduction(width: int, height: int, scale: tuple[float, float], size: int) -> float:
    """By what factor an image may be reduced when decoded with no crop of draw_crop_box smaller than `size`.

    Below 1 if some crop of the full-size image is smaller already.
    """
    smallest = math.sqrt(width * height * scale[0] * ASPECT_RATIO[0])
    return min(smallest, width, height) / size


def image_size(image: Image.Image | Tensor) -> tuple[int, int]:
    """(width, height) of a PIL image or of a tensor [..., H, W]."""
    return (image.shape[-1], image.shape[-2]) if isinstance(image, Tensor) else image.size


def resized_crop(image: Image.Image | Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
    """The part of an RGB image inside `box`, resized (bilinear, antialiased; equal to PIL's to within a level).

    Args:
        image: PIL, or uint8 [3, H, W] (fastest with channels last in memory).
        box: (left, top, right, bottom); pixels outside it have no influence.
        size: side of the result.

    Returns:
        uint8 [3, size, size], channels last in memory.
    """
    left, top, right, bottom = box
    if isinstance(image, Tensor):
        pixels = image[:, top:bottom, left:right].permute(1, 2, 0)
    else:
        pixels = torch.from_numpy(np.array(image.crop(box)))
    # PyTorch has a fast path for channels last, which it recognises in a batch of one by the strides alone.
    part = pixels.contiguous().unsqueeze(0).permute(0, 3, 1, 2)
    return interpolate(part, (size, size), mode="bilinear", antialias=True)[0]
