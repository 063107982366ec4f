"""Write the features of a folder of images to a .npy file, with a list of the files.

    pirl embed checkpoint.torch photos --output features.npy

Row i of features.npy (float32) belongs to line i of features.txt, whose names count from its folder, as in any list;
images that cannot be read are left out.
"""

from __future__ import annotations

import argparse

from pirl_plugin.commands.__compute__ import add_compute_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="from this plugin or VISSL, a state dict, or .safetensors")
    parser.add_argument(
        "images", help="a folder of any depth, a tar, zip or Parquet file, or a .txt or .npy list of files"
    )
    parser.add_argument("--output", required=True, help="features.npy; the list of files goes to features.txt")
    parser.add_argument("--layer", default="flatten", help="conv1, res1 ... res5, res5avg; default: res5, averaged")
    parser.add_argument("--size", type=int, help="side of the centre crop; default: as in the training")
    parser.add_argument("--batch-size", type=int, default=64, help="images at once; default 64")
    add_compute_arguments(parser)


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.network.devices import Compute
    from pirl_plugin.network.embed_folder import embed_folder

    compute = Compute.of_options(options)
    given = (options.checkpoint, options.images, options.output, options.layer, options.size, options.batch_size)
    count, unreadable = embed_folder(*given, compute)
    for line in unreadable:
        print(f"Not read: {line}")
    print(f"{options.output}: features of {count} images; {len(unreadable)} could not be read")
