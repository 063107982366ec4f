"""Computes features of images, without the trainer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from pirl_plugin.network.devices import Compute
from pirl_plugin.network.image_batches import OnUnreadable, view_batches
from pirl_plugin.pretext.base import IMAGENET_MEAN, IMAGENET_STD, PretextTransform
from pirl_plugin.validation import ConfigError

LONGEST = 16  # times the shorter side, of an image that is resized whole


def progress_line(name: str) -> Callable[[int, int], None]:
    """A callback (done, total) for `embed` and similar functions: a progress bar with speed and time left."""
    bar: tqdm | None = None
    started = time.time()

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc=name, unit=" images", total=total, mininterval=1.0)
            bar.start_t = bar.last_print_t = started  # the first batch took time as well
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def resized_side(size: int) -> int:
    """The shorter side of an image before its centre crop of `size`, in pixels.

    Above 64, size * 256 / 224; up to 64, `size`, so that small images are not cropped.
    """
    return round(size * 256 / 224) if size > 64 else size


def center_view(size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
    """PIL image -> float32 [3, size, size]: the usual view for evaluation, resized to `resized_side` and cropped."""
    return v2.Compose(
        [
            _without_far_ends,
            v2.Resize(resized_side(size), antialias=True),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of an image that is very long, for its size: resized by the shorter side, it would take gigabytes."""
    short, long = sorted(image.size)
    if long <= LONGEST * short:
        return image
    start = (long - 4 * short) // 2
    wide = image.width == long
    return image.crop((start, 0, long - start, short) if wide else (0, start, short, long - start))


def center_view_of(task: PretextTransform):
    """`center_view` with the size and the normalisation of a pretext task's plain view."""
    return center_view(task.image_crop_size, task.mean.flatten().tolist(), task.std.flatten().tolist())


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A network in eval mode, and then each module in its own mode again."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.inference_mode()
def embed(
    trunk: nn.Module,
    images: Sequence[Image.Image | str | Path],
    view: Callable[[Image.Image], Tensor],
    layer: str = "flatten",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: OnUnreadable | None = None,
    compute: Compute | None = None,
) -> np.ndarray:
    """Features float32 [N, D] of images or image files, in their order.

    Args:
        trunk: (images, [layer]) -> [features], on any device: a ResNetTrunk, or a trunk of VISSL. It computes in eval
            mode, and has its own again afterwards.
        view: image -> float tensor [3, H, W], the same size for all.
        layer: which features (conv1, res2 ... res5, flatten); maps are flattened.
        progress: called with (done, total) after every batch.
        on_unreadable: called with a file that cannot be read and why; its features are NaN. None: the error is raised.
        compute: where and how; the trunk is moved there. None: where the trunk is, in its own dtype, without workers.

    Raises:
        ConfigError: if there are no images.

    Example:
        >>> from pirl_plugin import ResNetTrunk
        >>> from pirl_plugin.data.image_files import list_images
        >>> embed(ResNetTrunk(18), list_images("photos"), center_view(32)).shape
        (48, 512)
    """
    compute = compute or Compute(next(trunk.parameters()).device)
    features, trunk = [], trunk.to(compute.device)
    if not len(images):
        raise ConfigError("There are no images to embed; give at least one.")
    with evaluating(trunk):
        for batch in view_batches(images, view, batch_size, progress, on_unreadable, compute.workers):
            with compute.autocast():
                (output,) = trunk(batch.to(compute.device), [layer])
            features.append(output.flatten(1).float().cpu().numpy())
    return np.concatenate(features)
