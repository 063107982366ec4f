"""Copy a checkpoint with BatchNorm averages recomputed on whole images, which often evaluates better.

    pirl recompute-batchnorm runs/pirl/checkpoint.torch photos       # writes runs/pirl/checkpoint_batchnorm.torch

In training the averages blend images and patches. The copy works wherever the checkpoint does: evaluate, embed, ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pirl_plugin.commands.__compute__ import add_compute_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="from pre-training with this plugin")
    parser.add_argument("images", type=Path, help="a folder of any depth, or a list; the training images will do")
    parser.add_argument("--most", type=int, help="use at most this many images, evenly spread; default 10,000")
    parser.add_argument("--output", type=Path, help="default: beside the checkpoint, with _batchnorm in its name")
    add_compute_arguments(parser)


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.data.file_lists import printable
    from pirl_plugin.evaluation.analyses import chosen
    from pirl_plugin.network.batchnorm_averages import MOST_IMAGES, recompute_checkpoint
    from pirl_plugin.network.devices import Compute
    from pirl_plugin.paths import prepare_output
    from pirl_plugin.validation import check_integer

    most = MOST_IMAGES if options.most is None else check_integer(options.most, "--most", 2)
    files = chosen(options.images, most)
    output = options.output or options.checkpoint.with_name(f"{options.checkpoint.stem}_batchnorm.torch")
    prepare_output(output, "--output")
    unread: list[str] = []
    read = recompute_checkpoint(
        options.checkpoint, files, output, lambda file, error: unread.append(f"{printable(file)} ({error})"),
        Compute.of_options(options),
    )  # fmt: skip
    for line in unread:
        print(f"Not read: {line}")
    print(f"{output}: averages of {read} images")
