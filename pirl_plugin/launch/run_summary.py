"""Summarises in a few lines what a run is about to do."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pirl_plugin.host.loss_settings import pirl_loss_class, pirl_loss_settings
from pirl_plugin.network.timm_trunk import TimmArchitecture
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.training.settings import StepSettings


def summarise(config: Any, resumes_from: str | None = None) -> list[str]:
    """The most important settings of a pre-training, resolved, one line per subject.

    Args:
        config: from `composition.compose`, with VISSL's inferences applied.
        resumes_from: the checkpoint that it resumes from.
    """
    train, optimizer, distributed = config.DATA.TRAIN, config.OPTIMIZER, config.DISTRIBUTED
    ranks = distributed.NUM_NODES * distributed.NUM_PROC_PER_NODE
    batch = train.BATCHSIZE_PER_REPLICA * ranks
    transforms = " + ".join(_transform(entry) for entry in train.TRANSFORMS)
    data = ", ".join(map(str, train.DATA_PATHS or train.DATASET_NAMES))
    rates = _learning_rate(optimizer.param_schedulers.lr)
    lines = {
        "images": f"{data} ({', '.join(train.DATA_SOURCES)}), {config.DATA.NUM_DATALOADER_WORKERS} loader workers",
        "views": transforms,
        "network": f"{_trunk(config.MODEL.TRUNK)}, heads {_heads(config.MODEL.HEAD.PARAMS)}",
        "loss": _loss(config),
        "schedule": f"{optimizer.name} for {optimizer.num_epochs} epochs, {rates}, "
        f"weight decay {optimizer.weight_decay:g}{_filling(config)}",
        "batch": f"{batch} = {ranks} ranks ({distributed.NUM_NODES} nodes) x {train.BATCHSIZE_PER_REPLICA}, on "
        f"{config.MACHINE.DEVICE} with {distributed.BACKEND}, seed {config.SEED_VALUE}",
        "step": _step(config.TRAINER),
        "checkpoints": f"{config.CHECKPOINT.DIR}, every {config.CHECKPOINT.CHECKPOINT_FREQUENCY} epochs"
        + (f", resumes from {resumes_from}" if resumes_from else ""),
    }
    if config.MODEL.WEIGHTS_INIT.PARAMS_FILE and not resumes_from:
        lines["initial weights"] = config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    width = max(map(len, lines))
    return [f"{key:{width}}  {value}" for key, value in lines.items()]


def _transform(entry: Mapping[str, Any]) -> str:
    sizes = [f"{key} {entry[key]}" for key in ("image_crop_size", "patch_size", "num_permutations") if key in entry]
    where = " augmented on the device" if entry.get("augment_on") == "device" else ""
    return f"{entry['name']}{' (' + ', '.join(sizes) + ')' if sizes else ''}{where}"


def _trunk(trunk: Any) -> str:
    if trunk.NAME == "timm":
        return str(TimmArchitecture.of_settings(trunk.get("TIMM")))
    resnets = trunk.RESNETS
    width = "" if resnets.WIDTH_MULTIPLIER == 1 else f", {resnets.WIDTH_MULTIPLIER:g} times the width"
    stem = f", stem {resnets.STEM}" if "STEM" in resnets else ""
    return f"{trunk.NAME} of depth {resnets.DEPTH}{width}{stem}" if "resnet" in trunk.NAME else trunk.NAME


def _heads(parameters: Sequence[Any]) -> str:
    names = []
    for head in parameters:
        modules = [head] if len(head) and isinstance(head[0], str) else head
        names.append(" - ".join(arguments.get("branch", name) for name, arguments in modules))
    return ", ".join(names)


def _loss(config: Any) -> str:
    cls = pirl_loss_class(config)
    if cls is None:
        return config.LOSS.name
    # As the loss will read them, with its defaults for omitted keys.
    parameters = {**inspect.signature(PIRLLoss).parameters, **inspect.signature(cls).parameters}
    given = {name: parameter.default for name, parameter in parameters.items()} | dict(pirl_loss_settings(config))
    number = "" if given["negatives"] == "all" else f" N = {given['num_negatives']}"
    bank = given["memory_bank"] or {}
    return (
        f"{config.LOSS.name}, {given['contrast']}, negatives {given['negatives']}{number}, "
        f"tau {given['temperature']:g}, lambda {given['lambda_']:g}, "
        f"{bank.get('name', 'memory_bank')} of {bank.get('dtype', 'float32')}"
    )


def _filling(config: Any) -> str:
    """What the first epoch does with `fill_first`: no step of it has a loss."""
    settings = dict(pirl_loss_settings(config)) if pirl_loss_class(config) is not None else {}
    if not (settings.get("memory_bank") or {}).get("fill_first"):
        return ""
    alone = config.OPTIMIZER.num_epochs == 1
    left = ", so nothing is trained: give config.OPTIMIZER.num_epochs=2 or more" if alone else ""
    return f"; the first epoch fills the memory bank alone{left}"


def _learning_rate(schedule: Any) -> str:
    return f"learning rate {_rates(schedule)} ({schedule.name}, by {schedule.update_interval})"


def _rates(schedule: Any) -> str:
    name = schedule["name"]
    if name in ("cosine", "linear"):
        return f"{schedule['start_value']:g} to {schedule['end_value']:g}"
    if name == "multistep":
        return ", ".join(f"{value:g}" for value in schedule["values"]) + f" at epochs {list(schedule['milestones'])}"
    if name == "composite":
        parts = zip(schedule["schedulers"], schedule["lengths"], strict=True)
        return ", then ".join(
            f"{_rates(part)} in {100 * length:g}% of the steps ({part['name']})" for part, length in parts
        )
    return "as given"


def _step(trainer: Any) -> str:
    if trainer.TRAIN_STEP_NAME != "pirl_train_step":
        return trainer.TRAIN_STEP_NAME
    settings = StepSettings.from_config(trainer.get("PIRL_TRAIN_STEP", {}))
    parts = "" if settings.accumulation_steps == 1 else f", in {settings.accumulation_steps} parts"
    layout = ", channels last" if settings.channels_last else ""
    return f"pirl_train_step, {settings.precision}{layout}{', compiled' if settings.compile else ''}{parts}"
