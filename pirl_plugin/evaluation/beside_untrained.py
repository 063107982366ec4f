"""At the end of a run on class folders: is its network better than the untrained one?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pirl_plugin.data import archives
from pirl_plugin.data.class_folders import class_folders
from pirl_plugin.data.image_files import walk_images
from pirl_plugin.data.unreadable import Unreadable
from pirl_plugin.evaluation.measures import usual_neighbors
from pirl_plugin.evaluation.quick import compare_with_untrained
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.preprocessing import Preprocessing

FEWEST_OF_A_CLASS = 10
MEASURED = 5  # one image in five is tested, the others vote

Labelled = tuple[list[str], np.ndarray]


def labelled_split(folder: str | os.PathLike[str], most: int) -> tuple[Labelled, Labelled] | None:
    """Split a folder with one sub-folder per class into images that vote and images that are voted on.

    At most the same number from each class, spread over the list of its images; every fifth of them is voted on.

    Args:
        most: at most this many images in all.

    Returns:
        files and class numbers int64 of both parts; None if there are fewer than two classes, or if fewer than
        FEWEST_OF_A_CLASS images of a class would be taken, too few for a meaningful vote.
    """
    classes = class_folders(folder)
    if len(classes) < 2 or most // len(classes) < FEWEST_OF_A_CLASS:
        return None
    parts: tuple[tuple[list[str], list[int]], ...] = (([], []), ([], []))
    for label, path in enumerate(classes):
        files = sorted(archives.members(path) or walk_images(path))
        if len(files) < FEWEST_OF_A_CLASS:
            return None
        count = min(len(files), most // len(classes))
        for number, place in enumerate(np.linspace(0, len(files) - 1, count).astype(int)):
            names, labels = parts[number % MEASURED == MEASURED - 1]
            names.append(files[place])
            labels.append(label)
    (voters, own), (measured, wanted) = parts
    return (voters, np.array(own)), (measured, np.array(wanted))


def knn_beside_untrained(
    config: Mapping[str, Any], checkpoint: dict, folder: str | os.PathLike[str], most: int
) -> dict[str, float] | None:
    """kNN accuracies in [0, 1] of the trained and the untrained network on the images of the training.

    Args:
        config: the run's config.
        checkpoint: its final checkpoint.
        folder: the folder of its images.
        most: how many images to use at most.

    Returns:
        {"untrained": ..., "PIRL": ..., "images": how many were voted on}; None if `labelled_split` gives None.
    """
    split = labelled_split(folder, most)
    if split is None:
        return None
    voters, measured = split
    k = usual_neighbors(len(voters[0]), classes=int(voters[1].max()) + 1)
    view = Preprocessing.of_transforms(config["DATA"]["TRAIN"]["TRANSFORMS"], 224).view()
    unreadable = Unreadable()
    accuracies, _ = compare_with_untrained(
        config, checkpoint, voters, measured, view, k, config["SEED_VALUE"], evaluations=("knn",),
        unreadable=unreadable, compute=Compute(choose_device()),
    )  # fmt: skip
    (name,) = accuracies["PIRL"]
    images = int(unreadable.read(measured[0]).sum())
    return {key: values[name] for key, values in accuracies.items()} | {"images": images}
