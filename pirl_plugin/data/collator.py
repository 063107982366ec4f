"""Collates samples into a batch: only images that could be read, and their indices in the data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

IGNORED = -1  # index of an image that must not be trained on


def stack(views: list[Tensor]) -> Tensor:
    """Tensors [..., 3, h, w] -> [B, ..., 3, h, w] in the same memory format; in a worker, directly in shared memory."""
    if views[0].is_contiguous():
        return default_collate(views)
    return default_collate([view.movedim(-3, -1) for view in views]).movedim(-1, -3)


def pirl_collator(batch: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Stack the views of a batch.

    Samples whose image could not be read are left out. If none could be read, all stay (a distributed
    step needs some input), with the index IGNORED, which the loss and the bank ignore.

    Args:
        batch: B samples with `images` [3, S, S], with a pretext task also `pretext` [V, 3, h, w], `data_idx` [i],
            `data_valid` [1 or -1].

    Returns (each a list of one tensor, as VISSL wants):
        images [B', 3, S, S]; pretext [B' * V, 3, h, w], an image's views one after the other;
        photometric, if the training step augments: photometric.PARAMETERS [B', 1 + V];
        image_index int64 [B'], the image's place in the data set, whatever LABEL_SOURCES says, or IGNORED;
        data_idx int64 [B] and data_valid bool [B], of the whole batch, for counting: NumPy arrays, which VISSL does
        not send to the device.
    """
    data_index = torch.tensor([sample["data_idx"][0] for sample in batch])
    valid = torch.tensor([sample["data_valid"][0] == 1 for sample in batch])
    kept = [sample for sample, keep in zip(batch, valid.tolist(), strict=True) if keep] or batch
    image_index = data_index[valid] if bool(valid.any()) else torch.full_like(data_index, IGNORED)
    views: dict[str, list[Any]] = {"images": [stack([sample["images"] for sample in kept])]}
    if "pretext" in kept[0]:
        views["pretext"] = [stack([sample["pretext"] for sample in kept]).flatten(0, 1)]
    if "photometric" in kept[0]:
        views["photometric"] = [np.stack([sample["photometric"] for sample in kept])]
    return {
        **views,
        "image_index": [image_index],
        "data_idx": [data_index.numpy()],
        "data_valid": [valid.numpy()],
    }
