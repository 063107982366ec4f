"""Make a PASCAL VOC tree with the splits train and test, for pirl-train-detector --data.

python extra_scripts/make_voc_tree.py images annotations --output my_voc --test-share 0.2
"""

import argparse
import sys
from pathlib import Path

from pirl_plugin.detection.voc_trees import make_tree
from pirl_plugin.validation import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of .jpg files")
    parser.add_argument("annotations", type=Path, help="a folder of .xml files with the same names")
    parser.add_argument("--output", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--test-share", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        made = make_tree(options.images, options.annotations, options.output, options.test_share, options.seed)
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    print(f"{options.output}: {made['train']} images to train, {made['test']} to test, "
          f"--classes {','.join(made['classes'])}")  # fmt: skip


if __name__ == "__main__":
    main()
