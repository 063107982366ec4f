"""Options of commands that compute features: the device, and how many processes read images."""

from __future__ import annotations

import argparse


def add_compute_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="as PyTorch names it; default: cuda if there is a GPU, else cpu")
    parser.add_argument("--workers", type=int, help="processes that read images; default: up to 8 on a GPU, else none")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, faster on GPUs since 2020")
