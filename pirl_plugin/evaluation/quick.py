"""kNN and linear accuracy of a checkpoint beside those of the same network untrained, in a minute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pirl_plugin.data.image_files import check_same_classes, labelled_class_folders, list_images
from pirl_plugin.evaluation.measures import EVALUATIONS, weighted_knn
from pirl_plugin.network.checkpoints import load_checkpoint, run_config
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.pretext.base import IMAGENET_MEAN, IMAGENET_STD


def labelled_images(folder: str | Path, limit: int | None = None) -> tuple[list[str], np.ndarray]:
    """Image files of a folder with one sub-folder a class, and their class numbers.

    Args:
        limit: take at most this many in all, the first of each class, as many of one as of another.

    Returns:
        paths, and int64 [images] with the classes numbered in the order of their names.

    Raises:
        ConfigError: where there are fewer than two class folders, or no images.
    """
    classes = labelled_class_folders(folder)
    files: list[str] = []
    labels: list[int] = []
    for number, path in enumerate(classes):
        found = list_images(path)
        found = found if limit is None else found[: max(1, limit // len(classes))]
        files += found
        labels += [number] * len(found)
    return files, np.array(labels)


def compare_with_untrained(
    config: Mapping[str, Any],
    checkpoint: dict,
    train: tuple[list, np.ndarray],
    test: tuple[list, np.ndarray],
    size: int,
    k: int = 200,
    seed: int = 0,
    progress: Callable[[str], Callable[[int, int], None] | None] = lambda name: None,
    evaluations: Sequence[str] = ("knn", "linear"),
) -> tuple[dict[str, dict[str, float]], tuple[np.ndarray, np.ndarray]]:
    """Figures in [0, 1] of evaluations that learn from `train` and are measured on `test`.

    Args:
        config: of the run; its trunk and its pretext transform's mean and std are used.
        train, test: images or their paths, and class numbers.
        size: side of the views, in pixels.
        k: neighbours, of kNN.
        seed: of the untrained network.
        progress: name of a network -> callback (done, total), or None.
        evaluations: names in EVALUATIONS.

    Returns:
        {"untrained": {...}, "PIRL": {...}} and the trained network's features of train and test.
    """
    transform = config["DATA"]["TRAIN"]["TRANSFORMS"][0]
    view = center_view(size, transform.get("mean", IMAGENET_MEAN), transform.get("std", IMAGENET_STD))
    measures = {name: EVALUATIONS.find(name, "--evaluations") for name in evaluations}
    if "knn" in measures:
        measures = {f"kNN (k = {k})" if name == "knn" else name: measure for name, measure in measures.items()}
        measures[f"kNN (k = {k})"] = functools.partial(weighted_knn, k=k)
    results = {}
    for name, weights in (("untrained", None), ("PIRL", checkpoint)):
        trunk = build_trunk(config, weights, seed=seed)
        features = embed(trunk, train[0], view, progress=progress(name)), embed(trunk, test[0], view)
        results[name] = {
            label: measure(features[0], train[1], features[1], test[1]) for label, measure in measures.items()
        }
    return results, features


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as an aligned text table, in per cent, with the difference."""
    measures = list(results["PIRL"])
    lines = [f"{'held-out accuracy, %':22}" + "".join(f"{m:>20}" for m in measures)]
    for name in ("untrained", "PIRL"):
        lines.append(f"{name:22}" + "".join(f"{100 * results[name][m]:20.1f}" for m in measures))
    difference = [100 * (results["PIRL"][m] - results["untrained"][m]) for m in measures]
    lines.append(f"{'difference':22}" + "".join(f"{d:+20.1f}" for d in difference))
    return "\n".join(lines)


def evaluate_checkpoint(
    path: str | Path,
    train_folder: str | Path,
    test_folder: str | Path,
    size: int = 32,
    limit_train: int | None = None,
    limit_test: int | None = None,
    k: int = 200,
    evaluations: Sequence[str] = ("knn", "linear"),
) -> dict[str, dict[str, float]]:
    """`compare_with_untrained` for a checkpoint file and two folders with one sub-folder a class."""
    check_same_classes(train_folder, test_folder)
    train, test = labelled_images(train_folder, limit_train), labelled_images(test_folder, limit_test)
    config = run_config(path)
    results, _ = compare_with_untrained(
        config, load_checkpoint(path), train, test, size, k, config["SEED_VALUE"], evaluations=evaluations
    )
    return results
