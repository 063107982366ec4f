"""Figure 5: how well do the features of each layer serve a linear classifier?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from pirl_plugin.evaluation.measures import linear_probe
from pirl_plugin.network.devices import Compute
from pirl_plugin.network.image_batches import OnUnreadable, view_batches
from pirl_plugin.network.trunks import LAYERS, STAGES


def pooled(features: Tensor, most_dimensions: int) -> Tensor:
    """Maps [B, C, H, W], average-pooled to the largest s x s with C * s * s at most `most_dimensions`, and flattened.

    The paper pools each layer to about 9,000 dimensions.
    """
    side = max(1, min(features.shape[-1], int((most_dimensions / features.shape[1]) ** 0.5)))
    return adaptive_avg_pool2d(features, side).flatten(1)


@torch.inference_mode()
def embed_layers(
    trunk: nn.Module,
    images: Sequence[Image.Image | str | Path],
    view: Callable[[Image.Image], Tensor],
    layers: Sequence[str] = STAGES,
    most_dimensions: int = 2048,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: OnUnreadable | None = None,
    compute: Compute | None = None,
) -> dict[str, np.ndarray]:
    """Features float32 [N, D] of images or image files by layer, from one forward pass each.

    Args:
        trunk: a ResNetTrunk, or a trunk of VISSL, in eval mode.
        view: image -> float tensor [3, H, W].
        layers: any of conv1, res2 ... res5, or stage1, stage2 ... for timm's networks, pooled to at most
            `most_dimensions`; or res5avg, flatten.
        progress: called with (done, total) after every batch.
        on_unreadable: as for pirl_plugin.network.features.embed: the features of such a file are NaN.
        compute: as there.
    """
    if set(layers) <= set(LAYERS):
        layers = sorted(layers, key=LAYERS.index)  # VISSL returns them in this order, whatever the order of the request
    parts: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
    compute = compute or Compute(next(trunk.parameters()).device)
    trunk = trunk.to(compute.device)
    for batch in view_batches(images, view, batch_size, progress, on_unreadable, compute.workers):
        with compute.autocast():
            outputs = trunk(batch.to(compute.device), layers)
        for layer, features in zip(layers, outputs, strict=True):
            flat = pooled(features, most_dimensions) if features.dim() == 4 else features
            parts[layer].append(flat.float().cpu().numpy())
    return {layer: np.concatenate(part) for layer, part in parts.items()}


def layer_accuracies(
    train: dict[str, np.ndarray], train_labels: np.ndarray, test: dict[str, np.ndarray], test_labels: np.ndarray
) -> dict[str, float]:
    """Top-1 accuracy in [0, 1] of `linear_probe` on the features of each layer."""
    return {layer: linear_probe(train[layer], train_labels, test[layer], test_labels) for layer in train}
