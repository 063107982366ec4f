"""Fine-tune a classifier on your labelled images, from a checkpoint.

    pirl finetune runs/photos/checkpoint.torch --train labelled --test held_out
    pirl finetune runs/photos/checkpoint.torch --train labelled --test held_out --from-scratch    # to compare with

Both folders have one sub-folder per class. The command that it runs is printed, so that you can copy and change it; the
run ends with the accuracy on the images of --test.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="from pre-training with this plugin or VISSL")
    parser.add_argument("--train", type=Path, required=True, help="labelled images to train on")
    parser.add_argument("--test", type=Path, required=True, help="labelled images to test on")
    parser.add_argument(
        "--output", type=Path, help="default: runs/finetune_<folder of the checkpoint>; scratch_ with --from-scratch"
    )
    parser.add_argument("--epochs", type=int, default=20, help="default: 20")
    parser.add_argument("--seed", type=int, default=0, help="of the training; default 0")
    parser.add_argument("--from-scratch", action="store_true", help="the same network from random weights")
    parser.add_argument("--dry-run", action="store_true", help="print the command, and stop")
    parser.add_argument("--set", nargs="+", default=[], metavar="config.KEY=value", help="overrides for that command")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin import early_stop

    early_stop.end_when_asked()
    from pirl_plugin.launch import registration

    registration.import_in_children()
    from pirl_plugin.experiments.finetune import finetune

    finetune(
        options.checkpoint, options.train, options.test, options.output, options.epochs, options.seed,
        options.from_scratch, tuple(options.set), options.dry_run,
    )  # fmt: skip
