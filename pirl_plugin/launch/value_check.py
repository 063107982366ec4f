"""Rejects invalid values of VISSL's own keys before VISSL fails on them."""

from __future__ import annotations

import logging
from typing import Any

from classy_vision.losses import LOSS_REGISTRY
from classy_vision.optim import OPTIMIZER_REGISTRY
from classy_vision.optim.param_scheduler import PARAM_SCHEDULER_REGISTRY
from torch import nn
from vissl.data import DATASET_SOURCE_MAP
from vissl.trainer.train_steps import TRAIN_STEP_REGISTRY

from pirl_plugin.validation import ConfigError, check_choice, check_integer, check_mapping, check_number, check_seed

LARGEST_LEARNING_RATE = 1e6


def check_values(config: Any) -> None:
    """Raise for values with which no run could work.

    Args:
        config: the `config` node, before VISSL infers anything from it.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    distributed, optimizer = config.DISTRIBUTED, config.OPTIMIZER
    check_integer(distributed.NUM_NODES, "DISTRIBUTED.NUM_NODES", 1)
    check_integer(distributed.NUM_PROC_PER_NODE, "DISTRIBUTED.NUM_PROC_PER_NODE", 1)
    check_choice(distributed.BACKEND, ["nccl", "gloo", "mpi"], "DISTRIBUTED.BACKEND")
    check_choice(distributed.INIT_METHOD, ["tcp", "file", "env"], "DISTRIBUTED.INIT_METHOD")
    check_choice(config.MACHINE.DEVICE, ["gpu", "cpu"], "MACHINE.DEVICE")
    check_choice(config.MULTI_PROCESSING_METHOD, ["forkserver", "fork", "spawn"], "MULTI_PROCESSING_METHOD")
    check_integer(config.LOG_FREQUENCY, "LOG_FREQUENCY", 1)
    check_seed(config.SEED_VALUE, "SEED_VALUE")
    of_torch = {name for name in dir(nn) if name.endswith("Loss")}
    check_choice(config.LOSS.name, sorted({*LOSS_REGISTRY, *of_torch}), "LOSS.name")
    check_choice(config.TRAINER.TRAIN_STEP_NAME, sorted(TRAIN_STEP_REGISTRY), "TRAINER.TRAIN_STEP_NAME")
    for split in ("TRAIN", "TEST"):
        for source in config.DATA[split].DATA_SOURCES:
            check_choice(source, sorted(DATASET_SOURCE_MAP), f"DATA.{split}.DATA_SOURCES")
    check_integer(config.DATA.NUM_DATALOADER_WORKERS, "DATA.NUM_DATALOADER_WORKERS", 0)
    check_choice(optimizer.name, sorted(OPTIMIZER_REGISTRY), "OPTIMIZER.name")
    check_integer(optimizer.num_epochs, "OPTIMIZER.num_epochs", 1)
    check_number(optimizer.weight_decay, "OPTIMIZER.weight_decay", 0, 1)
    if "momentum" in optimizer:
        check_number(optimizer.momentum, "OPTIMIZER.momentum", 0, 1)
    _check_schedule(optimizer.param_schedulers.lr, optimizer.num_epochs)


def _check_schedule(schedule: Any, num_epochs: int) -> None:
    where = "OPTIMIZER.param_schedulers.lr"
    check_choice(schedule.update_interval, ["epoch", "step"], f"{where}.update_interval")
    _check_rates(schedule, num_epochs, where)
    scaling = schedule.auto_lr_scaling
    check_number(scaling.base_value, f"{where}.auto_lr_scaling.base_value", 0, LARGEST_LEARNING_RATE, above=True)
    check_number(scaling.base_lr_batch_size, f"{where}.auto_lr_scaling.base_lr_batch_size", 1)


def _check_rates(schedule: Any, num_epochs: int, where: str) -> None:
    """Check a schedule or, of a composite one, its parts."""
    name = check_choice(schedule["name"], sorted(PARAM_SCHEDULER_REGISTRY), f"{where}.name")
    rates = {"cosine": ("start_value", "end_value"), "linear": ("start_value", "end_value")}.get(name, ())
    for key in rates:
        check_number(schedule[key], f"{where}.{key}", 0, LARGEST_LEARNING_RATE)
    if rates and schedule["start_value"] < schedule["end_value"] and name == "cosine":
        raise ConfigError(
            f"{where}.start_value is {schedule['start_value']:g}, below end_value {schedule['end_value']:g}: a cosine "
            f"schedule must fall."
        )
    if name == "multistep":
        milestones, values = list(schedule["milestones"]), list(schedule["values"])
        if milestones != sorted(set(milestones)) or not all(0 < place < num_epochs for place in milestones):
            raise ConfigError(
                f"{where}.milestones is {milestones}; they must rise and lie below OPTIMIZER.num_epochs {num_epochs}."
            )
        if len(values) != len(milestones) + 1:
            raise ConfigError(
                f"{where}.values has {len(values)} entries; {len(milestones)} milestones need {len(milestones) + 1}."
            )
    if name == "composite":
        parts, lengths = list(schedule.get("schedulers") or []), list(schedule.get("lengths") or [])
        for number, length in enumerate(lengths):
            check_number(length, f"{where}.lengths.{number}", 0, 1, above=True)
        if not parts or len(lengths) != len(parts) or abs(sum(lengths) - 1) > 1e-6:
            raise ConfigError(
                f"{where}.lengths is {lengths}, for {len(parts)} schedulers: a composite schedule needs at least one, "
                f"each with its share of the training, and the shares add up to 1."
            )
        scaling = list(schedule.get("interval_scaling") or [])
        if len(scaling) != len(parts) or not {*map(str, scaling)} <= {"rescaled", "fixed"}:
            raise ConfigError(
                f"{where}.interval_scaling is {scaling}; it must say rescaled or fixed for each of the {len(parts)} "
                f"schedulers."
            )
        missing: dict[str, Any] = {"name": None, "start_value": None, "end_value": None, "milestones": [], "values": []}
        for number, part in enumerate(parts):
            one = f"{where}.schedulers.{number}"
            _check_rates({**missing, **check_mapping(part, one)}, num_epochs, one)


def warn_of_learning_rate(config: Any) -> None:
    """Warn if the learning rate does not follow the linear scaling rule that the config states."""
    schedule = config.OPTIMIZER.param_schedulers.lr
    scaling = schedule.auto_lr_scaling
    batch = (
        config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * config.DISTRIBUTED.NUM_NODES * config.DISTRIBUTED.NUM_PROC_PER_NODE
    )
    expected = scaling.base_value * batch / scaling.base_lr_batch_size
    last = schedule["schedulers"][-1] if schedule.name == "composite" else schedule  # after a warm-up
    if scaling.auto_scale or last["name"] not in ("cosine", "linear", "multistep"):
        return  # VISSL scales
    given = last["values"][0] if last["name"] == "multistep" else last["start_value"]
    if abs(given - expected) > 0.01 * expected:
        logging.warning(
            f"The learning rate starts at {given:g}, but for the global batch of {batch} images the linear scaling "
            f"rule ({scaling.base_value:g} for {scaling.base_lr_batch_size}) gives {expected:g}, and "
            f"OPTIMIZER.param_schedulers.lr.auto_lr_scaling.auto_scale is false."
        )
