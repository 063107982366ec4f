"""Small images for the demo: tiles of photos from installed packages, or copies of the user's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.validation import ConfigError

# Photographs (not drawings or text) shipped inside scikit-image and scikit-learn.
SCIKIT_IMAGE_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SCIKIT_LEARN_PHOTOS = ("china.jpg", "flower.jpg")

TRAIN_SHARE, HELD_OUT_SHARE = 0.65, 0.30  # of each photo's width; neither uses the strip between them
SHORTER_SIDE = 64  # pixels, of the copies of the user's photos


@dataclass(frozen=True)
class DemoData:
    """The demo's images and their labels.

    Attributes:
        train_folder: folder of the training images.
        train_files, test_files: paths.
        train_labels, test_labels: int64 class numbers, or None if there are no classes.
        class_names: one per class.
        unreadable: the user's files that could not be read.
    """

    train_folder: Path
    train_files: list[Path]
    test_files: list[Path]
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    class_names: list[str]
    unreadable: list[str]


def bundled_photos() -> dict[str, Image.Image]:
    """The photos by name.

    Raises:
        ConfigError: if scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise ConfigError(
            "The demo's photos come with scikit-image, which is not installed; install it with: "
            "pip install scikit-image (or give your own photos with --data)"
        ) from error
    import sklearn.datasets

    folders = (
        (Path(skimage.data.__file__).parent, SCIKIT_IMAGE_PHOTOS),
        (Path(sklearn.datasets.__file__).parent / "images", SCIKIT_LEARN_PHOTOS),
    )
    paths = [folder / name for folder, names in folders for name in names if (folder / name).is_file()]
    return {path.stem: load_rgb(path) for path in paths}


def cut_tiles(photo: Image.Image, count: int, left: float, right: float, seed: int) -> list[Image.Image]:
    """`count` random square tiles, 48 to 96 pixels wide, from the strip [left, right) of a photo's width.

    Each tile is resized to 40 x 40 pixels.
    """
    rng = np.random.default_rng(seed)
    first, last = round(photo.width * left), round(photo.width * right)
    tiles = []
    for _ in range(count):
        side = min(int(rng.integers(48, 97)), last - first, photo.height)
        x = first + int(rng.integers(last - first - side + 1))
        y = int(rng.integers(photo.height - side + 1))
        tile = photo.crop((x, y, x + side, y + side))
        tiles.append(tile.resize((40, 40), Image.Resampling.BICUBIC))
    return tiles


def make_bundled_data(folder: Path, num_train: int, num_test: int, seed: int = 0) -> DemoData:
    """Write tiles of the bundled photos; a tile's class is its photo, and train and test regions are disjoint."""
    photos = bundled_photos()
    names = sorted(photos)
    files: dict[str, list[Path]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    strips = {"train": (0.0, TRAIN_SHARE, num_train), "test": (1 - HELD_OUT_SHARE, 1.0, num_test)}
    for split, (left, right, total) in strips.items():
        for label, name in enumerate(names):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            tiles = cut_tiles(photos[name], total // len(names), left, right, seed + label)
            for number, tile in enumerate(tiles):
                path = target / f"{number:04d}.png"
                tile.save(path)
                files[split].append(path)
                labels[split].append(label)
    return DemoData(
        folder / "train",
        files["train"],
        files["test"],
        np.array(labels["train"]),
        np.array(labels["test"]),
        names,
        [],
    )


def make_own_data(
    source: Path,
    folder: Path,
    num_train: int,
    num_test: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> DemoData:
    """Write small copies of a random choice of the user's photos, with a fifth of them (at most num_test) held out.

    The class of a photo is its sub-folder of `source`, if all photos are in sub-folders and there are at least
    two; else there are no classes.

    Raises:
        ConfigError: with fewer than 64 readable photos.
    """
    if not source.is_dir():
        raise ConfigError(f"--data is {str(source)!r}; there is no such folder.")
    paths = list_images(source)
    order = np.random.default_rng(seed).permutation(len(paths))
    relative = [Path(os.path.relpath(path, source)) for path in paths]
    names = sorted({path.parts[0] for path in relative})
    classes = names if all(len(path.parts) > 1 for path in relative) and len(names) > 1 else []
    chosen = order[: num_train + num_test]
    held_out = min(num_test, len(chosen) // 5)
    files: dict[str, list[Path]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    unreadable = []
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
    for number, index in enumerate(chosen):
        split = "test" if number < held_out else "train"
        try:
            image = load_rgb(paths[index])
        except Exception as error:  # whatever a broken file makes PIL raise
            unreadable.append(f"{paths[index]} ({type(error).__name__}: {error})")
            continue
        scale = SHORTER_SIDE / min(image.size)
        if scale < 1:
            image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
        path = folder / split / f"{number:06d}.png"
        image.save(path)
        files[split].append(path)
        if classes:
            labels[split].append(classes.index(relative[index].parts[0]))
        if progress is not None:
            progress(number + 1, len(chosen))
    if len(files["train"]) < 64 or not files["test"]:
        raise ConfigError(
            f"{source} holds {len(files['train']) + len(files['test'])} readable photos of {len(paths)} files; "
            f"the demo needs at least 80."
        )
    return DemoData(
        folder / "train",
        files["train"],
        files["test"],
        np.array(labels["train"]) if classes else None,
        np.array(labels["test"]) if classes else None,
        classes,
        unreadable,
    )
