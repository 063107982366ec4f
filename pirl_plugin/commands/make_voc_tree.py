"""Make a VOC tree from images and XML annotations, for `pirl train-detector --data`.

    pirl make-voc-tree images annotations --output my_voc --test-share 0.2

The classes are those that the annotations name.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("annotations", type=Path, help="a folder of .xml files with the same names")
    parser.add_argument("--output", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--test-share", type=float, default=0.2, help="of the images; default 0.2")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of test images; default 0")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.detection.make_voc_tree import make_tree

    made = make_tree(options.images, options.annotations, options.output, options.test_share, options.seed)
    print(
        f"{options.output}: {made['train']} images to train on, {made['test']} to test on, of {len(made['classes'])} "
        f"classes ({', '.join(made['classes'])})"
    )
