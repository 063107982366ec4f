"""A data source for photos as they lie on disk: a folder of any depth, an archive, a table, or a list of files.

Register name `image_files`. VISSL's own `disk_folder` wants one sub-folder a class and reads a broken file
as a grey square; this source wants nothing of the folder, and says which files it could not read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from pirl_plugin.data import archives, listing_cache
from pirl_plugin.data.class_folders import class_folders, classes_of, is_list
from pirl_plugin.data.file_lists import printable, read_list
from pirl_plugin.data.file_names import EXTENSIONS, is_hidden, is_image
from pirl_plugin.distributed import world_size
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.validation import ConfigError


def walk_images(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Paths of the image files below `folder`, known by their extension, in sorted order, hidden ones left out.

    The list of a large folder is kept, and walked anew only once a folder in it has changed.
    """
    top = os.fspath(folder)
    kept = listing_cache.read(top)
    if kept is not None:
        yield from (os.path.join(top, name) for name in kept)
        return
    visited, began = set(), time.time()
    names: list[str] = []
    times: dict[str, int] = {}
    for parent, folders, files in os.walk(top, onerror=_refuse_folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        real = os.path.realpath(parent)
        if real in visited:  # a link to a folder above, or to one already listed
            folders.clear()
            continue
        visited.add(real)
        below = os.path.relpath(parent, top) if parent != top else ""
        times[below] = listing_cache.changed(parent)
        for name in sorted(files):
            if is_image(name) and not is_hidden(name):
                names.append(os.path.join(below, name))
                yield os.path.join(parent, name)
    if len(names) >= listing_cache.MANY:
        listing_cache.write(top, names, times, began)


def _refuse_folder(error: OSError) -> None:
    raise ConfigError(f"The folder {error.filename} cannot be listed: {error.strerror}.") from error


def list_images(path: str | os.PathLike) -> list[str]:
    """All images of a data set, in an order that depends on their names only.

    Args:
        path: a folder (searched at any depth, hidden ones left out), a tar or zip, a folder of such without any other
            image (see pirl_plugin.data.archives), a table (see pirl_plugin.data.tables), a .txt file (one path a line,
            see pirl_plugin.data.file_lists) or a .npy array of paths. Relative paths of a list start at its folder.

    Raises:
        ConfigError: where there is no such path, or no image in it.
    """
    path = Path(path)
    if path.is_dir():
        files = list(walk_images(path))
        if files:
            _warn_of_archives(path, len(files))
        else:
            files = list(archives.images_in_archives(path)) or list(archives.members(path) or ())
        if not files:
            raise ConfigError(
                f"The folder {path} holds no image; it needs files ending in {', '.join(EXTENSIONS)} at any depth, "
                f"tar or zip archives of such, or Parquet files."
            )
    elif is_list(path):
        names = list(read_list(path)) if path.suffix == ".txt" else _names_in_array(path)
        files = [os.path.join(path.parent, name) for name in names]
        if not files:
            raise ConfigError(f"The file list {path} names no image; it needs one path a line.")
    else:
        in_archive = archives.members(path)
        if in_archive is None:
            raise ConfigError(
                f"There is no data at {path}; DATA_PATHS must name a folder or archive (tar, zip) of images, a Parquet "
                f"file, or a .txt or .npy list of them."
            )
        files = list(in_archive)
    return files


def _warn_of_archives(folder: Path, images: int) -> None:
    """Say which archives in a folder are not read, as after an unpacking that was interrupted."""
    with os.scandir(folder) as found:
        names = sorted(one.name for one in found if one.name.lower().endswith(archives.ENDINGS) and one.is_file())
    if names:
        logging.warning(
            f"{printable(str(folder))} has {images} images, which are used, and {len(names)} archives beside them "
            f"({printable(names[0])}{', ...' * (len(names) > 1)}), which are not: a folder's archives are read only "
            f"where it has no other image."
        )


def _names_in_array(path: Path) -> list[str]:
    try:
        names = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ConfigError(f"The file list {path} cannot be read as text: {error}") from error
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise ConfigError(
            f"The file list {path} is an array of {names.dtype} of shape {names.shape}; it needs a row of paths."
        )
    return [os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in names]


def files_identity(files: Sequence[str] | np.ndarray) -> str:
    """A hash of the names of files in their order, relative to the folder that all are in: the same on every machine.

    Args:
        files: paths, as str or bytes.
    """
    if not len(files):
        return hashlib.blake2b(digest_size=12).hexdigest()
    names = files if isinstance(files, np.ndarray) and files.dtype.kind == "S" else [os.fsencode(f) for f in files]
    array = np.asarray(names, dtype=np.bytes_)
    letters = np.ascontiguousarray(array).view(np.uint8).reshape(len(array), -1)
    differ = np.flatnonzero((letters != letters[0]).any(axis=0))
    common = bytes(letters[0, : differ[0] if len(differ) else letters.shape[1]])
    start = common.rfind(b"/") + 1
    return hashlib.blake2b(letters[:, start:].tobytes(), digest_size=12).hexdigest()


def check_list(path: str | os.PathLike[str], files: Sequence[str], count: int = 16) -> None:
    """Refuse a list of which no file is there: the first, the last and some between are tried.

    Raises:
        ConfigError: naming the first, and what would be right where that can be seen.
    """
    places = sorted({round(place) for place in np.linspace(0, len(files) - 1, count)})
    if any(archives.is_there(files[place]) for place in places):
        return
    first = files[0]
    without_label, _, label = first.rpartition(" ")
    hint = ""
    if os.path.isfile(without_label):
        hint = f"; its lines end in a label ({label!r}): give one path a line, without labels"
    elif (quoted := re.fullmatch(r"(.*?/)?'(.+)'", first)) and os.path.isfile(os.path.join(*quoted.groups(""))):
        hint = "; write paths without single quotes"
    raise ConfigError(
        f"The file list {printable(path)} names {len(files)} files, and none of the {len(places)} that were tried "
        f"is there, the first {printable(first)}{hint}. Relative paths start at the list's folder."
    )


def load_rgb(path: str | os.PathLike) -> Image.Image:
    """Decode a whole image as RGB: grey, palette, transparent (on white), CMYK and 16-bit files too.

    Raises:
        OSError and other errors of PIL: where the file cannot be read to its end.
    """
    whole = path if os.path.isfile(path) else io.BytesIO(archives.read_file(path))
    with Image.open(whole) as opened:
        opened.load()
        image: Image.Image = opened
        if image.mode.startswith(("I", "F")):  # 16-bit, 32-bit and float grey, which PIL would clip to 255
            levels = np.asarray(image, dtype=np.float64)
            if not np.isfinite(levels).all():
                raise ValueError("it has levels that are not numbers (NaN or infinite)")
            levels = levels - min(0.0, levels.min())  # of data around 0, the lowest level becomes black
            image = Image.fromarray((levels * (255 / (levels.max() or 1))).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            background = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(background, image)
        return image.convert("RGB")


def load_pixels(
    path: str | os.PathLike, largest_reduction: Callable[[int, int], float] = lambda width, height: 1.0
) -> Tensor:
    """`load_rgb` as a tensor uint8 [3, H, W], channels last in memory; usual JPEG files without going through PIL.

    Args:
        largest_reduction: (width, height) -> how many times smaller the image may be; a JPEG is then decoded to 1/2,
            1/4 or 1/8 of its size, which takes a fraction of the time.
    """
    data = archives.read_file(path)
    if data.startswith(b"\xff\xd8"):
        with contextlib.suppress(ValueError):  # whatever is wrong with it, PIL decides
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            bomb = Image.MAX_IMAGE_PIXELS is not None and width * height > 2 * Image.MAX_IMAGE_PIXELS
            if colours in ("YCbCr", "Gray") and not bomb:
                reduction = largest_reduction(width, height)
                factor = next((factor for factor in (8, 4, 2) if factor <= reduction), 1)
                smallest = {"min_height": -(-height // factor), "min_width": -(-width // factor)} if factor > 1 else {}
                return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB", **smallest)).permute(2, 0, 1)
    return torch.from_numpy(np.array(load_rgb(path))).permute(2, 0, 1)


class ImageFiles:
    """VISSL data source: item i is (RGB image, True), or (a grey image, False) where file i is unreadable.

    The image is `load_pixels` where a pretext transform comes first, else PIL, as VISSL's own transforms want.

    Args (VISSL's): cfg, data_source, path, split, dataset_name.

    Raises:
        ConfigError: where `path` holds no image.
    """

    def __init__(self, cfg, data_source: str, path: str, split: str, dataset_name: str) -> None:
        files = list_images(path)
        self.path = path
        # One array of bytes: a quarter of an array of str, and every loader worker gets a copy.
        self.files = np.array([os.fsencode(file) for file in files])
        logging.info(f"{split}: {len(self.files)} images in {path}")
        data = cfg["DATA"][split]
        transforms = data.get("TRANSFORMS")
        pretext = PRETEXT_TRANSFORMS.get(transforms[0]["name"]) if transforms else None
        self.pretext = None if pretext is None else pretext.from_config(transforms[0])
        if data["DROP_LAST"] and len(files) < data["BATCHSIZE_PER_REPLICA"] * world_size():
            raise ConfigError(
                f"{path} holds {len(files)} images, fewer than one batch of BATCHSIZE_PER_REPLICA "
                f"{data['BATCHSIZE_PER_REPLICA']} on {world_size()} rank(s): lower it or add images."
            )

    def __len__(self) -> int:
        return len(self.files)

    def num_samples(self) -> int:
        return len(self.files)

    def get_image_paths(self) -> list[str]:
        return [os.fsdecode(file) for file in self.files]

    def get_labels(self) -> list[int]:
        """Class numbers, by `classes_of`; LABEL_SOURCES: [torchvision_dataset] asks for them.

        Raises:
            ConfigError: where images lie outside any class folder, or all are of one class.
        """
        names = classes_of(self.get_image_paths(), self.path)
        folders = [] if is_list(self.path) else class_folders(self.path)  # an empty one has a number, too
        every = sorted({*names, *(folder.name for folder in folders)})
        numbers = {name: number for number, name in enumerate(every)}
        return [numbers[name] for name in names]

    def __getitem__(self, index: int) -> tuple[Image.Image | Tensor, bool]:
        path = os.fsdecode(self.files[index])
        try:
            if self.pretext is None:
                return load_rgb(path), True
            return load_pixels(path, self.pretext.largest_reduction), True
        except Exception as error:  # whatever a broken file makes PIL raise
            logging.warning(f"Unreadable image {printable(path)}: {type(error).__name__}: {error}")
            if self.pretext is None:
                return Image.new("RGB", (64, 64), (128, 128, 128)), False
            return torch.full((3, 64, 64), 128, dtype=torch.uint8), False
