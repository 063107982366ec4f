"""From images to features, without the trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from pirl_plugin.data.image_files import load_rgb
from pirl_plugin.pretext.base import IMAGENET_MEAN, IMAGENET_STD, PretextTransform


def progress_line(name: str) -> Callable[[int, int], None]:
    """A callback (done, total) for `embed` and its like: a line with how far, how fast and how long still."""
    bar: tqdm | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(desc=name, unit=" images", total=total, mininterval=1.0)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def resized_side(size: int) -> int:
    """The shorter side of an image before its centre crop of `size`, in pixels.

    Above 64, size * 256 / 224; up to 64, `size`, so that small images are seen whole.
    """
    return round(size * 256 / 224) if size > 64 else size


def center_view(size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD):
    """PIL image -> float32 [3, size, size]: the usual view for measuring, resized to `resized_side` and cropped."""
    return v2.Compose(
        [
            v2.Resize(resized_side(size), antialias=True),
            v2.CenterCrop(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )


def center_view_of(task: PretextTransform):
    """`center_view` with the size and the normalisation of a pretext task's plain view."""
    return center_view(task.image_crop_size, task.mean.flatten().tolist(), task.std.flatten().tolist())


@torch.inference_mode()
def embed(
    trunk: nn.Module,
    images: Sequence[Image.Image | str | Path],
    view: Callable[[Image.Image], Tensor],
    layer: str = "flatten",
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: Callable[[Any, Exception], None] | None = None,
) -> np.ndarray:
    """Features float32 [N, D] of images or image files, in their order.

    Args:
        trunk: (images, [layer]) -> [features], in eval mode on any device: a ResNetTrunk, or a trunk of VISSL.
        view: image -> float tensor [3, H, W], the same size for all.
        layer: which features (conv1, res2 ... res5, flatten); maps are flattened.
        progress: called with (done, total) after every batch.
        on_unreadable: called with a file that cannot be read and why; its features are NaN. None: the error is raised.
    """
    features, batches = [], view_batches(images, view, batch_size, progress, on_unreadable)
    device = next(trunk.parameters()).device
    for batch in batches:
        (output,) = trunk(batch.to(device), [layer])
        features.append(output.flatten(1).float().cpu().numpy())
    return np.concatenate(features)


@contextlib.contextmanager
def unreadable_goes_to(report: Callable[[Any, Exception], None] | None, file: str | Path) -> Iterator[None]:
    """What reading a file raises is reported and goes no further; with None it does."""
    try:
        yield
    except Exception as error:  # whatever a broken file makes PIL raise
        if report is None:
            raise
        report(file, error)


def view_batches(
    images: Sequence[Image.Image | str | Path],
    view: Callable[[Image.Image], Tensor],
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: Callable[[Any, Exception], None] | None = None,
) -> Iterator[Tensor]:
    """The views of images or image files, in batches float [b, 3, H, W]; the arguments are those of `embed`.

    That of a file that cannot be read is NaN, which a network in eval mode keeps to itself.
    """

    def view_of(image: Image.Image | str | Path) -> Tensor | None:
        if isinstance(image, Image.Image):
            return view(image)
        with unreadable_goes_to(on_unreadable, image):
            return view(load_rgb(image))
        return None

    blank = view(Image.new("RGB", (8, 8))).fill_(torch.nan)
    for start in range(0, len(images), batch_size):
        views = [view_of(image) for image in images[start : start + batch_size]]
        yield torch.stack([blank if one is None else one for one in views])
        if progress is not None:
            progress(min(start + batch_size, len(images)), len(images))
