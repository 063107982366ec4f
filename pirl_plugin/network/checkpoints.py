"""Checkpoints of VISSL's trainer: what a run wrote, and the config that it ran with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pirl_plugin.safe_loading import read_safely
from pirl_plugin.validation import ConfigError

CONFIG_FILE = "train_config.yaml"  # VISSL's, beside the checkpoints of a run


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A VISSL checkpoint on the CPU, read without running code from it.

    Raises:
        ConfigError: as `read_safely`, and if the file is not a checkpoint of VISSL.
    """
    checkpoint = read_safely(path)
    if not isinstance(checkpoint, dict) or "classy_state_dict" not in checkpoint:
        raise ConfigError(f"{path} is not a checkpoint of VISSL: it has no classy_state_dict.")
    return checkpoint


def run_config(checkpoint: str | Path) -> dict[str, Any]:
    """The config of the run that wrote a checkpoint, from the train_config.yaml beside it.

    Raises:
        ConfigError: if there is none, or no such checkpoint.
    """
    if not Path(checkpoint).is_file():
        raise ConfigError(f"{checkpoint} is not a file; give a checkpoint of a run.")
    config = config_in(Path(checkpoint).resolve().parent)
    if config is None:
        raise ConfigError(f"There is no {CONFIG_FILE} beside {checkpoint}, where VISSL writes it.")
    return config


def config_in(folder: Path) -> dict[str, Any] | None:
    """The config of the run that a folder is of, from its train_config.yaml; None without one."""
    path = folder / CONFIG_FILE
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else None


def trunk_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights of the trunk in a VISSL checkpoint, by the trunk's own names."""
    return checkpoint["classy_state_dict"]["base_model"]["model"]["trunk"]


def head_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights of the heads in a VISSL checkpoint, prefixed `0.` for the first head, and so on."""
    return checkpoint["classy_state_dict"]["base_model"]["model"]["heads"]
