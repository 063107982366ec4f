"""TRAINER, CHECKPOINT and HOOKS of a run with PIRL's loss: do they agree with the training step?"""

from __future__ import annotations

import importlib.util
from typing import Any

from pirl_plugin.training.monitor import MonitorSettings
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.validation import ConfigError, check_integer


def check_step(config: Any) -> None:
    """Refuse settings that `pirl_train_step`, or the step that is named instead, cannot do.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    trainer = config.TRAINER
    settings = StepSettings.from_config(trainer.get("PIRL_TRAIN_STEP", {}))
    monitor = MonitorSettings.from_config(config.HOOKS.get("PIRL_MONITOR", {}))
    _check_checkpoint_keys(config)
    if trainer.TRAIN_STEP_NAME == "pirl_train_step":
        _check_own_step(config, settings)
        monitor.images()
    else:
        _check_other_step(config, settings, monitor)


def _check_checkpoint_keys(config: Any) -> None:
    for key, may_be in (("CHECKPOINT_FREQUENCY", ()), ("KEEP_LAST", (None,)), ("CHECKPOINT_ITER_FREQUENCY", (-1,))):
        value = config.CHECKPOINT.get(key)
        if value not in may_be:
            check_integer(value, f"CHECKPOINT.{key}", 1)


def _check_other_step(config: Any, settings: StepSettings, monitor: MonitorSettings) -> None:
    """VISSL's own step knows nothing of the plugin's settings: they must be at their defaults."""
    name = config.TRAINER.TRAIN_STEP_NAME
    if settings != StepSettings(channels_last=settings.channels_last):
        raise ConfigError(
            f"TRAINER.TRAIN_STEP_NAME is {name!r}, but TRAINER.PIRL_TRAIN_STEP asks for more than "
            f"that can do; set it to pirl_train_step."
        )
    if monitor != MonitorSettings():
        raise ConfigError(
            "HOOKS.PIRL_MONITOR is not as it comes, which needs TRAINER.TRAIN_STEP_NAME pirl_train_step; leave it, "
            "or set the step to pirl_train_step."
        )


def _check_own_step(config: Any, settings: StepSettings) -> None:
    if config.TRAINER.TASK_NAME != "pirl_task":
        raise ConfigError(
            f"TRAINER.TASK_NAME is {config.TRAINER.TASK_NAME!r}; TRAIN_STEP_NAME pirl_train_step needs pirl_task."
        )
    for key in ("USE_STATEFUL_DISTRIBUTED_SAMPLER", "USE_DEBUGGING_SAMPLER"):
        if config.DATA.TRAIN[key]:
            raise ConfigError(f"DATA.TRAIN.{key} is true, but pirl_task brings its own sampler; set it to false.")
    if config.MODEL.AMP_PARAMS.USE_AMP and settings.precision != "float16":
        raise ConfigError(
            f"MODEL.AMP_PARAMS.USE_AMP is true; with pirl_train_step it is TRAINER.PIRL_TRAIN_STEP.precision that says "
            f"how to compute ({settings.precision!r} now)."
        )
    if settings.accumulation_steps > config.DATA.TRAIN.BATCHSIZE_PER_REPLICA:
        raise ConfigError(
            f"TRAINER.PIRL_TRAIN_STEP.accumulation_steps is {settings.accumulation_steps}; a batch of "
            f"DATA.TRAIN.BATCHSIZE_PER_REPLICA {config.DATA.TRAIN.BATCHSIZE_PER_REPLICA} has at most as many parts."
        )
    if settings.wandb_project and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"TRAINER.PIRL_TRAIN_STEP.wandb_project is {settings.wandb_project!r}, but Weights & Biases is not "
            f"installed; install it with: pip install wandb"
        )
    if settings.precision == "float16" and config.MACHINE.DEVICE != "gpu":
        raise ConfigError(
            "TRAINER.PIRL_TRAIN_STEP.precision is 'float16', which needs a GPU; on a CPU use bfloat16 or float32."
        )
