"""A random sample of a very large photo collection, independent of where and in which order it is listed."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from pirl_plugin.data.class_folders import labelled_class_folders
from pirl_plugin.data.file_lists import read_list
from pirl_plugin.data.image_files import walk_images
from pirl_plugin.validation import ConfigError, check_integer, check_number


def _names(source: Path) -> Iterator[str]:
    """Yield the paths of the images of a folder (relative to it) or of a .txt list (as written there)."""
    if source.is_dir():
        for path in walk_images(source):
            yield os.path.relpath(path, source)
    elif source.is_file() and source.suffix == ".txt":
        yield from read_list(source)
    else:
        raise ConfigError(f"There are no images at {source}; give a folder, or a .txt file with one path per line.")


def sample_images(source: str | os.PathLike, count: int, seed: int = 0, progress: bool = True) -> list[str]:
    """`count` different images of a folder or list, all equally likely.

    The images whose names have the smallest keyed hashes (BLAKE2b) are taken: the choice depends only on the names and
    the seed, and a smaller sample is part of a larger one. Memory grows with `count`, not with the collection.

    Args:
        source: a folder of any depth, or a .txt file with one path per line (relative ones start at the list's folder).
        count: at least 1.
        seed: a different seed gives a different sample.
        progress: show how many names were read.

    Returns:
        absolute paths, sorted.

    Raises:
        ConfigError: if the source has no image or fewer than `count` different ones.
    """
    source = Path(source)
    check_integer(count, "count", 1)
    key = check_integer(seed, "seed", 0, 2**63).to_bytes(8, "little")
    kept: list[tuple[int, str]] = []  # a heap with the largest hash, negated, on top
    seen: set[str] = set()
    for name in tqdm(_names(source), desc=f"Reading names of {source}", unit=" images", disable=not progress):
        value = -int.from_bytes(hashlib.blake2b(os.fsencode(name), key=key, digest_size=16).digest(), "little")
        if name in seen or (len(kept) == count and value < kept[0][0]):
            continue
        seen.add(name)
        if len(kept) < count:
            heapq.heappush(kept, (value, name))
        else:
            _, dropped = heapq.heapreplace(kept, (value, name))
            seen.discard(dropped)
    if len(kept) < count:
        raise ConfigError(f"{source} has {len(kept)} different images, fewer than the {count} asked for.")
    folder = source if source.is_dir() else source.parent
    return sorted(os.path.abspath(os.path.join(folder, name)) for _, name in kept)


def class_balanced_subset(folder: str | os.PathLike, percent: float, seed: int = 0) -> tuple[list[str], list[int]]:
    """The same number of images per class, in total about `percent` of all (1% of ImageNet: 13 per class).

    Args:
        folder: one sub-folder per class.
        percent: in (0, 100].
        seed: a different seed gives a different choice; with the same seed, a smaller choice is part of a larger one.

    Returns:
        absolute paths, and the classes' numbers in the order of their names.

    Raises:
        ConfigError: if there are no classes, or one is too small.
    """
    check_number(percent, "--percent", 1e-6, 100)
    if not os.path.isdir(folder):
        raise ConfigError(f"{folder} is not a folder; give one with a sub-folder per class (unpack an archive).")
    classes = labelled_class_folders(folder)
    counts = {path: sum(1 for _ in walk_images(path)) for path in tqdm(classes, desc=f"Counting {folder}")}
    each = max(1, round(sum(counts.values()) * percent / 100 / len(classes)))
    smallest = min(classes, key=lambda path: counts[path])
    if counts[smallest] < each:
        raise ConfigError(
            f"The class {smallest.name} has {counts[smallest]} images, fewer than the {each} per class "
            f"that {percent:g}% needs: lower --percent."
        )
    paths = [sample_images(path, each, seed, progress=False) for path in classes]
    return [path for of_class in paths for path in of_class], [n for n, of_class in enumerate(paths) for _ in of_class]
