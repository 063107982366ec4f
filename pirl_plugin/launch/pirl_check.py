"""For a run with PIRL's loss: checks that loss, views, heads and data fit together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

from pirl_plugin.data.image_files import list_images
from pirl_plugin.host.loss_settings import pirl_loss_class, pirl_loss_settings
from pirl_plugin.launch.model_config import model_inputs, pirl_heads_of, trunk_channels
from pirl_plugin.launch.step_check import check_step
from pirl_plugin.launch.trunk_trial import check_other_trunk
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.trunks import LAYOUTS, STEMS
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.objective.memory_bank import MEMORY_BANKS
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS, PretextTransform
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.validation import (
    ConfigError,
    check_choice,
    check_integer,
    check_keys,
    check_number,
    keyword_arguments,
)


def check_pirl(config: Any) -> None:
    """Raise if a config's parts do not fit together for PIRL.

    Args:
        config: the `config` node, whose loss is PIRLLoss or a subclass.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    check_step(config)
    loss = _trial_loss(config)
    _check_data(config)
    _check_trunk(config)
    task = _pretext_task(config)
    _check_inputs(config, loss, task)
    check_other_trunk(config, task)
    heads = list(pirl_heads_of(config))
    inputs = model_inputs(config)
    if len(heads) != len(inputs) or len(config.MODEL.HEAD.PARAMS) != len(inputs):
        raise ConfigError(
            f"MODEL.HEAD.PARAMS has {len(config.MODEL.HEAD.PARAMS)} heads, of which {len(heads)} pirl_heads; the "
            f"inputs {inputs} need one pirl_heads each."
        )
    channels = trunk_channels(config)
    for key, head in heads:
        _check_head(config, key, head, loss, task, channels)


def _trial_loss(config: Any) -> PIRLLoss:
    """The run's loss, built to check all of its settings.

    The plugin's own banks, whose settings do not depend on the number of images, are tried with two rows; a user's own
    bank with one row per image.
    """
    cls, given = pirl_loss_class(config), pirl_loss_settings(config)
    assert cls is not None
    bank = given.get("memory_bank")
    trial = {**given, "num_train_samples": 2}
    if isinstance(bank, Mapping):
        rows = bank.get("initial_rows")
        if rows is not None and not os.path.isfile(str(rows)):
            raise ConfigError(f"pirl_loss.memory_bank.initial_rows is {rows!r}; there is no such checkpoint file.")
        known = MEMORY_BANKS.find(bank.get("name", "memory_bank"), "pirl_loss.memory_bank.name")
        if known.__module__.startswith("pirl_plugin."):
            trial["memory_bank"] = {key: value for key, value in bank.items() if key != "initial_rows"}
        else:
            trial["num_train_samples"] = _number_of_images(config)
    if trial["num_train_samples"] == 2 and isinstance(given.get("num_negatives"), int) and given.num_negatives > 0:
        trial["num_negatives"] = 1
    return cls.from_config(trial)


def _number_of_images(config: Any) -> int:
    """|D|, counted before VISSL does; 2 if the data are not files that can be counted here."""
    train = config.DATA.TRAIN
    if not train.DATA_PATHS or train.DATA_SOURCES[0] not in ("image_files", "disk_folder"):
        return 2
    number = len(list_images(train.DATA_PATHS[0]))
    return number if train.DATA_LIMIT == -1 else min(number, train.DATA_LIMIT)


def _check_data(config: Any) -> None:
    train, name = config.DATA.TRAIN, config.LOSS.name
    if config.TEST_MODEL:
        raise ConfigError(
            f"TEST_MODEL is true, but {name} knows only the training images (its bank has no row for a test "
            f"image); set TEST_MODEL to false and evaluate the checkpoint with a benchmark config."
        )
    if len(train.DATA_SOURCES) != 1 or train.ENABLE_QUEUE_DATASET:
        raise ConfigError(
            f"DATA.TRAIN.DATA_SOURCES is {train.DATA_SOURCES} and ENABLE_QUEUE_DATASET {train.ENABLE_QUEUE_DATASET}; "
            f"{name} needs one source, and no queue (which would replace a broken image by another one)."
        )
    share = train.get("LARGEST_UNREADABLE_SHARE", 1.0)
    check_number(share, "DATA.TRAIN.LARGEST_UNREADABLE_SHARE", 0, 1, above=True)
    check_integer(train.get("LARGEST_UNREADABLE_BATCHES", 3), "DATA.TRAIN.LARGEST_UNREADABLE_BATCHES", 1)
    for key, value in (
        ("COLLATE_FUNCTION", "pirl_collator"),
        ("INPUT_KEY_NAMES", model_inputs(config)),
        ("TARGET_KEY_NAMES", ["image_index"]),
    ):
        if train[key] != value:
            raise ConfigError(f"DATA.TRAIN.{key} is {train[key]!r}; {name} needs {value!r}.")


def _check_trunk(config: Any) -> None:
    trunk = config.MODEL.TRUNK
    check_choice(trunk.NAME, MODEL_TRUNKS_REGISTRY, "MODEL.TRUNK.NAME")
    if trunk.NAME == "pirl_resnet":
        check_choice(trunk.RESNETS.DEPTH, LAYOUTS, "MODEL.TRUNK.RESNETS.DEPTH")
        check_choice(trunk.RESNETS.get("STEM", "imagenet"), STEMS, "MODEL.TRUNK.RESNETS.STEM")


def _pretext_task(config: Any) -> PretextTransform:
    """The one pretext transform of the run."""
    transforms = config.DATA.TRAIN.TRANSFORMS
    names = [transform.get("name") for transform in transforms]
    tasks = [name for name in names if name in PRETEXT_TRANSFORMS]
    if len(names) != 1 or not tasks:
        raise ConfigError(
            f"DATA.TRAIN.TRANSFORMS is {names}; {config.LOSS.name} needs exactly one pretext transform, which yields "
            f"all views ready for the network: one of {', '.join(sorted(PRETEXT_TRANSFORMS))}."
        )
    return PRETEXT_TRANSFORMS[tasks[0]].from_config(transforms[0])


def _check_inputs(config: Any, loss: PIRLLoss, task: PretextTransform) -> None:
    """Check the model's inputs: the image and, if the task makes views, those."""
    mapped = [key for key, _ in config.MODEL.MULTI_INPUT_HEAD_MAPPING]
    if mapped not in (["images", "pretext"], []):
        raise ConfigError(
            f"MODEL.MULTI_INPUT_HEAD_MAPPING maps {mapped}; {config.LOSS.name} needs ['images', 'pretext'], in that "
            f"order, or no mapping at all ([]) for the image only."
        )
    if loss.lambda_ > 0 and "pretext" not in mapped:
        raise ConfigError(f"pirl_loss.lambda_ is {loss.lambda_}, which needs a head for the input `pretext`.")
    if ("pretext" in mapped) != (task.num_views > 0):
        raise ConfigError(
            f"{task.name} yields {task.num_views} pretext views, but MODEL.MULTI_INPUT_HEAD_MAPPING maps {mapped}; "
            f"with image_view_transform it must be [], with any other task map ['images', 'pretext']."
        )


def _check_head(
    config: Any, key: str, head: dict[str, Any], loss: PIRLLoss, task: PretextTransform, channels: int | None
) -> None:
    """Check one pirl_heads: its branch, its channels (the trunk's, if known) and its dimension."""
    branch, dim = head.get("branch"), head.get("embedding_dim", 128)
    wanted = "image" if key == "images" else task.branch
    if branch != wanted:
        raise ConfigError(
            f"The head of `{key}` is pirl_heads with branch {branch!r}; {task.name} needs branch {wanted!r}."
        )
    check_keys(head, keyword_arguments(PIRLHead), "pirl_heads")
    batch, parts = config.DATA.TRAIN.BATCHSIZE_PER_REPLICA, StepSettings.of_run(config).accumulation_steps
    if PIRLHead(**head).batch_norm and batch // parts < 2:
        in_parts = f" in {parts} parts (TRAINER.PIRL_TRAIN_STEP.accumulation_steps)" * (parts > 1)
        raise ConfigError(
            f"pirl_heads.batch_norm is true, and DATA.TRAIN.BATCHSIZE_PER_REPLICA {batch}{in_parts} has no variance: "
            f"give at least {2 * parts}."
        )
    if channels is not None and head["in_channels"] != channels:
        raise ConfigError(
            f"pirl_heads.in_channels ({branch}) is {head['in_channels']}, but the trunk gives {channels} features "
            f"per view; leave in_channels out, and it is filled in."
        )
    if dim != loss.embedding_dim:
        raise ConfigError(
            f"pirl_heads.embedding_dim ({branch}) is {dim}, but pirl_loss.embedding_dim is "
            f"{loss.embedding_dim}; they must be equal."
        )
    if key == "pretext" and branch != "jigsaw" and task.num_views != 1:
        raise ConfigError(
            f"{task.name} yields {task.num_views} views, but branch {branch!r} of pirl_heads reads one; several "
            f"are combined by branch 'jigsaw'."
        )
    if branch == "jigsaw" and head.get("num_patches", 9) != task.num_views:
        raise ConfigError(
            f"pirl_heads.num_patches is {head.get('num_patches', 9)}, but {task.name} yields "
            f"{task.num_views} patches (grid_size squared); they must be equal."
        )
