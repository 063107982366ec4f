"""Runs VISSL's other tools so that they find the plugin's configs, components and patches.

Each entry point takes VISSL's overrides (config=... config.X=...). VISSL's own files in its `tools` package do
the work; only the nearest-neighbour test is the plugin's, because VISSL's needs a GPU and many images.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from vissl.config import AttrDict
from vissl.models.model_helpers import get_trunk_output_feature_names
from vissl.utils.checkpoint import get_checkpoint_folder

from pirl_plugin.evaluation import extracted_features
from pirl_plugin.evaluation.extracted_features import collect
from pirl_plugin.evaluation.measures import weighted_knn
from pirl_plugin.host.readable_batches import count_listed
from pirl_plugin.host.vissl_tools import script
from pirl_plugin.launch import (
    composition,
    launcher,
    registration,  # noqa: F401
)
from pirl_plugin.network.checkpoints import CONFIG_FILE, config_in
from pirl_plugin.validation import ConfigError, one_sentence_errors


def _overrides(arguments: list[str] | None) -> list[str]:
    return sys.argv[1:] if arguments is None else arguments


def _compose(arguments: list[str] | None) -> AttrDict:
    """The full config of a tool's run.

    Raises:
        ConfigError: if the tool cannot do what the config asks for.
    """
    whole = composition.compose([*_overrides(arguments), "engine_name=extract_features"])
    folder = Path(get_checkpoint_folder(whole.config))
    if whole.config.SLURM.USE_SLURM:
        raise ConfigError("SLURM.USE_SLURM is true, which this tool does not support; run it inside your own job.")
    if any(folder.glob("model_*.torch")):
        raise ConfigError(f"CHECKPOINT.DIR is {folder}, the folder of a training; give the features another folder.")
    if whole.node_id == 0:
        _delete_results(whole.config, folder)
        composition.write(whole.config)
    return whole


def _delete_results(config: AttrDict, folder: Path) -> None:
    """Delete what an earlier run of a tool left that this one would take for its own.

    These are its features and, if it had other settings or weights, the SVMs that VISSL does not train again.
    """
    extracted_features.delete(config.EXTRACT_FEATURES.OUTPUT_DIR or folder)
    weights, before = Path(config.MODEL.WEIGHTS_INIT.PARAMS_FILE), folder / CONFIG_FILE
    same = config_in(folder) == composition.as_written(config) and not (
        weights.is_file() and weights.stat().st_mtime > before.stat().st_mtime
    )
    of_svms = () if same else ("cls*.pickle", "AP_cls*.npy", "crossval_ap.npy", "chosen_cost.npy")
    for pattern in ("test_ap*.npy", *of_svms):
        for path in folder.glob(f"*/{pattern}"):
            path.unlink()


def _run_vissl_tool(name: str, arguments: list[str] | None) -> AttrDict:
    whole = _compose(arguments)
    tool: Any = script(name)
    tool.launch_distributed = _launch  # with the plugin registered in every rank
    tool.main(whole, whole.config)
    return whole


def _say_left_out(folder: str | Path) -> None:
    """Print how many images per split an extraction could not read."""
    for split, count in count_listed(Path(folder)).items():
        print(f"{count} images of {split} could not be read and were left out: {folder}/unreadable_{split}_rank*.txt")


def _launch(cfg, node_id: int, engine_name: str, hook_generator) -> None:
    launcher.launch(cfg, node_id, engine_name)


def extract_features(arguments: list[str] | None = None) -> None:
    """`pirl extract-features config=...`: VISSL's extraction engine."""
    launcher.main([*_overrides(arguments), "engine_name=extract_features"])


def train_svm(arguments: list[str] | None = None) -> None:
    """`pirl train-svm config=...`: extract features, train and test linear SVMs on every layer, print the mean AP.

    Ends with an error if a layer has no result: VISSL's tool says nothing when an SVM's process dies.
    """
    with one_sentence_errors():
        whole = _run_vissl_tool("train_svm", arguments)
        folder = Path(get_checkpoint_folder(whole.config))
        for layer in get_trunk_output_feature_names(whole.config.MODEL) or ["heads"]:
            path = folder / layer / "test_ap.npy"
            if not path.is_file():
                raise ConfigError(f"The SVMs of layer {layer} have no result at {path}; the log above says why.")
            print(f"{layer}: mean AP {100 * np.mean(np.load(path)):.2f}%")
        _say_left_out(folder)


def train_svm_low_shot(arguments: list[str] | None = None) -> dict[str, dict]:
    """`pirl train-svm-low-shot config=...`: extract features, then SVMs on SVM.low_shot.k_values images per class.

    The samples SVM.low_shot.sample_inds are drawn by VISSL's own function, seeded with SEED_VALUE. Returns, by layer
    and k, the mean, min, max and standard deviation of the mean AP over the samples, in per cent, at the best cost.
    """
    from vissl.utils.misc import merge_features

    from pirl_plugin.host.low_shot import LowShotTrainer

    draw_samples = script("create_low_shot_samples").generate_voc07_low_shot_samples

    with one_sentence_errors():
        whole = _compose(arguments)
        config = whole.config
        low_shot = config.SVM.low_shot
        if low_shot.dataset_name != "voc":
            raise ConfigError(f"SVM.low_shot.dataset_name is {low_shot.dataset_name!r}; this tool supports only voc.")
        launcher.launch(config, whole.node_id, "extract_features")
        folder = config.EXTRACT_FEATURES.OUTPUT_DIR or get_checkpoint_folder(config)
        results = {}
        for layer in get_trunk_output_feature_names(config.MODEL) or ["heads"]:
            train, test = (merge_features(folder, split, layer) for split in ("train", "test"))
            fewest = int((train["targets"] == 1).sum(axis=0).min())
            if max(low_shot.k_values) > fewest:
                raise ConfigError(
                    f"SVM.low_shot.k_values has {max(low_shot.k_values)}, but the class with the fewest images has "
                    f"{fewest}: lower it."
                )
            random.seed(config.SEED_VALUE)  # VISSL's function draws from it
            drawing = (low_shot.k_values, low_shot.sample_inds, folder, layer)
            draw_samples(train["targets"], *drawing)
            trainer = LowShotTrainer(config.SVM, layer=layer, output_dir=folder)
            for sample in low_shot.sample_inds:
                for k in low_shot.k_values:
                    targets = np.load(f"{folder}/{layer}_sample{sample}_k{k}.npy")
                    trainer.train(train["features"], targets, sample, k)
                    trainer.test(test["features"], test["targets"], sample, k)
            results[layer] = trainer.aggregate_stats(low_shot.k_values, low_shot.sample_inds)
            for k, values in results[layer].items():
                print(f"{layer}, {k}: mean AP {values['mean']:.2f}% +- {values['std']:.2f}")
        _say_left_out(folder)
        Path(folder, "low_shot.json").write_text(json.dumps(results, indent=2, default=float) + "\n")
        return results


def nearest_neighbors(arguments: list[str] | None = None) -> dict[str, float]:
    """`pirl nearest-neighbors config=...`: extract features, then weighted kNN on every layer.

    Reads NEAREST_NEIGHBOR.TOPK and NEAREST_NEIGHBOR.SIGMA of the config. Returns top-1 accuracy in [0, 1] by layer.
    """
    with one_sentence_errors():
        whole = _compose(arguments)
        config = whole.config
        launcher.launch(config, whole.node_id, "extract_features")
        folder = config.EXTRACT_FEATURES.OUTPUT_DIR or get_checkpoint_folder(config)
        accuracies = {}
        for layer in get_trunk_output_feature_names(config.MODEL) or ["heads"]:
            (train, train_labels, _), (test, test_labels, _) = (collect(folder, s, layer) for s in ("train", "test"))
            accuracies[layer] = weighted_knn(
                train,
                train_labels,
                test,
                test_labels,
                k=config.NEAREST_NEIGHBOR.TOPK,
                temperature=config.NEAREST_NEIGHBOR.SIGMA,
            )
            logging.info(f"{layer}: weighted kNN top-1 {100 * accuracies[layer]:.2f}%")
            print(f"{layer}: weighted kNN top-1 {100 * accuracies[layer]:.2f}%")
        _say_left_out(folder)
        Path(folder, "nearest_neighbors.json").write_text(json.dumps(accuracies, indent=2) + "\n")
        return accuracies
