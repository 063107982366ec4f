"""Turns a folder of images into a matrix of features, with a list of the files."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import torch
from tqdm import tqdm

from pirl_plugin.data.file_lists import printable, write_list
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.image_batches import in_order, made_batches
from pirl_plugin.network.weights import load_trunk
from pirl_plugin.paths import written_whole
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
        output: a .npy file, float32 [images, dimensions], which gets its name once it is complete; the file names, one
            per line in the same order (pirl_plugin.data.file_lists), go to the same name with .txt.
        layer: one of the network's `layers`; maps are flattened.
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
    names = output.with_suffix(".txt")
    for written in (output, names):
        check_other_file(written, images, "--output" if written == output else "The list of files beside --output")
        check_other_file(written, checkpoint, "--output")
    check_integer(batch_size, "--batch-size", 1)
    compute = compute or Compute(choose_device())
    trunk = load_trunk(checkpoint).to(compute.device)
    check_choice(layer, trunk.layers, "--layer")
    view = trunk.view(size)
    print(f"{checkpoint}: {trunk.architecture}, expects {trunk.preprocessing}" + (f"; size used: {size}" * bool(size)))
    files = list_images(images)
    batches = made_batches(
        lambda place: view(load_rgb(files[place])), in_order(len(files), batch_size), compute.workers
    )
    progress = tqdm(total=len(files), unit=" images", desc=f"Embedding {images}")
    kept: list[str] = []
    unreadable: list[str] = []
    with written_whole(output) as file, torch.inference_mode():
        dimensions = 0
        file.write(_header(len(files), dimensions))  # written again at the end
        for places, views, failed in batches:
            unreadable += [f"{printable(files[place])}: {type(error).__name__}: {error}" for place, error in failed]
            progress.update(len(places) + len(failed))
            if places:
                with compute.autocast():
                    features = trunk(views.to(compute.device), layer).flatten(1).float().cpu().numpy()
                dimensions = features.shape[1]
                file.write(features.astype("<f4", copy=False).tobytes())
                kept += [files[place] for place in places]
        progress.close()
        if not kept:
            raise ConfigError(f"None of the {len(files)} images of {images} can be read; the first: {unreadable[0]}")
        file.seek(0)
        file.write(_header(len(kept), dimensions))
        names.unlink(missing_ok=True)  # of what is replaced now
    here, folder = os.path.realpath(os.curdir), os.path.realpath(output.parent)
    back = os.path.relpath(here, folder)  # a list's relative names count from its own folder
    write_list(names, (name if back == os.curdir else os.path.join(back, name) for name in kept))
    return len(kept), unreadable


def _header(rows: int, columns: int) -> bytes:
    """The header of a .npy file of float32 [rows, columns], of the same length for all: NumPy's may need another."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + text.ljust(117).encode() + b"\n"
