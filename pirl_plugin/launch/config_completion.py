"""Fills in values that a part of the plugin takes from elsewhere in the config."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf, open_dict

from pirl_plugin.host.loss_settings import pirl_loss_class, pirl_loss_settings
from pirl_plugin.launch.model_config import pirl_heads_of, trunk_channels
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.validation import ConfigError


def complete(config: DictConfig) -> None:
    """Fill in what the plugin's parts take from elsewhere in the config.

    CHECKPOINT.DIR becomes an absolute path. PIRL's loss gets the seed and the largest number of images per rank and
    step; each `pirl_heads` without in_channels gets the trunk's number of features, if the trunk is a ResNet.
    """
    if isinstance(config.CHECKPOINT.DIR, str) and "://" not in config.CHECKPOINT.DIR:
        # VISSL links checkpoint.torch, inside the folder, to the newest file by this path, so it must be absolute.
        config.CHECKPOINT.DIR = os.path.abspath(config.CHECKPOINT.DIR)
    channels = trunk_channels(config)
    for _, head in pirl_heads_of(config):
        if head.get("in_channels") is None and channels is not None:
            with open_dict(head):  # type: ignore[arg-type]  # a DictConfig here
                head["in_channels"] = channels
    if pirl_loss_class(config) is None:
        return
    name, loss = config.LOSS.name, pirl_loss_settings(config)
    if not OmegaConf.is_dict(loss):
        raise ConfigError(f"LOSS.name is {name}, but there is no LOSS.{name} with its settings; it may be {{}}.")
    with open_dict(loss):
        if loss.get("seed") is None:
            loss.seed = config.SEED_VALUE
        loss.num_train_samples = -1  # VISSL fills it in if it exists
        loss.batch_size_per_replica = config.DATA.TRAIN.BATCHSIZE_PER_REPLICA
        loss.report_frequency = config.LOG_FREQUENCY
    for transform in config.DATA.TRAIN.TRANSFORMS:
        if transform.get("name") in PRETEXT_TRANSFORMS:
            with open_dict(transform):
                own_step = config.TRAINER.TRAIN_STEP_NAME == "pirl_train_step"
                transform["normalize_on"] = "device" if own_step else "workers"
                if config.TRAINER.TASK_NAME == "pirl_task" and transform.get("seed") is None:
                    transform["seed"] = config.SEED_VALUE
    step = config.TRAINER.get("PIRL_TRAIN_STEP")
    if OmegaConf.is_dict(step) and step.get("precision") == "float16":
        config.MODEL.AMP_PARAMS.USE_AMP, config.MODEL.AMP_PARAMS.AMP_TYPE = True, "pytorch"  # VISSL's loss scaling
    if config.MODEL.ACTIVATION_CHECKPOINTING.USE_ACTIVATION_CHECKPOINTING:
        config.DISTRIBUTED.MANUAL_GRADIENT_REDUCTION = True  # DDP would see each parameter twice
