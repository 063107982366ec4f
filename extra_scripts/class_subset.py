"""Draw the same number of images of each class, for semi-supervised learning with a part of the labels.

python extra_scripts/class_subset.py imagenet/train --percent 1 --seed 0 --output imagenet_1percent
writes imagenet_1percent_images.npy and imagenet_1percent_labels.npy, which the configs
benchmark/semi_supervised/imagenet_1percent and imagenet_10percent read.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from pirl_plugin.data.subsets import class_balanced_subset
from pirl_plugin.validation import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="one sub-folder a class")
    parser.add_argument("--percent", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, help="start of the two files' names")
    options = parser.parse_args()
    try:
        paths, labels = class_balanced_subset(options.folder, options.percent, options.seed)
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    np.save(f"{options.output}_images.npy", np.array(paths))
    np.save(f"{options.output}_labels.npy", np.array(labels))
    print(f"{options.output}_images.npy: {len(paths)} images, {len(paths) // (labels[-1] + 1)} of each of "
          f"{labels[-1] + 1} classes, seed {options.seed}")  # fmt: skip


if __name__ == "__main__":
    main()
