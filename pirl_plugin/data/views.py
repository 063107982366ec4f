"""A PyTorch data set of an image's views, for your own training loop."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from pirl_plugin.data.file_lists import printable
from pirl_plugin.data.image_files import list_images, load_pixels
from pirl_plugin.pretext.base import PretextTransform


class ImageViews(Dataset[dict[str, Any]]):
    """Item i is the views of image i, as `pirl_collator` takes them.

    Args:
        images: a folder of any depth, a .txt or .npy list, or the paths themselves.
        transform: the pretext task.

    Attributes:
        files: the images' paths; an image's place in it is its row in the memory bank.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> from pirl_plugin import JigsawPatchTransform
        >>> from pirl_plugin.data.collator import pirl_collator
        >>> views = ImageViews("photos", JigsawPatchTransform(seed=0))
        >>> batch = next(iter(DataLoader(views, batch_size=4, collate_fn=pirl_collator)))
        >>> batch["images"][0].shape, batch["pretext"][0].shape, batch["image_index"]
        (torch.Size([4, 3, 224, 224]), torch.Size([36, 3, 64, 64]), [tensor([0, 1, 2, 3])])
    """

    def __init__(self, images: str | Path | Sequence[str], transform: PretextTransform) -> None:
        self.files = list_images(images) if isinstance(images, (str, Path)) else list(images)
        self.transform = transform
        # Shared: with persistent_workers, a loader's workers keep the transform that they began with.
        self._epoch = torch.full((), -1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Call before an epoch: with a seed, random choices depend on the seed, the epoch and the image."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`images` [3, S, S], `pretext` [V, 3, h, w], `data_idx` [i]; `data_valid` [1], or [-1] if unreadable."""
        try:
            image, valid = load_pixels(self.files[index], self.transform.largest_reduction), 1
        except Exception as error:  # whatever a broken file makes PIL raise
            logging.warning(f"Unreadable image {printable(self.files[index])}: {type(error).__name__}: {error}")
            image, valid = torch.full((3, 64, 64), 128, dtype=torch.uint8), -1
        if self._epoch >= 0:
            self.transform.epoch = int(self._epoch)
        return self.transform({"data": [image], "data_idx": [index], "data_valid": [valid]})
