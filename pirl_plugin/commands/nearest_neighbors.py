"""Extract features, then run weighted kNN on every layer.

    pirl nearest-neighbors config=benchmark/nearest_neighbor/imagenet \\
        config.MODEL.WEIGHTS_INIT.PARAMS_FILE=checkpoint.torch

The config names the data sets, the layers, k and the temperature.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="config=<name>, config.KEY=value ...")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.launch import registration, tools

    registration.import_in_children()
    tools.nearest_neighbors(options.overrides)
