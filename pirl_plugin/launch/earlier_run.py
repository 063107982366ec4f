"""A run that is in the checkpoint folder already is shown or gone on with, if it is the one that is asked for."""

from __future__ import annotations

from pathlib import Path

from vissl.config import AttrDict
from vissl.utils.checkpoint import get_checkpoint_folder

from pirl_plugin.host.agreement import changes_beside_the_machine, other_files
from pirl_plugin.host.loss_settings import pirl_loss_class
from pirl_plugin.launch import composition
from pirl_plugin.network.checkpoints import config_in
from pirl_plugin.validation import ConfigError


def check_same_files(config: AttrDict) -> None:
    """Raise if the folder has an evaluation of other weights or images, which the run would resume or show.

    Pre-training with PIRL looks at the images in its checkpoint.

    Raises:
        ConfigError: naming what differs.
    """
    folder = Path(get_checkpoint_folder(config))
    before = None if pirl_loss_class(config) is not None else config_in(folder)
    if before is None or not any(folder.glob("model_*.torch")):
        return
    differ = other_files(before, composition.as_written(config))
    if differ:
        raise ConfigError(
            f"CHECKPOINT.DIR is {folder}, which has a run of other files: {', '.join(differ)}; give it another folder."
        )


def check_same_settings(config: AttrDict) -> None:
    """Raise if the run that is finished in the folder had other settings or other images than are asked for.

    Raises:
        ConfigError: naming what differs.
    """
    folder = Path(get_checkpoint_folder(config))
    before, now = config_in(folder), composition.as_written(config)
    if before is None:
        return
    differ = [*changes_beside_the_machine(before, now), *other_files(before, now)]
    if differ:
        raise ConfigError(
            f"CHECKPOINT.DIR is {folder}, where a run is finished that had other settings: {', '.join(differ)}; "
            f"give it another folder."
        )
