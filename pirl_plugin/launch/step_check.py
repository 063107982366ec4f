"""For a run with PIRL's loss: checks that TRAINER, CHECKPOINT and HOOKS agree with the training step."""

from __future__ import annotations

import importlib.util
from typing import Any

from pirl_plugin.training.monitor import MonitorSettings
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.validation import ConfigError, check_integer


def check_step(config: Any) -> None:
    """Raise for settings that `pirl_train_step`, or the step named instead, does not support.

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
    """VISSL's own step ignores the plugin's settings, so they must have their defaults."""
    name = config.TRAINER.TRAIN_STEP_NAME
    if settings != StepSettings(channels_last=settings.channels_last):
        raise ConfigError(
            f"TRAINER.TRAIN_STEP_NAME is {name!r}, but TRAINER.PIRL_TRAIN_STEP has settings that only "
            f"pirl_train_step supports; set it to that."
        )
    if monitor != MonitorSettings():
        raise ConfigError(
            "HOOKS.PIRL_MONITOR differs from its defaults, which needs TRAINER.TRAIN_STEP_NAME pirl_train_step; "
            "leave it at its defaults, or set the step to pirl_train_step."
        )


def _check_own_step(config: Any, settings: StepSettings) -> None:
    if config.TRAINER.TASK_NAME != "pirl_task":
        raise ConfigError(
            f"TRAINER.TASK_NAME is {config.TRAINER.TASK_NAME!r}; TRAIN_STEP_NAME pirl_train_step needs pirl_task."
        )
    for key in ("USE_STATEFUL_DISTRIBUTED_SAMPLER", "USE_DEBUGGING_SAMPLER"):
        if config.DATA.TRAIN[key]:
            raise ConfigError(f"DATA.TRAIN.{key} is true, but pirl_task has its own sampler; set it to false.")
    if config.MODEL.AMP_PARAMS.USE_AMP and settings.precision != "float16":
        raise ConfigError(
            f"MODEL.AMP_PARAMS.USE_AMP is true; set it to false, because pirl_train_step uses "
            f"TRAINER.PIRL_TRAIN_STEP.precision ({settings.precision!r} now)."
        )
    if settings.accumulation_steps > config.DATA.TRAIN.BATCHSIZE_PER_REPLICA:
        raise ConfigError(
            f"TRAINER.PIRL_TRAIN_STEP.accumulation_steps is {settings.accumulation_steps}; a batch of "
            f"DATA.TRAIN.BATCHSIZE_PER_REPLICA {config.DATA.TRAIN.BATCHSIZE_PER_REPLICA} has at most that many parts."
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
