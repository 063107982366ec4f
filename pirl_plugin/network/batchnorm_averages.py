"""Recomputes BatchNorm's running averages on whole images only.

In training they blend images and patches, whose features differ; a network is evaluated and used on whole images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pirl_plugin.network.checkpoints import CONFIG_FILE, config_in, load_checkpoint, run_config, trunk_state
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.features import progress_line
from pirl_plugin.network.image_batches import OnUnreadable, view_batches
from pirl_plugin.network.preprocessing import preprocessing_of, usual_size
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.paths import written_whole
from pirl_plugin.validation import ConfigError, check_other_file

MOST_IMAGES = 10_000  # that commands take, if not told otherwise


def require_averages(trunk: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers of a trunk that have running averages.

    Raises:
        ConfigError: if it has none.
    """
    norms = [module for module in trunk.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        raise ConfigError("The trunk has no BatchNorm with running averages; there is nothing to recompute.")
    return norms


@torch.no_grad()
def recompute_averages(
    trunk: nn.Module,
    images: Sequence[Image.Image | str | Path],
    view: Callable[[Image.Image], Tensor],
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: OnUnreadable | None = None,
    compute: Compute | None = None,
) -> int:
    """Replace a trunk's running means and variances by those over `images`; weights stay.

    Images are taken in a fixed random order, so that each batch is a sample of all; batches have equal weight. The
    trunk is left in eval mode.

    Args:
        trunk, view, progress, on_unreadable, compute: as pirl_plugin.network.features.embed's.

    Returns:
        how many images were read.

    Raises:
        ConfigError: if the trunk has no running averages, or fewer than two images can be read.
    """
    norms = require_averages(trunk)
    compute = compute or Compute(next(trunk.parameters()).device)
    trunk.to(compute.device).eval()
    order = np.random.default_rng(0).permutation(len(images))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's cumulative average
        norm.train()
    read = 0
    try:
        chosen = [images[place] for place in order]
        for batch in view_batches(chosen, view, batch_size, progress, on_unreadable, compute.workers):
            batch = batch[batch.isfinite().flatten(1).all(1)]
            if len(batch) < max(2, batch_size // 2) <= read:
                continue  # the incomplete last batch, which would count as much as a full one
            read += len(batch)
            if len(batch):
                with compute.autocast():
                    trunk(batch.to(compute.device), ["flatten"])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    if read < 2:
        raise ConfigError(f"{read} of {len(images)} images could be read; averages need at least two.")
    return read


def recompute_checkpoint(
    source: str | os.PathLike[str],
    images: Sequence[str],
    output: str | os.PathLike[str],
    on_unreadable: OnUnreadable | None = None,
    compute: Compute | None = None,
) -> int:
    """Copy a run's checkpoint with averages recomputed over image files; returns how many were read.

    Args:
        output: written with the run's train_config.yaml beside it, so that it is read like the source.

    Raises:
        ConfigError: if the folder of `output` has the train_config.yaml of another run.
    """
    path = Path(source)
    check_other_file(output, source, "--output")
    config, checkpoint = run_config(path), load_checkpoint(path)
    beside = Path(output).absolute().parent / CONFIG_FILE
    if config_in(beside.parent) not in (None, config):
        raise ConfigError(f"{beside} is of another run than {source}; give an --output in another folder.")
    wanted = preprocessing_of(path, checkpoint, usual_size(config))
    trunk = build_trunk(config, checkpoint)
    read = recompute_averages(
        trunk, images, wanted.view(), progress=progress_line("averages"),
        on_unreadable=on_unreadable, compute=compute or Compute(choose_device()),
    )  # fmt: skip
    weights = {name: value.cpu() for name, value in trunk.state_dict().items()}
    trunk_state(checkpoint).update(weights)
    with written_whole(Path(output)) as file:
        torch.save(checkpoint, file)
    if not beside.is_file():
        shutil.copy(path.resolve().parent / CONFIG_FILE, beside)
    return read
