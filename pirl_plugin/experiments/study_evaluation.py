"""The measurements that a study makes on one pre-trained network."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pirl_plugin.evaluation.invariance import (
    LEVELS,
    STATISTICS,
    Encoders,
    embed_pairs,
    has_two_heads,
    transformation,
    with_histogram,
)
from pirl_plugin.evaluation.layers import embed_layers, layer_accuracies
from pirl_plugin.evaluation.measures import linear_probe, unit, weighted_knn
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.evaluation.spread import Moments, effective_rank, spread
from pirl_plugin.experiments.study_finetuning import SHARES, finetune_run
from pirl_plugin.experiments.study_images import some_labels
from pirl_plugin.experiments.study_runs import Run, machine
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.batchnorm_averages import recompute_averages
from pirl_plugin.network.checkpoints import load_checkpoint
from pirl_plugin.network.devices import Compute, choose_device
from pirl_plugin.network.features import center_view_of, embed
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.network.trunks import STAGES
from pirl_plugin.pretext.base import PretextTransform

SUBSETS = 5  # draws of the labelled images, for 1% and 10% of the labels


@dataclass(frozen=True)
class Evaluation:
    """How the runs of a study are evaluated.

    Attributes:
        train, test: folders with one sub-folder per class.
        pretext_config: the config whose view (size, mean and std) and pretext transform (for invariance) are used.
        layers_of: names of runs whose layers are measured (Figure 5), with the averages of training and recomputed.
        finetune: whether networks are also fine-tuned, which takes longest.
    """

    train: Path
    test: Path
    pretext_config: str
    layers_of: tuple[str, ...]
    finetune: bool = True


def few_label_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, share: float
) -> float:
    """Mean top-1 accuracy in [0, 1] of `linear_probe` with a share of the labels, over SUBSETS draws.

    The paper fine-tunes the whole network instead (Table 3): pirl_plugin.experiments.study_finetuning.
    """
    draws = [some_labels(train_labels, share, seed) for seed in range(SUBSETS)]
    return float(np.mean([linear_probe(train[rows], train_labels[rows], test, test_labels) for rows in draws]))


def _network(run: Run, evaluation: Evaluation) -> tuple[Any, dict[str, Any] | None, nn.Module, PretextTransform]:
    """A run's config, checkpoint (None for the untrained network) and trunk, and the evaluation's transformation."""
    config = compose(run.launcher_overrides(), check=False)
    path = None if run.method.config is None else run.checkpoint
    checkpoint = None if path is None else load_checkpoint(path)
    pretext = compose([f"config={evaluation.pretext_config}"], check=False).DATA.TRAIN.TRANSFORMS[0]
    return config, checkpoint, build_trunk(config, checkpoint, seed=run.seed), transformation(pretext)


def labelled_features(run: Run, evaluation: Evaluation) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A run's features of res5, averaged, and classes: of the images to learn from, and of those to measure on."""
    _, _, trunk, task = _network(run, evaluation)
    view = center_view_of(task)
    splits, compute = map(labelled_images, (evaluation.train, evaluation.test)), Compute(choose_device())
    (train, train_labels), (test, test_labels) = (
        (embed(trunk, files, view, compute=compute), y) for files, y in splits
    )
    return train, train_labels, test, test_labels


def evaluate(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """Accuracies in [0, 1] on res5's averaged features, and by layer if requested; spread and invariance.

    Returns:
        knn (k = 200), linear, labels_1percent, labels_10percent, spread, effective_rank; layers; invariance by level
        and BatchNorm statistics (`with_histogram`); knn_recomputed and linear_recomputed, with BatchNorm's averages
        recomputed on the training images alone.
    """
    config, checkpoint, trunk, task = _network(run, evaluation)
    view = center_view_of(task)
    (train_files, train_labels), (test_files, test_labels) = map(labelled_images, (evaluation.train, evaluation.test))
    of_layers = run.name in evaluation.layers_of
    layers = ("flatten", *STAGES) if of_layers else ("flatten",)
    compute = Compute(choose_device())
    train, test = (embed_layers(trunk, files, view, layers, compute=compute) for files in (train_files, test_files))
    everything = (train["flatten"], train_labels, test["flatten"], test_labels)
    moments = Moments.of(torch.from_numpy(unit(test["flatten"], np.float64)))
    result: dict[str, Any] = {
        "knn": weighted_knn(*everything, k=200),
        "linear": linear_probe(*everything),
        "labels_1percent": few_label_accuracy(*everything, share=0.01),
        "labels_10percent": few_label_accuracy(*everything, share=0.1),
        "spread": spread(moments),
        "effective_rank": effective_rank(moments),
    }
    if of_layers:
        accuracies = [{layer: part[layer] for layer in STAGES} for part in (train, test)]
        result["layers"] = layer_accuracies(accuracies[0], train_labels, accuracies[1], test_labels)
    result["invariance"] = {}
    levels = LEVELS if has_two_heads(config) else ("trunk",)
    for level, statistics in itertools.product(levels, STATISTICS):
        encoders = Encoders(config, checkpoint, level, statistics, run.seed)
        own = transformation(config.DATA.TRAIN.TRANSFORMS[0]) if level == "heads" else task
        pairs = embed_pairs(encoders, own, test_files[::5], seed=0, compute=compute)
        result["invariance"][f"{level}, {statistics} statistics"] = with_histogram(*pairs)
    recompute_averages(trunk, train_files, view, compute=compute)
    train, test = (
        embed_layers(trunk, files, view, ("flatten",), compute=compute) for files in (train_files, test_files)
    )
    everything = (train["flatten"], train_labels, test["flatten"], test_labels)
    return {
        **result,
        "knn_recomputed": weighted_knn(*everything, k=200),
        "linear_recomputed": linear_probe(*everything),
    }


def evaluate_layers_recomputed(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    """layers_recomputed: accuracies in [0, 1] by layer, with BatchNorm's averages as in `evaluate`'s others."""
    _, _, trunk, task = _network(run, evaluation)
    view, compute = center_view_of(task), Compute(choose_device())
    (train_files, train_labels), (test_files, test_labels) = map(labelled_images, (evaluation.train, evaluation.test))
    recompute_averages(trunk, train_files, view, compute=compute)
    train, test = (embed_layers(trunk, files, view, compute=compute) for files in (train_files, test_files))
    return {"layers_recomputed": layer_accuracies(train, train_labels, test, test_labels)}


def complete(run: Run, evaluation: Evaluation) -> None:
    """Pre-train and evaluate, skipping what is done; writes the figures to result.json in the run's folder."""

    def measure() -> dict[str, Any]:
        numbers = evaluate(run, evaluation)
        minutes = [float(line) for line in _lines(run.folder / "minutes.txt")]
        told = {"name": run.name, "seed": run.seed, "title": run.method.title, "overrides": run.settings()}
        return {**told, **machine(), "minutes": sum(minutes), **numbers}

    run.complete(measure)
    if run.name in evaluation.layers_of:
        run.complete(functools.partial(evaluate_layers_recomputed, run, evaluation), {"layers_recomputed"})
    if evaluation.finetune:
        run.complete(functools.partial(finetune_run, run, evaluation.train, evaluation.test), SHARES)


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.is_file() else []
