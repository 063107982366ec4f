"""Keeps a small decoded data set on the device, for your own training loop: no loader, no decoding.

CIFAR-10's 50,000 photos take 154 MB; any images of one size that fit will do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.image_files import load_pixels
from pirl_plugin.pretext.base import sample_generator
from pirl_plugin.pretext.batch_views import draw_jigsaw_views, jigsaw_views
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform
from pirl_plugin.pretext.photometric import on_device
from pirl_plugin.validation import ConfigError


def read_images(files: Sequence[str]) -> Tensor:
    """Read images of one size: uint8 [N, 3, H, W].

    Raises:
        ConfigError: for an image that cannot be read, or whose size differs from the first's.
    """
    images: Tensor | None = None
    for number, file in enumerate(files):
        try:
            pixels = load_pixels(file)
        except Exception as error:  # whatever a broken file makes the decoders raise
            raise ConfigError(f"{printable(file)} cannot be read: {type(error).__name__}: {error}") from error
        if images is None:
            images = torch.empty(len(files), *pixels.shape, dtype=torch.uint8)
        if pixels.shape != images.shape[1:]:
            (_, height, width), (_, first_height, first_width) = pixels.shape, images.shape[1:]
            raise ConfigError(
                f"{printable(file)} has {width} x {height} pixels and the first image {first_width} x {first_height}; "
                f"images in memory must be of one size."
            )
        images[number] = pixels
    if images is None:
        raise ConfigError("There is no image to read.")
    return images


class ImagesInMemory:
    """The jigsaw's views of images that are stored on a device.

    Args:
        images: uint8 [N, 3, H, W]; views are made on its device.
        transform: with augment_on `device`.
        seed: the order of an epoch and its random augmentations depend only on (seed, epoch).

    Example:
        >>> transform = JigsawPatchTransform(augment_on="device", normalize_on="device")
        >>> images = torch.randint(0, 256, (64, 3, 96, 96), dtype=torch.uint8)  # .cuda() with a GPU
        >>> batches = ImagesInMemory(images, transform).batches(epoch=0, batch_size=16)
        >>> [tuple(values.shape) for values in next(batches)]
        [(16, 3, 224, 224), (144, 3, 64, 64), (16,)]
    """

    def __init__(self, images: Tensor, transform: JigsawPatchTransform, seed: int = 0) -> None:
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise ConfigError(f"Images are {images.dtype} {list(images.shape)}; they must be uint8 [N, 3, H, W].")
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The full batches of an epoch, from batch `start` on, in random order; the incomplete last one is dropped.

        Yields:
            images float32 [B, 3, S, S], patches [B * n, 3, P, P], and the images' places int64 [B].
        """
        height, width = self.images.shape[-2:]
        order = torch.randperm(len(self), generator=sample_generator(self.seed, epoch, -1))
        for number in range(start, len(self) // batch_size):
            mine = on_device(order[number * batch_size : (number + 1) * batch_size], self.images.device)
            generator = sample_generator(self.seed, epoch, number)
            drawn = draw_jigsaw_views(self.transform, batch_size, width, height, generator)
            views = jigsaw_views(self.transform, self.images[mine], drawn)
            yield views["images"], views["pretext"], mine
