"""Join the features of several networks, image by image (PIRL-ens., Section 3.2), and compare by kNN.

    pirl join-features features_a features_b --output joined

The folders are outputs of `pirl extract-features`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=Path, nargs="+", help="of features, one for each network")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the joined features")
    parser.add_argument("--raw", action="store_true", help="do not scale each network's vectors to unit length")
    parser.add_argument("--neighbors", type=int, default=200, help="k of kNN; default 200")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.evaluation.extracted_features import collect
    from pirl_plugin.evaluation.joined_features import join_folders
    from pirl_plugin.evaluation.measures import weighted_knn

    sizes = join_folders(options.folders, options.output, not options.raw)
    for (split, layer), (images, dimensions) in sizes.items():
        print(f"{options.output}: {split} {layer}, {images} images x {dimensions} dimensions")
    for layer in sorted({layer for _, layer in sizes}):
        if {("train", layer), ("test", layer)} <= set(sizes):
            for folder in (*options.folders, options.output):
                (train, train_labels, _), (test, test_labels, _) = (
                    collect(folder, split, layer) for split in ("train", "test")
                )
                if train_labels.ndim != 1:
                    print(f"{layer}, {folder}: no kNN, which takes one label per image; see `pirl train-svm`")
                    continue
                k = min(options.neighbors, len(train))
                accuracy = weighted_knn(train, train_labels, test, test_labels, k=k)
                print(f"{layer}, {folder}: weighted kNN (k = {k}) {100 * accuracy:.2f}%")
