"""Features of a folder of images, to a .npy file and a list of the files.

pirl embed checkpoint.torch photos --output features.npy
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="of this plugin, of VISSL, a state dict, or .safetensors")
    parser.add_argument("images", help="a folder of any depth, or a .txt or .npy list of files")
    parser.add_argument("--output", required=True, help="features.npy; the files go to features.txt")
    parser.add_argument("--layer", default="flatten", help="conv1, res1 ... res5, res5avg; default: res5, averaged")
    parser.add_argument("--size", type=int, help="side of the centre crop; default: that of the training")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode images")
    parser.add_argument("--device", help="default: cuda where there is a GPU, else cpu")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.network.embed_folder import embed_folder

    count, unreadable = embed_folder(**vars(options))
    for line in unreadable:
        print(f"Not read: {line}")
    print(f"{options.output}: features of {count} images; {len(unreadable)} could not be read")
