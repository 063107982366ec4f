"""Export weights to torchvision, timm, Detectron2, safetensors or VISSL, and check them there.

    pirl export checkpoint.torch --format torchvision --output weights.pth

Without --format, it prints which network the file holds. The preprocessing for the weights goes to OUTPUT.json.
"""

from __future__ import annotations

import argparse

from pirl_plugin.validation import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="from this plugin or VISSL, a state dict, or .safetensors")
    parser.add_argument("--format", help="torchvision, timm or detectron2 (.pth), safetensors, or vissl (.torch)")
    parser.add_argument("--output", help="the file to write")


def run(options: argparse.Namespace) -> None:
    from pirl_plugin.network.export import describe, export

    if options.format is None:
        print(describe(options.checkpoint))
    elif options.output is None:
        raise ConfigError("--output is missing; give the file to write.")
    else:
        print(export(options.checkpoint, options.format, options.output))
