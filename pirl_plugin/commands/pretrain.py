"""Pre-train on your own photos: choose settings for the folder and the machine, explain them, and train.

    pirl pretrain photos                       # also prints the command that it runs, to copy and change
    pirl pretrain photos --dry-run             # only print it
    pirl pretrain photos --epochs 50 --set config.LOSS.pirl_loss.temperature=0.2

If the folder has one sub-folder per class, the run ends by saying whether the features are better than the untrained
network's. For ImageNet and similar data, use the paper's configs: `pirl train config=pretrain/pirl/jigsaw_8node`.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photos", type=Path, help="a folder of images of any depth, a tar, zip or Parquet file, or a list of them"
    )
    parser.add_argument("--output", type=Path, help="checkpoints and logs; default: runs/<name of the folder>")
    parser.add_argument("--epochs", type=int, help="default: about 1,000 steps on a CPU, 20,000 on a GPU")
    parser.add_argument("--seed", type=int, default=0, help="of the training; default 0")
    parser.add_argument(
        "--heads", choices=("batch_norm", "paper"), default="batch_norm",
        help="paper: without batch normalisation; can be better for thousands of photos of many kinds",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the settings and the command, and stop")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="config.KEY=value", help="overrides that take precedence"
    )


def run(options: argparse.Namespace) -> None:
    from pirl_plugin import early_stop

    early_stop.end_when_asked()
    from pirl_plugin.launch import registration

    registration.import_in_children()
    from pirl_plugin.experiments.recipe import pretrain

    pretrain(
        options.photos, options.output, options.epochs, options.seed, tuple(options.set), options.dry_run, options.heads
    )
