"""Compare methods and sweeps at a size for this machine, and report which findings of the paper held.

    pirl study --train cifar10/train --test cifar10/test --output study --budget-minutes 120

Pre-trains and evaluates each method of a YAML file (configs/study, or your own), draws Figures 4 to 8 and writes
study.json, from which --report-only makes the report again. An interrupted study resumes, on another machine from
study.json alone; --only does a part. Arguments after -- are overrides for all runs, e.g. for a GPU:

    -- config.MACHINE.DEVICE=gpu config.DISTRIBUTED.BACKEND=nccl config.DATA.NUM_DATALOADER_WORKERS=4
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", help="images to train on")
    parser.add_argument("--test", help="images to test on")
    parser.add_argument("--output", type=Path, required=True, help="a folder for all runs and the report")
    parser.add_argument(
        "--study", default="small_images", help="a name in configs/study, or a file; default small_images"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the methods")
    parser.add_argument("--sweep-seeds", type=int, nargs="*", default=[0], help="seeds of runs only in sweeps")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="only the runs of these methods and sweeps; the report has all so far"
    )
    parser.add_argument("--budget-minutes", type=float, help="time for all runs on this machine")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, with one thread each; default 1")
    parser.add_argument("--images", type=int, help="images to train on; with --epochs, instead of a budget")
    parser.add_argument("--epochs", type=int, help="with --images, instead of a budget")
    parser.add_argument("--no-finetuning", action="store_true", help="only measure frozen features")
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="pre-train in bfloat16 where PIRL's train step does: faster on new machines",
    )
    parser.add_argument("--report-only", action="store_true", help="only make the report again, from study.json")
    parser.add_argument("overrides", nargs="*", help="overrides for all runs")


def run(options: argparse.Namespace) -> int:
    from pirl_plugin.launch import registration

    registration.import_in_children()
    from pirl_plugin.experiments.study_command import run as study

    return study(options)
