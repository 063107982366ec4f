"""Write a list of randomly chosen photos, for DATA_PATHS: YFCC-1M from YFCC-100M, or a part of any collection.

python extra_scripts/sample_images.py /data/yfcc100m --count 1000000 --seed 0 --output yfcc1m.txt
"""

import argparse
import sys
from pathlib import Path

from pirl_plugin.data.subsets import sample_images
from pirl_plugin.validation import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder of any depth, or a .txt file with one path a line")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="a .txt file; one absolute path a line")
    options = parser.parse_args()
    try:
        if options.output.suffix != ".txt":
            raise ConfigError(f"--output is {options.output}; it must end in .txt, for DATA_PATHS to take it.")
        if not options.output.resolve().parent.is_dir():
            raise ConfigError(f"--output is {options.output}; its folder is not there.")
        paths = sample_images(options.source, options.count, options.seed)
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    unfinished = options.output.with_suffix(".unfinished")
    unfinished.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    unfinished.replace(options.output)
    print(f"{options.output}: {len(paths)} of the images of {options.source}, seed {options.seed}")


if __name__ == "__main__":
    main()
