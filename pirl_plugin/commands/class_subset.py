"""Draw the same number of images from each class, for semi-supervised learning with part of the labels.

    pirl class-subset imagenet/train --percent 1 --seed 0 --output imagenet_1percent

writes imagenet_1percent_images.npy and imagenet_1percent_labels.npy, which the configs
benchmark/semi_supervised/imagenet_1percent and imagenet_10percent read.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="one sub-folder per class")
    parser.add_argument("--percent", type=float, required=True, help="of the images of each class")
    parser.add_argument("--seed", type=int, default=0, help="of the choice; default 0")
    parser.add_argument("--output", required=True, help="prefix of the two file names")


def run(options: argparse.Namespace) -> None:
    import numpy as np

    from pirl_plugin.data.subsets import class_balanced_subset

    paths, labels = class_balanced_subset(options.folder, options.percent, options.seed)
    np.save(f"{options.output}_images.npy", np.array(paths))
    np.save(f"{options.output}_labels.npy", np.array(labels))
    classes = labels[-1] + 1
    print(
        f"{options.output}_images.npy: {len(paths)} images, {len(paths) // classes} of each of {classes} classes, "
        f"seed {options.seed}"
    )
