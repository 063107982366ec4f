"""TRAINER.PIRL_TRAIN_STEP: how `pirl_train_step` computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from pirl_plugin.validation import (
    ConfigError,
    check_boolean,
    check_choice,
    check_integer,
    check_keys,
    check_mapping,
    check_number,
)

WHERE = "TRAINER.PIRL_TRAIN_STEP"
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepSettings:
    """How a training step computes. Except for accumulation_steps, results change only by rounding.

    Attributes:
        precision: of the network's forward and backward: float32, bfloat16, or float16 (GPU only, with VISSL's loss
            scaling). Weights, loss and memory bank stay float32.
        channels_last: memory format of the network and of its inputs.
        compile: torch.compile for the trunk; needs a compiler on the machine.
        accumulation_steps: number of parts of a batch that go through the network one after the other before the
            optimiser's step, for a GPU that cannot hold the batch. BatchNorm sees the parts; with `npid`, Z follows
            each part.
        grace_seconds: how long a step may still take after a signal to stop, before the rank ends without its
            checkpoint; default: 25 under torchrun, which waits for 30, else 100 (for SLURM's --signal=USR1@120).
        wandb_project: Weights & Biases project for the progress; empty for none.
        rendezvous_seconds: how long a rank waits for the others at the start, however the run is launched.
        timeout_minutes: timeout of a collective; allow for the slow first batches of a large data set.
        silence_seconds: with several nodes, how long a rank may be silent before the others end; 0: forever.
    """

    precision: str = "float32"
    channels_last: bool = True
    compile: bool = False
    accumulation_steps: int = 1
    grace_seconds: float | None = None
    wandb_project: str = ""
    rendezvous_seconds: float = 300
    timeout_minutes: float = 30
    silence_seconds: float = 60

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StepSettings:
        """Settings from a mapping of the attributes above; those left out keep their defaults.

        Raises:
            ConfigError: for an unknown key or an invalid value.
        """
        check_keys(check_mapping(config, WHERE), [field.name for field in fields(cls)], WHERE)
        settings = cls(**config)
        check_choice(settings.precision, list(PRECISIONS), f"{WHERE}.precision")
        check_boolean(settings.channels_last, f"{WHERE}.channels_last")
        check_boolean(settings.compile, f"{WHERE}.compile")
        check_integer(settings.accumulation_steps, f"{WHERE}.accumulation_steps", 1)
        if settings.grace_seconds is not None:
            check_number(settings.grace_seconds, f"{WHERE}.grace_seconds", 1)
        check_number(settings.rendezvous_seconds, f"{WHERE}.rendezvous_seconds", 1)
        check_number(settings.timeout_minutes, f"{WHERE}.timeout_minutes", 0, above=True)
        check_number(settings.silence_seconds, f"{WHERE}.silence_seconds", 0)
        if not isinstance(settings.wandb_project, str):
            raise ConfigError(f"{WHERE}.wandb_project is {settings.wandb_project!r}; it must be a name, or ''.")
        return settings

    @classmethod
    def of_run(cls, config: Any) -> StepSettings:
        """The settings of a run's `config` node, whatever it trains.

        Raises:
            ConfigError: as `from_config`.
        """
        return cls.from_config(config.TRAINER.get("PIRL_TRAIN_STEP", {}))

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype for autocast; None for no autocast."""
        return PRECISIONS[self.precision]
