"""Turns a folder of images into a matrix of features, with a list of the files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from tqdm import tqdm

from pirl_plugin.data.file_lists import printable, write_list
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.image_batches import in_order, made_batches
from pirl_plugin.network.trunks import LAYERS
from pirl_plugin.network.weights import load_trunk
from pirl_plugin.validation import ConfigError, check_choice, check_integer, check_other_file


def embed_folder(
    checkpoint: str | Path,
    images: str | Path,
    output: str | Path,
    layer: str = "flatten",
    size: int | None = None,
    batch_size: int = 64,
    compute: Compute | None = None,
) -> tuple[int, list[str]]:
    """Write the features of all readable images and the list of their files.

    Args:
        checkpoint: any file that `pirl_plugin.network.weights.load_trunk` takes.
        images: a folder of any depth, or a .txt or .npy list.
        output: a .npy file, float32 [images, dimensions], written as it grows; the file names, one per line in the
            same order (pirl_plugin.data.file_lists), go to the same name with .txt.
        layer: one of LAYERS; maps are flattened.
        size: side of the centre crop, in pixels; default: the size that the network was trained on, or, if its file
            does not say, 224, or 32 for a trunk with a 3x3 stem.
        compute: where and how; default: the GPU if there is one, without workers.

    Returns:
        how many were written, and "file: why" for each that could not be read.

    Raises:
        ConfigError: for an invalid file name, layer, checkpoint or folder, or if no image can be read.
    """
    output = Path(output)
    if output.suffix != ".npy":
        raise ConfigError(f"--output is {output}; it must end in .npy.")
    for written in (output, output.with_suffix(".txt")):
        check_other_file(written, images, "--output" if written == output else "The list of files beside --output")
        check_other_file(written, checkpoint, "--output")
    check_choice(layer, LAYERS, "--layer")
    check_integer(batch_size, "--batch-size", 1)
    compute = compute or Compute(choose_device())
    trunk = load_trunk(checkpoint).to(compute.device)
    view = trunk.view(size)
    print(f"{checkpoint}: {trunk.architecture}, expects {trunk.preprocessing}" + (f"; size used: {size}" * bool(size)))
    files = list_images(images)
    batches = made_batches(
        lambda place: view(load_rgb(files[place])), in_order(len(files), batch_size), compute.workers
    )
    matrix: np.memmap | None = None
    kept: list[str] = []
    unreadable: list[str] = []
    progress = tqdm(total=len(files), unit=" images", desc=f"Embedding {images}")
    with torch.inference_mode():
        for places, views, failed in batches:
            unreadable += [f"{printable(files[place])}: {type(error).__name__}: {error}" for place, error in failed]
            progress.update(len(places) + len(failed))
            if not places:
                continue
            with compute.autocast():
                features = trunk(views.to(compute.device), layer).flatten(1).float().cpu().numpy()
            if matrix is None:
                matrix = open_memmap(output, mode="w+", dtype=np.float32, shape=(len(files), features.shape[1]))
            matrix[len(kept) : len(kept) + len(features)] = features
            kept += [files[place] for place in places]
    progress.close()
    if matrix is None:
        raise ConfigError(f"None of the {len(files)} images of {images} can be read; the first: {unreadable[0]}")
    matrix.flush()
    if unreadable:  # remove the rows reserved for them
        shorter = output.with_suffix(".shorter")
        with shorter.open("wb") as file:
            np.save(file, matrix[: len(kept)])
        del matrix
        shorter.replace(output)
    back = os.path.relpath(os.curdir, output.parent)  # a list's relative names count from its own folder
    write_list(output.with_suffix(".txt"), (name if back == os.curdir else os.path.join(back, name) for name in kept))
    return len(kept), unreadable
