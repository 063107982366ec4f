"""Fine-tuning a classifier from a checkpoint: the whole network, on your own labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pirl_plugin.data.class_folders import check_splits, labelled_class_folders
from pirl_plugin.experiments.recipe import Machine, launch_with, override_value
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.trunks import feature_channels
from pirl_plugin.network.weights import Architecture, load_trunk
from pirl_plugin.validation import ConfigError, check_integer, check_seed

CONFIG = "benchmark/semi_supervised/small_images_cpu"


def finetuning(
    network: Architecture,
    wanted: Preprocessing,
    checkpoint: Path | None,
    train: Path,
    test: Path,
    output: Path,
    epochs: int,
    seed: int,
    machine: Machine,
) -> list[str]:
    """The launcher's arguments for fine-tuning a network.

    Args:
        network: its trunk.
        wanted: the images that it was trained on.
        checkpoint: a checkpoint of VISSL's trainer with its weights; None to train from scratch.
        train, test: images with one sub-folder per class, the same classes in both.
        output: CHECKPOINT.DIR.
        epochs: at least 1.
        seed: seed of the order, the crops and the new classifier.
        machine: the machine that trains.

    Raises:
        ConfigError: if the folders have different classes.
    """
    check_splits(train, test)
    classes = len(labelled_class_folders(train))
    channels = feature_channels(network.depth, network.width_multiplier)["res5"]
    overrides = [
        f"config={CONFIG}",
        f"config.DATA.TRAIN.DATA_PATHS=[{override_value(train)}]",
        f"config.DATA.TEST.DATA_PATHS=[{override_value(test)}]",
        f"config.CHECKPOINT.DIR={override_value(output)}",
        f"config.SEED_VALUE={check_seed(seed, '--seed')}",
        f"config.OPTIMIZER.num_epochs={check_integer(epochs, '--epochs', 1)}",
        f"config.MODEL.TRUNK.RESNETS.DEPTH={network.depth}",
        f"config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER={network.width_multiplier:g}",
        f"config.MODEL.TRUNK.RESNETS.STEM={network.stem}",
        f"config.MODEL.TRUNK.RESNETS.GROUPS={network.groups}",
        f"config.MODEL.TRUNK.RESNETS.WIDTH_PER_GROUP={network.width_per_group}",
        f"config.MODEL.HEAD.PARAMS.0.1.dims=[{channels},{classes}]",
        f"config.DATA.TRAIN.TRANSFORMS.0.size={wanted.size}",
        f"config.DATA.TEST.TRANSFORMS.0.size={wanted.resize}",
        f"config.DATA.TEST.TRANSFORMS.1.size={wanted.size}",
    ]
    for split in ("TRAIN", "TEST"):
        for key, levels in (("mean", wanted.mean), ("std", wanted.std)):
            overrides.append(f"config.DATA.{split}.TRANSFORMS.3.{key}=[{','.join(map(str, levels))}]")
    if checkpoint is not None:
        overrides.append(f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={override_value(checkpoint)}")
    if machine.kind == "gpu":
        workers = max(2, min(14, machine.cores - 1))
        overrides += ["config.MACHINE.DEVICE=gpu", "config.DISTRIBUTED.BACKEND=nccl",
                      f"config.DATA.NUM_DATALOADER_WORKERS={workers}"]  # fmt: skip
    return overrides


def finetune(
    checkpoint: Path,
    train: Path,
    test: Path,
    output: Path | None = None,
    epochs: int = 20,
    seed: int = 0,
    from_scratch: bool = False,
    others: Sequence[str] = (),
    dry_run: bool = False,
) -> None:
    """Print the launcher's command for fine-tuning a checkpoint, and run it.

    Args:
        output: the checkpoint folder; None for runs/finetune_<folder of the checkpoint>.
        from_scratch: train the same network from random weights, for comparison.
        others: overrides that take precedence.
        dry_run: only print the command.

    Raises:
        ConfigError: for errors that the user can fix.
    """
    checkpoint = checkpoint.absolute()
    trunk = load_trunk(checkpoint)
    if not isinstance(trunk.architecture, Architecture):
        raise ConfigError(f"{checkpoint} holds {trunk.architecture}; fine-tuning here supports only ResNets.")
    name = f"{'scratch' if from_scratch else 'finetune'}_{checkpoint.parent.name}"
    folder = (output or Path("runs") / name).absolute()
    start = None if from_scratch else checkpoint
    overrides = finetuning(
        trunk.architecture, trunk.preprocessing, start, train.absolute(), test.absolute(), folder, epochs, seed,
        Machine.here(),
    )  # fmt: skip
    launch_with(overrides, others, dry_run)
