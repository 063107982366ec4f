"""Pre-train on real photos within a few minutes, measure what was learned, draw it."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="a folder of photos of your own; class = sub-folder")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="default: ./demo_output")
    parser.add_argument("--budget-minutes", type=float, default=7.0, help="for pre-training; default 7")
    parser.add_argument("--images", type=int, default=4000, help="at most this many training images")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.launch import registration

    registration.import_in_children()
    from pirl_plugin.experiments.demo import run as demo

    demo(options.output, options.data, options.budget_minutes, options.images, options.seed)
