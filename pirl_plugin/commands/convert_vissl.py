"""Convert a checkpoint of VISSL's own PIRL for a warm start: trunk, heads and memory bank.

    pirl convert-vissl model_final_checkpoint_phase799.torch --output warm_start.torch

Row i of the bank belongs to image i: --images FOLDER checks that the data set is in the same order as in VISSL.
"""

from __future__ import annotations

import argparse

from pirl_plugin.validation import ConfigError

MARGIN = 0.2  # by which an image must be more similar to its own row than to another's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="of VISSL's own PIRL")
    parser.add_argument("--output", required=True, help="a .torch file")
    parser.add_argument("--images", help="the data set, to check that the bank's rows belong to its images")
    parser.add_argument(
        "--patch-relu",
        choices=("yes", "no"),
        help="whether a ReLU follows each patch's projection; default: as in VISSL's configs, only with MLP heads",
    )


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.host.warm_start import agreement, convert

    relu = None if options.patch_relu is None else options.patch_relu == "yes"
    print(convert(options.checkpoint, options.output, relu))
    if options.images:
        own, other = agreement(options.output, options.images)
        print(f"Cosine similarity of images with their own rows {own:.2f}, with others' {other:.2f}")
        if own < other + MARGIN:
            raise ConfigError(
                f"The rows of the bank are not those of {options.images} in this order; start without "
                f"initial_rows, or name the images in VISSL's order in a .txt list."
            )
