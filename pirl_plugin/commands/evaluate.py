"""Compare a checkpoint with the same network untrained by kNN and linear accuracy, in a minute.

    pirl evaluate runs/pirl/checkpoint.torch --train photos/train --test photos/test

Folders have one sub-folder per class. `--evaluations` chooses among all registered ones, including yours
(PIRL_PLUGIN_MODULES).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pirl_plugin.commands.__compute__ import add_compute_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="from pre-training with this plugin")
    parser.add_argument("--train", type=Path, required=True, help="images that the classifiers learn from")
    parser.add_argument("--test", type=Path, required=True, help="images that they are measured on")
    parser.add_argument("--size", type=int, help="pixels; default: as in the training")
    parser.add_argument("--limit-train", type=int, help="use at most this many training images")
    parser.add_argument("--limit-test", type=int, help="use at most this many test images")
    parser.add_argument("--evaluations", nargs="+", default=["knn", "linear"], help="names; default: knn linear")
    parser.add_argument(
        "--recompute-batchnorm", action="store_true",
        help="measure also with BatchNorm's averages of --train's images; in training they blend images and patches",
    )  # fmt: skip
    add_compute_arguments(parser)
    parser.add_argument("--json", type=Path, help="also write the figures here")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.commands.__parts__ import import_parts
    from pirl_plugin.evaluation.quick import evaluate_checkpoint
    from pirl_plugin.network.devices import Compute
    from pirl_plugin.paths import prepare_output, write_json

    import_parts()
    if options.json:
        prepare_output(options.json, "--json")
    comparison = evaluate_checkpoint(
        options.checkpoint,
        options.train,
        options.test,
        options.size,
        options.limit_train,
        options.limit_test,
        evaluations=options.evaluations,
        compute=Compute.of_options(options),
        recompute=options.recompute_batchnorm,
    )
    print(comparison)
    if options.json:
        write_json(options.json, comparison.as_json())
