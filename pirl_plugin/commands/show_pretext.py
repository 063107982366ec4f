"""Draw what the pretext tasks do to a photo.

    pirl show-pretext photo.jpg --output pretext.png --tasks jigsaw_patch_transform

All registered tasks are drawn, or those that --tasks names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pirl_plugin.validation import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, help="an image file")
    parser.add_argument("--output", type=Path, default=Path("pretext.png"), help="default: ./pretext.png")
    parser.add_argument("--tasks", nargs="*", default=[], help="registered names; default: all")
    parser.add_argument("--columns", type=int, default=4, help="random transformations per task; default 4")
    parser.add_argument("--seed", type=int, default=0, help="of the transformations; default 0")
    parser.add_argument("--dpi", type=int, default=100, help="pixels per inch; default 100")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.commands.__parts__ import import_parts
    from pirl_plugin.data.image_files import load_rgb
    from pirl_plugin.pretext.figure import draw

    import_parts()
    try:
        image = load_rgb(options.photo)
    except OSError as error:
        raise ConfigError(f"{options.photo} cannot be read as an image: {error}") from error
    try:
        drawn = draw(image, options.output, options.tasks, options.columns, options.seed, options.dpi)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    print(f"{options.output}: {', '.join(drawn)}")
