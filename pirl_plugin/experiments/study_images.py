"""A study's images, as folders of links: to train on, to choose learning rates on, and a few to fine-tune on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pirl_plugin.data.class_folders import labelled_class_folders
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.data.unreadable import Unreadable
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.validation import ConfigError, check_integer

HELD_OUT = 5  # every fifth image of a class


def link(file: str | Path, target: Path) -> None:
    """Make `target` a link to an image file, unless it is there: other runs of the study make the same links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(Path(file).resolve())
    except FileExistsError:
        if target.readlink() != Path(file).resolve():
            raise ConfigError(
                f"{target} is {target.readlink()}, not {file}: give another --output for other images."
            ) from None


def name_below(folder: Path, file: str | Path) -> str:
    """A file's path below a folder, as one name."""
    below = os.path.relpath(file, folder)
    return below.replace("%", "%25").replace("/", "%2F") if "/" in below else below


def lay_out_images(source: str | Path, target: Path, limit: int | None = None) -> int:
    """Make links to the first images of each class of a folder that can be read, the same number per class.

    Returns:
        how many there are.

    Raises:
        ConfigError: if `target` has other images, the images are no files of their own (in an archive), or a class has
            none that can be read.
    """
    classes = labelled_class_folders(source)
    if limit is not None:
        check_integer(limit, "the number of images", len(classes))
    unreadable, count = Unreadable(), 0
    for folder in tqdm(classes, unit=" classes", desc=f"Reading {source}", leave=False, disable=None):
        files = list_images(folder)
        if not os.path.lexists(files[0]):
            raise ConfigError(
                f"{source} is not a folder of image files; a study needs one, with a sub-folder per class."
            )
        most, taken = len(files) if limit is None else limit // len(classes), 0
        for file in files:
            own = target / folder.name / name_below(folder, file)
            if taken < most and (own.is_symlink() or _can_be_read(file, unreadable)):
                link(file, own)
                taken += 1
        if not taken:
            raise ConfigError(
                f"None of the {len(files)} images of {folder} can be read; a study needs some of each class."
            )
        count += taken
    if unreadable:
        print(unreadable, flush=True)
    if (there := len(list_images(target))) != count:
        raise ConfigError(
            f"{target} has {there} images, not the requested {count}: give another --output, or the number "
            f"of images that the study was started with."
        )
    return count


def _can_be_read(file: str, unreadable: Unreadable) -> bool:
    try:
        load_rgb(file)
    except Exception as error:
        unreadable(file, error)
        return False
    return True


def split(source: Path, target: Path) -> tuple[Path, Path]:
    """Links to four fifths of each class, to train on, and to every fifth image, to choose by; returns both folders."""
    parts = target / "train", target / "validation"
    for folder in labelled_class_folders(source):
        for number, file in enumerate(list_images(folder)):
            link(file, parts[number % HELD_OUT == HELD_OUT - 1] / folder.name / Path(file).name)
    return parts


def some_labels(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Indices of a class-balanced random share of labelled images, at least one per class: int64 [n].

    Args:
        labels: integers [N].
        share: in (0, 1].
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = max(1, round(share * len(places)))
        chosen.append(generator.permutation(places)[:count])
    return np.sort(np.concatenate(chosen))


def lay_out_share(train: Path, target: Path, share: float, seed: int) -> int:
    """Make links to a share of each class of a folder, the same whenever and however often this is called.

    Returns:
        how many there are.
    """
    files, labels = labelled_images(train)
    classes = labelled_class_folders(train)
    chosen = some_labels(labels, share, seed)
    for place in chosen:
        link(files[place], target / classes[labels[place]].name / Path(files[place]).name)
    return len(chosen)
