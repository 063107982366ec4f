"""The jigsaw's views of a whole batch at once, on any device, for images of one size that are already there.

A loader's workers cut one image at a time, a few hundred per second and core; a small data set that fits in GPU
memory is cut there, tens of thousands per second. Slow references, which tests compare with: `crops.draw_crop_box`
(distribution), `crops.resized_crop` (to a level) and `jigsaw.cut_patches` (bit by bit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pirl_plugin.pretext import photometric
from pirl_plugin.pretext.crops import ASPECT_RATIO
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.pretext.permutations import permutation_set
from pirl_plugin.pretext.photometric import on_device
from pirl_plugin.validation import ConfigError

TRIES = 10  # as draw_crop_box


def draw_crop_boxes(
    count: int, width: int, height: int, scale: tuple[float, float], generator: torch.Generator | None = None
) -> np.ndarray:
    """Boxes of `count` images of one size, each distributed as draw_crop_box's.

    Returns:
        int64 [count, 4]: left, top, right, bottom, in whole pixels inside the image.
    """
    uniform = torch.rand(count, TRIES, 4, generator=generator, dtype=torch.float64).numpy()
    areas = width * height * (scale[0] + (scale[1] - scale[0]) * uniform[..., 0])
    low, high = math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1])
    aspects = np.exp(low + (high - low) * uniform[..., 1])
    widths, heights = np.sqrt(areas * aspects).round(), np.sqrt(areas / aspects).round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(1)
    drawn = np.arange(count), first
    # If none fits: the largest central box with an allowed ratio.
    aspect = min(max(width / height, ASPECT_RATIO[0]), ASPECT_RATIO[1])
    fallback = min(width, round(height * aspect)), min(height, round(width / aspect))
    own_widths = np.where(fits.any(1), widths[drawn], fallback[0])
    own_heights = np.where(fits.any(1), heights[drawn], fallback[1])
    left = np.where(fits.any(1), np.floor((width - own_widths + 1) * uniform[drawn][:, 2]), (width - own_widths) // 2)
    top = np.where(
        fits.any(1), np.floor((height - own_heights + 1) * uniform[drawn][:, 3]), (height - own_heights) // 2
    )
    return np.stack([left, top, left + own_widths, top + own_heights], axis=1).astype(np.int64)


def resize_matrices(starts: Tensor, lengths: Tensor, size: int, new_size: int) -> Tensor:
    """Matrices that resize parts of lines (bilinear, antialiased): float32 [B, new_size, size].

    Args:
        starts, lengths: start and length of each line's part, in pixels [B]; pixels outside have weight 0.
        size: length of the lines.
        new_size: length of the results.
    """
    starts, lengths = starts.float().view(-1, 1, 1), lengths.float().view(-1, 1, 1)
    step = lengths / new_size
    reach = step.clamp(min=1)  # a reduction reads more than two pixels
    pixels = torch.arange(size, device=starts.device).view(1, 1, -1) + 0.5
    centres = starts + (torch.arange(new_size, device=starts.device).view(1, -1, 1) + 0.5) * step
    weights = (1 - (pixels - centres).abs() / reach).clamp_(min=0)
    weights = weights.masked_fill((pixels < starts) | (pixels > starts + lengths), 0)
    return weights / weights.sum(2, keepdim=True)


def resized_crops(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """The parts of images inside their boxes, resized: equal to crops.resized_crop of each to within a level.

    Args:
        images: uint8 [B, 3, H, W].
        boxes: integers [B, 4], on the same device.
        size: side of the results.

    Returns:
        uint8 [B, 3, size, size].
    """
    left, top, right, bottom = boxes.unbind(1)
    columns = resize_matrices(left, right - left, images.shape[-1], size).unsqueeze(1)
    rows = resize_matrices(top, bottom - top, images.shape[-2], size).unsqueeze(1)
    return (rows @ (images.float() @ columns.mT)).round_().clamp_(0, 255).to(torch.uint8)


def cut_patches_of_batch(canvases: Tensor, grid_size: int, patch_size: int, offsets: Tensor, order: Tensor) -> Tensor:
    """jigsaw.cut_patches of each canvas, each in its own order.

    Args:
        canvases: [B, C, S, S] with S divisible by grid_size.
        offsets: int64 [B, n, 2], (down, right) of each cell's patch in its cell.
        order: int64 [B, n], the cell that comes at each place.

    Returns:
        [B * n, C, P, P], an image's patches one after the other.
    """
    cell = canvases.shape[-1] // grid_size
    offsets = offsets.gather(1, order.unsqueeze(2).expand(-1, -1, 2))
    within = torch.arange(patch_size, device=canvases.device)
    rows = (torch.div(order, grid_size, rounding_mode="floor") * cell + offsets[..., 0]).unsqueeze(2) + within
    columns = (order % grid_size * cell + offsets[..., 1]).unsqueeze(2) + within
    image = torch.arange(len(canvases), device=canvases.device).view(-1, 1, 1, 1)
    patches = canvases.permute(0, 2, 3, 1)[image, rows.unsqueeze(3), columns.unsqueeze(2)]
    return patches.flatten(0, 1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class DrawnViews:
    """The random choices for each of B images, drawn on the CPU.

    Attributes:
        image_boxes, canvas_boxes: int64 [B, 4].
        offsets, order: int64 [B, n, 2] and [B, n], see cut_patches_of_batch.
        parameters: photometric.PARAMETERS [B, 1 + n].
    """

    image_boxes: np.ndarray
    canvas_boxes: np.ndarray
    offsets: np.ndarray
    order: np.ndarray
    parameters: np.ndarray


def draw_jigsaw_views(
    transform: JigsawPatchTransform, count: int, width: int, height: int, generator: torch.Generator | None = None
) -> DrawnViews:
    """Draw the random choices of JigsawPatchTransform for `count` images of one size."""
    places = transform.num_views
    jitter = transform.patch_crop_size // transform.grid_size - transform.patch_size
    permutations = permutation_set(places, transform.num_permutations, transform.permutation_seed)
    chosen = torch.randint(len(permutations), (count,), generator=generator).numpy()
    return DrawnViews(
        draw_crop_boxes(count, width, height, transform.image_crop_scale, generator),
        draw_crop_boxes(count, width, height, transform.patch_crop_scale, generator),
        torch.randint(jitter + 1, (count, places, 2), generator=generator).numpy(),
        permutations[chosen].astype(np.int64),
        photometric.draw(count * (1 + places), transform.photometric, generator).reshape(count, 1 + places),
    )


def jigsaw_views(transform: JigsawPatchTransform, images: Tensor, drawn: DrawnViews) -> dict[str, Tensor]:
    """The augmented, normalised views of a batch, without waiting for the device.

    Args:
        transform: with augment_on `device`.
        images: uint8 [B, 3, H, W] on any device.
        drawn: the random choices for each.

    Returns:
        `images` float32 [B, 3, S, S] and `pretext` [B * n, 3, P, P], an image's patches one after the other.

    Raises:
        ConfigError: for a transform that augments in workers, or that changes the canvas before it is cut.
    """
    if transform.augment_on != "device":
        raise ConfigError(f"{transform.name}.augment_on is 'workers'; a batch on the device needs 'device'.")
    if type(transform).transform_canvas is not JigsawPatchTransform.transform_canvas:
        raise ConfigError(f"{transform.name} has no form for a whole batch; use jigsaw_patch_transform.")

    def sent(values: np.ndarray) -> Tensor:
        return on_device(torch.from_numpy(values), images.device)

    canvases = resized_crops(images, sent(drawn.canvas_boxes), transform.patch_crop_size)
    views = {
        "images": resized_crops(images, sent(drawn.image_boxes), transform.image_crop_size),
        "pretext": cut_patches_of_batch(
            canvases, transform.grid_size, transform.patch_size, sent(drawn.offsets), sent(drawn.order)
        ),
    }
    return transform.finish(views, drawn.parameters)
