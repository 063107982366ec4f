"""Extract features, then train and test SVMs on a few images per class.

    pirl train-svm-low-shot config=benchmark/svm/voc07_low_shot config.MODEL.WEIGHTS_INIT.PARAMS_FILE=checkpoint.torch

Takes VISSL's benchmark configs and overrides, as `pirl train` does.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="config=<name>, config.KEY=value ...")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.launch import registration, tools

    registration.import_in_children()
    tools.train_svm_low_shot(options.overrides)
