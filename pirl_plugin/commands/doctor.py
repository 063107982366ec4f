"""Report what is installed, which optional packages are missing, and which configs this machine can run."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-configs", action="store_true", help="do not check which configs can run")


def run(options: argparse.Namespace) -> int:
    from pirl_plugin.launch.doctor import examine

    faults = 0
    for line in examine(configs=not options.no_configs):
        print(line, flush=True)
        faults += line.lstrip().startswith("!")
    return 1 if faults else 0
