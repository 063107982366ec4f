"""kNN and linear accuracy of a checkpoint beside the same network untrained.

python extra_scripts/quick_evaluation.py runs/x/checkpoint.torch --train photos/train --test photos/test
(one sub-folder a class in both).
"""

import argparse
import json
import sys
from pathlib import Path

from pirl_plugin.evaluation.quick import evaluate_checkpoint, table
from pirl_plugin.launch import registration  # noqa: F401
from pirl_plugin.validation import ConfigError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--train", type=Path, required=True, help="images that the classifiers learn from")
    parser.add_argument("--test", type=Path, required=True, help="images that they are measured on")
    parser.add_argument("--size", type=int, default=32, help="pixels; default 32")
    parser.add_argument("--limit-train", type=int, help="use at most this many training images")
    parser.add_argument("--limit-test", type=int, help="use at most this many test images")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    try:
        results = evaluate_checkpoint(
            options.checkpoint,
            options.train,
            options.test,
            options.size,
            options.limit_train,
            options.limit_test,
        )
    except ConfigError as error:
        sys.exit(f"Error: {error}")
    print(table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
