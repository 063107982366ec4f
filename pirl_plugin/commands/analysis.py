"""Analyse checkpoints as in the paper; each analysis writes a PNG and a JSON of its numbers.

    pirl analysis invariance pirl.torch jigsaw.torch --images photos --output invariance
    pirl analysis layers pirl.torch --train photos/train --test photos/test --output layers
    pirl analysis neighbors pirl.torch --images photos --output neighbors
    pirl analysis spread pirl.torch --images photos --output spread

invariance: Figure 4, distances from f(v_I) to g(v_It). layers: Figure 5, linear accuracy by layer (one sub-folder per
class). neighbors: a gallery of nearest neighbours. spread: the spectrum of the features, and the effective rank.
Figures 6 to 8 are drawn by `pirl study`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pirl_plugin.commands.__compute__ import add_compute_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    analyses = parser.add_subparsers(dest="analysis", required=True)
    for name in ("invariance", "layers", "neighbors", "spread"):
        analysis = analyses.add_parser(name)
        analysis.add_argument("checkpoints", nargs="+", type=Path, help="of one or several models")
        analysis.add_argument("--names", nargs="+", help="names of the models, for the legend; default: their files")
        analysis.add_argument("--output", required=True, help="<output>.png and <output>.json are written")
        analysis.add_argument("--limit", type=int, default=5000, help="use at most this many images; default 5000")
        add_compute_arguments(analysis)
        if name != "invariance":
            analysis.add_argument("--size", type=int, help="pixels; default: as in each network's training")
        if name == "layers":
            analysis.add_argument("--train", required=True, help="images that the classifiers learn from")
            analysis.add_argument("--test", required=True, help="images that they are measured on")
        else:
            analysis.add_argument("--images", required=True, help="a folder or a list of images")
        if name == "invariance":
            analysis.add_argument(
                "--level", choices=("heads", "trunk"), default="heads",
                help="compare embeddings (heads) or the trunk's features; default heads",
            )  # fmt: skip
            analysis.add_argument(
                "--statistics", choices=("batch", "running"), default="batch", help="of BatchNorm; default batch"
            )
            analysis.add_argument("--pretext-of", type=Path, help="a checkpoint whose transformation is used for all")
            analysis.add_argument("--draws", type=int, default=1, help="number of random t per image")
        if name == "neighbors":
            analysis.add_argument("--queries", type=int, help="images to look up; default 8, or all of fewer")
            analysis.add_argument("--neighbors", type=int, help="of each; default 8, or all others of fewer")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.commands.__parts__ import import_parts
    from pirl_plugin.evaluation.analyses import analyse

    import_parts()
    analyse(options)
