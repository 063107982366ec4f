"""What must agree in a config before anything is loaded, and what the launcher fills in."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY
from vissl.utils.checkpoint import get_checkpoint_folder

from pirl_plugin.data.image_files import EXTENSIONS, walk_images
from pirl_plugin.launch.initial_weights import check_initial_weights
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.trunks import LAYOUTS, STEMS, feature_channels
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS
from pirl_plugin.training import checkpoint_folder
from pirl_plugin.training.monitor import MonitorSettings
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.validation import ConfigError, check_choice, check_integer, check_keys, check_number, keyword_arguments


def complete(config: DictConfig) -> None:
    """Fill in what the plugin's parts take from elsewhere in the config.

    CHECKPOINT.DIR becomes an absolute path. `pirl_loss` gets the seed and the most images a rank has in a step; each
    `pirl_heads` without in_channels gets the features of the trunk, where that is one of the ResNets.
    """
    if isinstance(config.CHECKPOINT.DIR, str) and "://" not in config.CHECKPOINT.DIR:
        # VISSL links checkpoint.torch to the newest file by this path, which from within the folder must be whole.
        config.CHECKPOINT.DIR = os.path.abspath(config.CHECKPOINT.DIR)
    channels = _trunk_channels(config)
    for _, head in _heads(config):
        if head.get("in_channels") is None and channels is not None:
            with open_dict(head):
                head["in_channels"] = channels
    if config.LOSS.name != "pirl_loss":
        return
    if not OmegaConf.is_dict(config.LOSS.get("pirl_loss")):
        raise ConfigError("LOSS.name is pirl_loss, but there is no LOSS.pirl_loss with its settings; {} will do.")
    loss = config.LOSS.pirl_loss
    with open_dict(loss):
        if loss.get("seed") is None:
            loss.seed = config.SEED_VALUE
        loss.num_train_samples = -1  # VISSL fills it in where it is there
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


def _trunk_channels(config: Any) -> int | None:
    """Channels of res5, where the trunk is one of the ResNets."""
    trunk = config.MODEL.TRUNK
    if trunk.NAME == "resnet":
        return round(2048 * trunk.RESNETS.WIDTH_MULTIPLIER)
    if trunk.NAME == "pirl_resnet" and trunk.RESNETS.DEPTH in LAYOUTS:
        return feature_channels(trunk.RESNETS.DEPTH, trunk.RESNETS.WIDTH_MULTIPLIER)["res5"]
    return None


def check_config(config: Any) -> None:
    """Refuse a config that cannot train as it says.

    Args:
        config: the `config` node (VISSL's AttrDict), before VISSL infers anything from it.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    _check_data(config)
    if config.LOSS.name == "pirl_loss":
        _check_pirl(config)


def _check_data(config: Any) -> None:
    check_integer(config.DATA.TRAIN.BATCHSIZE_PER_REPLICA, "DATA.TRAIN.BATCHSIZE_PER_REPLICA", 1)
    for split in ("TRAIN", "TEST"):
        data = config.DATA[split]
        sources, paths = data.DATA_SOURCES, data.DATA_PATHS
        if isinstance(paths, str):
            raise ConfigError(f"DATA.{split}.DATA_PATHS is {paths!r}; it must be a list, [{paths}].")
        if paths and len(paths) != len(sources):
            raise ConfigError(
                f"DATA.{split}.DATA_PATHS has {len(paths)} entries and DATA_SOURCES {len(sources)}; "
                f"they must be as many."
            )
        for source, path in zip(sources, paths, strict=False):
            if source in ("image_files", "disk_folder"):
                _check_folder(f"DATA.{split}.DATA_PATHS", str(path), source)


def warn_of_learning_rate(config: Any) -> None:
    """Say so where the learning rate does not follow the linear scaling rule that the config states."""
    schedule = config.OPTIMIZER.param_schedulers.lr
    scaling = schedule.auto_lr_scaling
    batch = (
        config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * config.DISTRIBUTED.NUM_NODES * config.DISTRIBUTED.NUM_PROC_PER_NODE
    )
    given = schedule["values"][0] if schedule.name == "multistep" else schedule.start_value
    expected = scaling.base_value * batch / scaling.base_lr_batch_size
    if scaling.auto_scale or schedule.name not in ("cosine", "linear", "multistep"):
        return  # VISSL scales
    if abs(given - expected) > 0.01 * expected:
        logging.warning(
            f"The learning rate starts at {given:g}, but for the global batch of {batch} images the linear scaling "
            f"rule ({scaling.base_value:g} for {scaling.base_lr_batch_size}) gives {expected:g}, and "
            f"OPTIMIZER.param_schedulers.lr.auto_lr_scaling.auto_scale is false."
        )


def _check_folder(key: str, path: str, source: str) -> None:
    if source == "image_files" and os.path.isfile(path) and path.endswith((".txt", ".npy")):
        return
    if not os.path.isdir(path):
        raise ConfigError(f"{key} is {path!r}; there is no such folder (or .txt or .npy list) of images.")
    if next(walk_images(path), None) is None:
        raise ConfigError(f"{key} is {path!r}, which holds no image; it needs files ending in {', '.join(EXTENSIONS)}.")


def check_machine(config: Any) -> None:
    """Refuse a run that this machine or the files it names cannot serve.

    Raises:
        ConfigError: one sentence with key, value and what would be right.
    """
    distributed, weights = config.DISTRIBUTED, config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    if distributed.NUM_NODES > 1 and distributed.INIT_METHOD == "tcp" and distributed.RUN_ID == "auto":
        raise ConfigError(
            f"DISTRIBUTED.RUN_ID is 'auto', but {distributed.NUM_NODES} nodes must be told where to meet: give the "
            f"first node's address, config.DISTRIBUTED.RUN_ID=<host>:<port>."
        )
    if config.MACHINE.DEVICE == "gpu" and torch.cuda.device_count() < distributed.NUM_PROC_PER_NODE:
        raise ConfigError(
            f"DISTRIBUTED.NUM_PROC_PER_NODE is {distributed.NUM_PROC_PER_NODE}, but this machine has "
            f"{torch.cuda.device_count()} usable GPUs; lower it, or set config.MACHINE.DEVICE=cpu and "
            f"config.DISTRIBUTED.BACKEND=gloo."
        )
    if weights and checkpoint_folder.newest(config, get_checkpoint_folder(config)) is None:  # else a run goes on
        check_initial_weights(config)


def _inputs(config: Any) -> list[str]:
    """The inputs of the model; VISSL knows no mapping for a single one."""
    mapping = config.MODEL.MULTI_INPUT_HEAD_MAPPING
    for pair in mapping:
        if isinstance(pair, (str, Mapping, DictConfig)) or len(pair) != 2:
            raise ConfigError(
                f"MODEL.MULTI_INPUT_HEAD_MAPPING has the entry {pair!r}; each must be a pair of an input and its "
                f"layers, as [images, [flatten]]."
            )
    return [key for key, _ in mapping] or ["images"]


def _heads(config: Any) -> Iterator[tuple[str, dict]]:
    """(input key, arguments) of every pirl_heads in the model."""
    parameters = config.MODEL.HEAD.PARAMS
    heads = parameters if config.MODEL.MULTI_INPUT_HEAD_MAPPING else [parameters]
    for key, head in zip(_inputs(config), heads, strict=False):
        modules = [head] if len(head) and isinstance(head[0], str) else head
        for name, arguments in modules:
            if name == "pirl_heads":
                yield key, arguments


def _check_step(config: Any) -> None:
    trainer = config.TRAINER
    settings = StepSettings.from_config(trainer.get("PIRL_TRAIN_STEP", {}))
    own = trainer.TRAIN_STEP_NAME == "pirl_train_step"
    if own and trainer.TASK_NAME != "pirl_task":
        raise ConfigError(
            f"TRAINER.TASK_NAME is {trainer.TASK_NAME!r}; TRAIN_STEP_NAME pirl_train_step needs pirl_task."
        )
    if not own and settings != StepSettings(channels_last=settings.channels_last):
        raise ConfigError(
            f"TRAINER.TRAIN_STEP_NAME is {trainer.TRAIN_STEP_NAME!r}, but TRAINER.PIRL_TRAIN_STEP asks for more than "
            f"that can do; set it to pirl_train_step."
        )
    for key in ("CHECKPOINT_FREQUENCY", "KEEP_LAST", "CHECKPOINT_ITER_FREQUENCY"):
        value = config.CHECKPOINT.get(key)
        if not (value is None and key == "KEEP_LAST") and not (value == -1 and key == "CHECKPOINT_ITER_FREQUENCY"):
            check_integer(value, f"CHECKPOINT.{key}", 1)
    if not own and config.CHECKPOINT.get("KEEP_LAST") is not None:
        raise ConfigError(
            f"CHECKPOINT.KEEP_LAST is {config.CHECKPOINT.KEEP_LAST}, which TRAINER.TRAIN_STEP_NAME "
            f"{trainer.TRAIN_STEP_NAME!r} does not know; set it to null, or the step to pirl_train_step."
        )
    monitor = MonitorSettings.from_config(config.HOOKS.get("PIRL_MONITOR", {}))
    if not own:
        if monitor != MonitorSettings():
            raise ConfigError(
                "HOOKS.PIRL_MONITOR is not as it comes, which needs TRAINER.TRAIN_STEP_NAME pirl_train_step; leave it, "
                "or set the step to pirl_train_step."
            )
        return
    monitor.images()
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


def _check_pirl(config: Any) -> None:
    loss, train = config.LOSS.pirl_loss, config.DATA.TRAIN
    _check_step(config)
    # Every setting of the loss but the number of images, on a bank of two rows.
    trial = {**loss, "num_train_samples": 2}
    if isinstance(loss.get("memory_bank"), Mapping):
        rows = loss.memory_bank.get("initial_rows")
        trial["memory_bank"] = {key: value for key, value in loss.memory_bank.items() if key != "initial_rows"}
        if rows is not None and not os.path.isfile(str(rows)):
            raise ConfigError(f"pirl_loss.memory_bank.initial_rows is {rows!r}; there is no such checkpoint file.")
    if isinstance(loss.get("num_negatives"), int) and loss.num_negatives > 0:
        trial["num_negatives"] = 1
    settings = PIRLLoss.from_config(trial)
    if config.TEST_MODEL:
        raise ConfigError(
            "TEST_MODEL is true, but pirl_loss knows the training images only (its bank has no row for a test "
            "image); set TEST_MODEL to false and evaluate the checkpoint with a benchmark config."
        )
    if len(train.DATA_SOURCES) != 1 or train.ENABLE_QUEUE_DATASET:
        raise ConfigError(
            f"DATA.TRAIN.DATA_SOURCES is {train.DATA_SOURCES} and ENABLE_QUEUE_DATASET {train.ENABLE_QUEUE_DATASET}; "
            f"pirl_loss needs one source, and no queue (which would train on another image in place of a broken one)."
        )
    share = train.get("LARGEST_UNREADABLE_SHARE", 1.0)
    check_number(share, "DATA.TRAIN.LARGEST_UNREADABLE_SHARE", 0, 1, above=True)
    keys = _inputs(config)
    for key, value in (
        ("COLLATE_FUNCTION", "pirl_collator"),
        ("INPUT_KEY_NAMES", keys),
        ("TARGET_KEY_NAMES", ["image_index"]),
    ):
        if train[key] != value:
            raise ConfigError(f"DATA.TRAIN.{key} is {train[key]!r}; pirl_loss needs {value!r}.")
    trunk = config.MODEL.TRUNK
    check_choice(trunk.NAME, MODEL_TRUNKS_REGISTRY, "MODEL.TRUNK.NAME")
    if trunk.NAME == "pirl_resnet":
        check_choice(trunk.RESNETS.DEPTH, LAYOUTS, "MODEL.TRUNK.RESNETS.DEPTH")
        check_choice(trunk.RESNETS.get("STEM", "imagenet"), STEMS, "MODEL.TRUNK.RESNETS.STEM")
    names = [transform.get("name") for transform in train.TRANSFORMS]
    tasks = [name for name in names if name in PRETEXT_TRANSFORMS]
    if len(names) != 1 or not tasks:
        raise ConfigError(
            f"DATA.TRAIN.TRANSFORMS is {names}; pirl_loss needs exactly one pretext transform, which yields all "
            f"views ready for the network: one of {', '.join(sorted(PRETEXT_TRANSFORMS))}."
        )
    task = PRETEXT_TRANSFORMS[tasks[0]].from_config(train.TRANSFORMS[0])
    mapped = [key for key, _ in config.MODEL.MULTI_INPUT_HEAD_MAPPING]
    if mapped not in (["images", "pretext"], []):
        raise ConfigError(
            f"MODEL.MULTI_INPUT_HEAD_MAPPING maps {mapped}; pirl_loss needs ['images', 'pretext'], in that order, or "
            f"no mapping at all ([]) for the image alone."
        )
    if settings.lambda_ > 0 and "pretext" not in keys:
        raise ConfigError(f"pirl_loss.lambda_ is {settings.lambda_}, which needs a head for the input `pretext`.")
    if ("pretext" in keys) != (task.num_views > 0):
        raise ConfigError(
            f"{task.name} yields {task.num_views} pretext views, but MODEL.MULTI_INPUT_HEAD_MAPPING maps {mapped}; "
            f"with image_view_transform it must be [], with any other task map ['images', 'pretext']."
        )
    branches = [head.get("branch") for _, head in _heads(config)]
    if len(branches) != len(keys) or len(config.MODEL.HEAD.PARAMS) != len(keys):
        raise ConfigError(
            f"MODEL.HEAD.PARAMS has {len(config.MODEL.HEAD.PARAMS)} heads, of which {len(branches)} pirl_heads; the "
            f"inputs {keys} need one pirl_heads each."
        )
    for key, head in _heads(config):
        branch, dim = head.get("branch"), head.get("embedding_dim", 128)
        wanted = "image" if key == "images" else task.branch
        if branch != wanted:
            raise ConfigError(
                f"The head of `{key}` is pirl_heads with branch {branch!r}; {task.name} needs branch {wanted!r}."
            )
        check_keys(head, keyword_arguments(PIRLHead) - {"model_config"}, "pirl_heads")
        PIRLHead(None, **head)
        channels = _trunk_channels(config)
        if channels is not None and head["in_channels"] != channels:
            raise ConfigError(
                f"pirl_heads.in_channels ({branch}) is {head['in_channels']}, but the trunk gives {channels} features "
                f"a view; leave in_channels out, and it is filled in."
            )
        if dim != settings.embedding_dim:
            raise ConfigError(
                f"pirl_heads.embedding_dim ({branch}) is {dim}, but pirl_loss.embedding_dim is "
                f"{settings.embedding_dim}; they must be equal."
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
