"""Join the features of several networks (PIRL-ens.) and compare weighted kNN with and without joining.

python extra_scripts/join_features.py features/first features/second --output features/both
(the folders are CHECKPOINT.DIR of two runs of pirl-extract-features on the same images)
"""

import argparse
import sys
from pathlib import Path

from pirl_plugin.evaluation.joined_features import join_folders
from pirl_plugin.evaluation.measures import weighted_knn
from pirl_plugin.host.extraction import collect
from pirl_plugin.launch import registration  # noqa: F401
from pirl_plugin.validation import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--raw", action="store_true", help="do not bring each network's vectors to unit length")
    parser.add_argument("--neighbors", type=int, default=200, help="k of kNN; default 200")
    options = parser.parse_args()
    try:
        sizes = join_folders(options.folders, options.output, not options.raw)
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    for (split, layer), (images, dimensions) in sizes.items():
        print(f"{options.output}: {split} {layer}, {images} images x {dimensions} dimensions")
    for layer in sorted({layer for _, layer in sizes}):
        if {("train", layer), ("test", layer)} <= set(sizes):
            for folder in (*options.folders, options.output):
                train, test = (collect(str(folder), split, layer) for split in ("train", "test"))
                k = min(options.neighbors, len(train[0]))
                print(f"{layer}, {folder}: weighted kNN (k = {k}) {100 * weighted_knn(*train, *test, k=k):.2f}%")


if __name__ == "__main__":
    main()
