"""kNN and linear accuracy of a checkpoint, compared with the same network untrained, in a minute."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from pirl_plugin.data.class_folders import check_splits, labelled_class_folders
from pirl_plugin.data.image_files import list_images
from pirl_plugin.data.unreadable import Unreadable
from pirl_plugin.evaluation.measures import EVALUATIONS, linear_probe, weighted_knn
from pirl_plugin.network.batchnorm_averages import MOST_IMAGES, recompute_averages, require_averages
from pirl_plugin.network.checkpoints import load_checkpoint, run_config
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.features import embed, progress_line
from pirl_plugin.network.preprocessing import Preprocessing, preprocessing_of, usual_size
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.validation import check_integer

RECOMPUTED = "PIRL, recomputed"  # with BatchNorm's averages of whole images, see network.batchnorm_averages
NETWORKS = ("untrained", "PIRL", RECOMPUTED)


def labelled_images(
    folder: str | Path, limit: int | None = None, key: str = "the limit of images"
) -> tuple[list[str], np.ndarray]:
    """Image files of a folder with one sub-folder per class, and their class numbers.

    Args:
        limit: take at most this many in all: the first ones of each class, the same number per class.
        key: where `limit` was given, for the error.

    Returns:
        paths, and int64 [images] with the classes numbered in the order of their names.

    Raises:
        ConfigError: if there are fewer than two class folders, no images, or more classes than `limit`.
    """
    classes = labelled_class_folders(folder)
    if limit is not None:
        check_integer(limit, f"{key}, with {len(classes)} classes,", len(classes))
    files: list[str] = []
    labels: list[int] = []
    for number, path in enumerate(classes):
        found = list_images(path)
        found = found if limit is None else found[: limit // len(classes)]
        files += found
        labels += [number] * len(found)
    return files, np.array(labels)


def compare_with_untrained(
    config: Mapping[str, Any],
    checkpoint: dict,
    train: tuple[list, np.ndarray],
    test: tuple[list, np.ndarray],
    view: Callable[[Image.Image], Tensor],
    k: int = 200,
    seed: int = 0,
    progress: Callable[[str], Callable[[int, int], None] | None] = lambda name: None,
    evaluations: Sequence[str] = ("knn", "linear"),
    unreadable: Unreadable | None = None,
    compute: Compute | None = None,
    recompute: bool = False,
) -> tuple[dict[str, dict[str, float]], tuple[np.ndarray, np.ndarray]]:
    """Figures in [0, 1] of evaluations that learn from `train` and are measured on `test`.

    Args:
        config: the run's config, for its trunk.
        train, test: images or their paths, and class numbers.
        view: image -> float tensor [3, H, W], as the network expects it.
        k: neighbours for kNN; all images of `train` if there are fewer.
        seed: seed of the untrained network.
        progress: name of a network -> callback (done, total), or None.
        evaluations: names in EVALUATIONS.
        unreadable: receives the files that cannot be read, which are left out; None: such a file raises.
        compute: where and how features are computed, as for pirl_plugin.network.features.embed.
        recompute: measure the trained network also with BatchNorm's averages recomputed on `train`.

    Returns:
        {"untrained": {...}, "PIRL": {...}}, with `recompute` also RECOMPUTED, and the trained network's features of
        train and test, NaN for unreadable files.
    """
    measures = {name: EVALUATIONS.find(name, "--evaluations") for name in evaluations}
    device = None if compute is None else compute.device
    if "linear" in measures:
        measures["linear"] = functools.partial(linear_probe, device=device)
    k = min(k, len(train[0]))
    if "knn" in measures:
        measures = {f"kNN (k = {k})" if name == "knn" else name: measure for name, measure in measures.items()}
        measures[f"kNN (k = {k})"] = functools.partial(weighted_knn, k=k, device=device)
    results, features = {}, {}
    for name in NETWORKS if recompute else NETWORKS[:2]:
        trunk = build_trunk(config, None if name == "untrained" else checkpoint, seed=seed)
        if recompute:
            require_averages(trunk)  # refused before anything is embedded: all three have the same layers
        if name == RECOMPUTED:
            files = train[0][:: -(-len(train[0]) // MOST_IMAGES)]
            recompute_averages(trunk, files, view, on_unreadable=unreadable, compute=compute)
        features[name] = (
            embed(trunk, train[0], view, progress=progress(name), on_unreadable=unreadable, compute=compute),
            embed(trunk, test[0], view, on_unreadable=unreadable, compute=compute),
        )
        arguments = list[np.ndarray]()
        for (files, labels), found in zip((train, test), features[name], strict=True):
            read = np.ones(len(files), bool) if unreadable is None else unreadable.read(files)
            arguments += [found[read], labels[read]]
        results[name] = {label: measure(*arguments) for label, measure in measures.items()}
    return results, features["PIRL"]


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as an aligned text table, in per cent, with the difference."""
    measures = list(results["PIRL"])

    def line(name: str, values: Iterable[float], form: str) -> str:
        return f"{name:22}" + "".join(f"{100 * value:{form}}" for value in values)

    lines = [f"{'held-out accuracy, %':22}" + "".join(f"{measure:>20}" for measure in measures)]
    for name in (network for network in NETWORKS if network in results):
        accuracies = results[name]
        lines.append(line(name, accuracies.values(), "20.1f"))
        if name != "untrained":
            gained = (accuracies[measure] - results["untrained"][measure] for measure in measures)
            lines.append(line("difference", gained, "+20.1f"))
    return "\n".join(lines)


@dataclass(frozen=True)
class Comparison:
    """A checkpoint compared with the same network untrained.

    Attributes:
        accuracies: {"untrained": {...}, "PIRL": {...}}, each in [0, 1], and perhaps RECOMPUTED.
        preprocessing: how images were preprocessed.
        images: how many were learned from, and measured on.
        unreadable: the files that were left out.
    """

    accuracies: dict[str, dict[str, float]]
    preprocessing: Preprocessing
    images: tuple[int, int]
    unreadable: Unreadable

    def __str__(self) -> str:
        """The table, and what it was measured on."""
        lines = [table(self.accuracies), f"{self.images[0]} training and {self.images[1]} test images"]
        lines[1] += f", {self.preprocessing}"
        if RECOMPUTED in self.accuracies:
            lines.append("recomputed: BatchNorm's averages of the training images; pirl recompute-batchnorm keeps them")
        return "\n".join([*lines, *([str(self.unreadable)] if self.unreadable else [])])

    def as_json(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        images = {"train": self.images[0], "test": self.images[1], **self.preprocessing.record()}
        return {**self.accuracies, "images": images, "unreadable": list(self.unreadable.reasons)}


def evaluate_checkpoint(
    path: str | Path,
    train_folder: str | Path,
    test_folder: str | Path,
    size: int | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    k: int = 200,
    evaluations: Sequence[str] = ("knn", "linear"),
    compute: Compute | None = None,
    recompute: bool = False,
) -> Comparison:
    """`compare_with_untrained` for a checkpoint file and two folders with one sub-folder per class.

    Args:
        size: of the views, in pixels; default: as in the training.
        compute: where and how features are computed; default: the GPU if there is one, without workers.
        recompute: as `compare_with_untrained`.
    """
    check_splits(train_folder, test_folder)
    splits = (
        labelled_images(train_folder, limit_train, "--limit-train"),
        labelled_images(test_folder, limit_test, "--limit-test"),
    )
    config, checkpoint = run_config(path), load_checkpoint(path)
    wanted = preprocessing_of(path, checkpoint, usual_size(config)).sized(size)
    unreadable = Unreadable()
    compute = compute or Compute(choose_device())
    accuracies, _ = compare_with_untrained(
        config,
        checkpoint,
        *splits,
        wanted.view(),
        k,
        config["SEED_VALUE"],
        progress_line,
        evaluations,
        unreadable,
        compute,
        recompute,
    )
    counts = [int(unreadable.read(files).sum()) for files, _ in splits]
    return Comparison(accuracies, wanted, (counts[0], counts[1]), unreadable)
