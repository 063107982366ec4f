"""Compare methods and sweeps at the size of this machine, and report which findings of the paper held.

    pirl study --train cifar10/train --test cifar10/test --output study --budget-minutes 120

Pre-trains and evaluates each method of a YAML file (configs/study, or one of your own), draws Figures 4 to 8 and writes
study.json, from which --report-only makes the report again. Goes on where it was interrupted. What follows -- are
overrides for all runs, for a GPU:

    -- config.MACHINE.DEVICE=gpu config.DISTRIBUTED.BACKEND=nccl config.DATA.NUM_DATALOADER_WORKERS=4
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", help="images to train on")
    parser.add_argument("--test", help="images to measure on")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--study", default="small_images", help="of configs/study, or a file; default small_images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the methods")
    parser.add_argument("--sweep-seeds", type=int, nargs="*", default=[0], help="of what only a sweep has")
    parser.add_argument("--budget-minutes", type=float, help="for all, on this machine")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each; default 1")
    parser.add_argument("--images", type=int, help="to train on; with --epochs, in place of a budget")
    parser.add_argument("--epochs", type=int, help="with --images, in place of a budget")
    parser.add_argument("--report-only", action="store_true", help="the report again, from study.json")
    parser.add_argument("overrides", nargs="*", help="for all runs")


def run(options: argparse.Namespace) -> int:
    from pirl_plugin.launch import registration

    registration.import_in_children()
    from pirl_plugin.experiments.study_command import run as study

    return study(options)
