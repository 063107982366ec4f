"""Draw what each pretext task does to a photo.

python extra_scripts/show_pretext.py photo.jpg --output pretext.png
"""

import argparse
import sys
from pathlib import Path

from pirl_plugin.data.image_files import load_rgb
from pirl_plugin.launch import registration  # noqa: F401
from pirl_plugin.pretext.figure import draw
from pirl_plugin.validation import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--output", type=Path, default=Path("pretext.png"))
    parser.add_argument("--tasks", nargs="*", default=[], help="registered names; default: all")
    parser.add_argument("--columns", type=int, default=4, help="random transformations a task; default 4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dpi", type=int, default=100, help="pixels an inch; default 100")
    options = parser.parse_args()
    try:
        image = load_rgb(options.photo)
    except OSError as error:
        sys.exit(f"Error: {options.photo} cannot be read as an image: {error}")
    try:
        drawn = draw(image, options.output, options.tasks, options.columns, options.seed, options.dpi)
    except (ConfigError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    print(f"{options.output}: {', '.join(drawn)}")


if __name__ == "__main__":
    main()
