"""Write a list of randomly chosen photos, for DATA_PATHS: YFCC-1M from YFCC-100M, or a sample of any collection.

    pirl sample-images /data/yfcc100m --count 1000000 --seed 0 --output yfcc1m.txt

The draw depends only on the names of the files and on the seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pirl_plugin.validation import ConfigError, check_other_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a folder of any depth, or a .txt file with one path per line")
    parser.add_argument("--count", type=int, required=True, help="images to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default 0")
    parser.add_argument("--output", type=Path, required=True, help="a .txt file; one absolute path per line")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.data.file_lists import write_list
    from pirl_plugin.data.subsets import sample_images

    if options.output.suffix != ".txt":
        raise ConfigError(f"--output is {options.output}; it must end in .txt, for DATA_PATHS to take it.")
    if not options.output.resolve().parent.is_dir():
        raise ConfigError(f"--output is {options.output}; its folder does not exist.")
    check_other_file(options.output, options.source, "--output")
    paths = sample_images(options.source, options.count, options.seed)
    write_list(options.output, paths)
    print(f"{options.output}: {len(paths)} of the images of {options.source}, seed {options.seed}")
