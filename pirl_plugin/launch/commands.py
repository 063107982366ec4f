"""The console scripts: where VISSL is missing they say so in one sentence, before anything needs it.

A console script imports this module at top level, and so do the processes that it spawns: hence the registration.
`python -m pirl_plugin.launch.commands train_svm ...` is pirl-train-svm without the script.
"""

from __future__ import annotations

import importlib
import sys

from pirl_plugin.host import mends
from pirl_plugin.validation import ConfigError

try:
    mends.require_vissl()
except ModuleNotFoundError as error:
    sys.exit(f"Error: {error}")
try:
    from pirl_plugin.launch import registration  # noqa: F401
except ConfigError as error:  # a module of the user's that is not there
    sys.exit(f"Error: {error}")


def _call(module: str, function: str) -> None:
    # A console script exits with what it returns: nothing.
    getattr(importlib.import_module(f"pirl_plugin.{module}"), function)()


def run_distributed_engines() -> None:
    _call("launch.launcher", "main")


def extract_features() -> None:
    _call("launch.tools", "extract_features")


def train_svm() -> None:
    _call("launch.tools", "train_svm")


def train_svm_low_shot() -> None:
    _call("launch.tools", "train_svm_low_shot")


def nearest_neighbors() -> None:
    _call("launch.tools", "nearest_neighbors")


def export_weights() -> None:
    _call("launch.tools", "export_weights")


def embed() -> None:
    _call("launch.tools", "embed")


def train_detector() -> None:
    _call("detection.training", "main")


def demo() -> None:
    _call("experiments.demo", "main")


if __name__ == "__main__":
    command = sys.argv.pop(1)
    globals()[command]()
