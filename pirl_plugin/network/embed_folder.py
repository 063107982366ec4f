"""A folder of images to a matrix of features, with the list of files that belongs to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pirl_plugin.data.file_lists import printable, write_list
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.network.devices import choose_device
from pirl_plugin.network.trunks import LAYERS
from pirl_plugin.network.weights import load_trunk
from pirl_plugin.validation import ConfigError, check_choice, check_integer


class _Views(Dataset):
    """(view, "") of each file, or (zeros, why) where it cannot be read."""

    def __init__(self, files: list[str], view: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.view = files, view

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        try:
            return self.view(load_rgb(self.files[index])), ""
        except Exception as error:  # whatever a broken file makes PIL raise
            return torch.zeros_like(self.view(Image.new("RGB", (8, 8)))), f"{type(error).__name__}: {error}"


def embed_folder(
    checkpoint: str | Path,
    images: str | Path,
    output: str | Path,
    layer: str = "flatten",
    size: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
) -> tuple[int, list[str]]:
    """Write the features of all readable images and the list of their files.

    Args:
        checkpoint: any file that `pirl_plugin.network.weights.load_trunk` takes.
        images: a folder of any depth, or a .txt or .npy list.
        output: a .npy file, float32 [images, dimensions], written as it grows; the files, one a line in the same order
            (pirl_plugin.data.file_lists), go to the same name with .txt.
        layer: one of LAYERS; maps are flattened.
        size: side of the centre crop, in pixels; default: what the network was trained on, and where its file does not
            say, 224, or 32 for a trunk with a 3x3 stem.
        workers: processes that decode images.
        device: as PyTorch names it; default: the GPU where there is one.

    Returns:
        how many were written, and "file: why" for each that could not be read.

    Raises:
        ConfigError: for a file name, layer, checkpoint or folder that cannot be right, or where no image can be read.
    """
    output = Path(output)
    if output.suffix != ".npy":
        raise ConfigError(f"--output is {output}; it must end in .npy.")
    check_choice(layer, LAYERS, "--layer")
    where = choose_device(device)
    trunk = load_trunk(checkpoint).to(where)
    if size is not None:
        check_integer(size, "--size", 8)
    print(f"{checkpoint}: {trunk.architecture}, which wants {trunk.preprocessing}" + (f"; taken: {size}" * bool(size)))
    files = list_images(images)
    loader = DataLoader(_Views(files, trunk.view(size)), batch_size=batch_size, num_workers=workers)
    matrix: np.memmap | None = None
    kept: list[str] = []
    unreadable: list[str] = []
    progress = tqdm(total=len(files), unit=" images", desc=f"Embedding {images}")
    with torch.inference_mode():
        for number, (views, reasons) in enumerate(loader):
            start = number * batch_size
            readable = torch.tensor([not reason for reason in reasons])
            unreadable += [f"{printable(files[start + n])}: {reason}" for n, reason in enumerate(reasons) if reason]
            progress.update(len(reasons))
            if not readable.any():
                continue
            features = trunk(views[readable].to(where), layer).flatten(1).float().cpu().numpy()
            if matrix is None:
                matrix = open_memmap(output, mode="w+", dtype=np.float32, shape=(len(files), features.shape[1]))
            matrix[len(kept) : len(kept) + len(features)] = features
            kept += [files[start + int(n)] for n in readable.nonzero()]
    progress.close()
    if matrix is None:
        raise ConfigError(f"None of the {len(files)} images of {images} can be read; the first: {unreadable[0]}")
    matrix.flush()
    if unreadable:  # the rows that were kept for them
        shorter = output.with_suffix(".shorter")
        with shorter.open("wb") as file:
            np.save(file, matrix[: len(kept)])
        del matrix
        shorter.replace(output)
    write_list(output.with_suffix(".txt"), kept)
    return len(kept), unreadable
