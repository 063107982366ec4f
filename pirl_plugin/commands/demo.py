"""Pre-train on real photos within a few minutes, evaluate the result and plot it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="a folder of your own photos; class = sub-folder")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="default: ./demo_output")
    parser.add_argument("--budget-minutes", type=float, default=7.0, help="time for pre-training; default 7")
    parser.add_argument("--images", type=int, default=4000, help="at most this many training images")
    parser.add_argument("--seed", type=int, default=0, help="of the training and of the choice of images; default 0")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.launch import registration

    registration.import_in_children()
    from pirl_plugin.experiments.demo import run as demo

    demo(options.output, options.data, options.budget_minutes, options.images, options.seed)
