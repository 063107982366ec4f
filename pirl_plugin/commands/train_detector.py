"""Fine-tune a detector on VOC in Detectron2, from a checkpoint.

    pirl train-detector --config-file voc0712_pirl --weights checkpoint.torch --num-gpus 8
    pirl train-detector --config-file voc07_pirl --weights checkpoint.torch --data my_voc

Needs Detectron2 (`pirl install-detectron2`), and also takes Detectron2's own arguments.
"""

from __future__ import annotations

import argparse

OWN_PARSER = True  # Detectron2's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="those above, and Detectron2's; --help lists them")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.detection.training import main

    main(options.arguments)
