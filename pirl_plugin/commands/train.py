"""Train with VISSL's launcher and the plugin, like run_distributed_engines.py.

    pirl train config=pretrain/pirl/jigsaw_small_images_cpu config.DATA.TRAIN.DATA_PATHS=[photos]
    run_distributed_engines.py config=pretrain/pirl/jigsaw_small_images_cpu config.DATA.TRAIN.DATA_PATHS=[photos]

`pirl doctor` lists all configs. A key that does not exist is refused with the nearest one that does.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--multirun", action="store_true", help="accepted and not needed: key=a,b is a sweep")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, help="config=<name>, config.KEY=value ...")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin import early_stop

    early_stop.end_when_asked()
    from pirl_plugin.launch import registration
    from pirl_plugin.launch.launcher import run as launch

    registration.import_in_children()
    launch(options.overrides)
