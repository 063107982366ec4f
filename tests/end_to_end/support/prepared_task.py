"""A task of a small run in this process, as VISSL's trainer prepares it."""

from pathlib import Path
from typing import Any

from vissl.trainer.trainer_main import build_task

from pirl_plugin.host.mends import register_data_paths
from pirl_plugin.launch.launcher import compose

BATCH, STEPS = 16, 3  # of 48 images


def prepared(photos: Path, run: Path, *overrides: str, checkpoint: Path | None = None) -> Any:
    """A task that VISSL's trainer has prepared, from a checkpoint if one is given."""
    config = compose(
        ["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photos}]",
         f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={BATCH}", "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
         "config.OPTIMIZER.num_epochs=4", "config.SEED_VALUE=5", f"config.CHECKPOINT.DIR={run}", *overrides]
    )  # fmt: skip
    register_data_paths(config)
    task = build_task(config)
    task.set_device()
    task.set_available_splits()
    task.checkpoint_folder, task.checkpoint_path = str(run), None if checkpoint is None else str(checkpoint)
    task.prepare()
    return task
