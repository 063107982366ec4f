"""Draw the curves of runs: loss, learning rate, memory bank, kNN accuracy, speed.

    pirl curves runs/photos
    pirl curves runs/lambda/* --output curves.png       # several runs in one picture
    pirl curves runs/photos --only loss effective_rank

Also works while a run trains. Needs no TensorBoard.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs (CHECKPOINT.DIR)")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="default: ./curves.png")
    parser.add_argument("--only", nargs="+", default=[], metavar="COLUMN", help="of progress.csv or monitor.csv")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.evaluation.curves import draw_curves

    print(draw_curves(options.runs, options.output, options.only))
