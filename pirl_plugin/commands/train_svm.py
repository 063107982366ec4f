"""Extract features, then train and test linear SVMs on every layer.

    pirl train-svm config=benchmark/svm/voc07 config.MODEL.WEIGHTS_INIT.PARAMS_FILE=checkpoint.torch

Takes VISSL's benchmark configs and overrides, as `pirl train` does.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="config=<name>, config.KEY=value ...")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.launch import registration, tools

    registration.import_in_children()
    tools.train_svm(options.overrides)
