"""Checks that all ranks agree before the first step, and that a resumed run agrees with its checkpoint.

Ranks whose settings, versions or images differ would train to the end without complaint, because gradients are
averaged in any case. Each check costs a collective of a few bytes; values are exchanged only if it fails.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from pirl_plugin.data.image_files import files_identity
from pirl_plugin.distributed import collective_device, smallest_and_largest_over_ranks, world_size
from pirl_plugin.validation import ConfigError

# Config keys that may differ between nodes: paths, and settings that do not affect results.
OF_THE_NODE = re.compile(
    r"CHECKPOINT\.DIR|DATA\.\w+\.(DATA|LABEL)_PATHS.*|DATA\.(NUM_DATALOADER_WORKERS|PIN_MEMORY)|DISTRIBUTED\.RUN_ID|"
    r"EXTRACT_FEATURES\.OUTPUT_DIR|MODEL\.WEIGHTS_INIT\.PARAMS_FILE|LOSS\.\w+\.memory_bank\.(folder|initial_rows)|"
    r"SLURM\..*|HOOKS\.PIRL_MONITOR\.knn_(train|test)"
)
# Config keys that define a run; a resumed run reports changes of them.
OF_THE_RUN = re.compile(r"(LOSS|OPTIMIZER|MODEL\.(TRUNK|HEAD)|DATA\.TRAIN|TRAINER)\..*|DISTRIBUTED\.NUM_\w+|SEED_VALUE")
# Config keys that VISSL sets itself when it builds the loss.
OF_VISSL = re.compile(r"LOSS\.\w+\.(num_train_samples|name)")


def flattened(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a config."""
    if isinstance(node, Mapping):
        for key in node:
            yield from flattened(node[key], f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, (list, tuple)) and any(isinstance(one, (Mapping, list, tuple)) for one in node):
        for number, one in enumerate(node):
            yield from flattened(one, f"{prefix}.{number}")
    else:
        yield prefix, list(node) if isinstance(node, tuple) else node


def versions() -> dict[str, str]:
    """Versions of the software that computes."""
    names = ("pirl_plugin", "vissl", "torch", "torchvision")
    found = {f"version of {name}": _version(name) for name in names}
    return {**found, "version of Python": ".".join(platform.python_version_tuple()[:2])}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def settings(config: Any) -> dict[str, str]:
    """The resolved config of a run and the versions, without node-specific keys: by key, as text."""
    keys = {key: repr(value) for key, value in flattened(config) if not OF_THE_NODE.fullmatch(key)}
    return {**keys, **versions()}


def _digest(value: Any) -> int:
    """A hash as int64: different values almost surely have different ones."""
    text = json.dumps(value, sort_keys=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True) >> 1


def agree(what: str, own: Mapping[str, str]) -> None:
    """Raise if ranks differ in `own`; every rank must call this.

    Raises:
        ConfigError: on every rank, naming the first key that differs, and two ranks with their values.
    """
    lowest, highest = smallest_and_largest_over_ranks(torch.tensor(_digest(dict(own)), device=collective_device()))
    if lowest == highest:
        return
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, dict(own))
    for key in sorted({key for one in everyone for key in one}):
        values = [one.get(key, "not set") for one in everyone]
        other = next((number for number, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise ConfigError(
                f"The ranks differ in {what}: {key} is {values[0]} on rank 0 and {values[other]} on rank {other}; "
                f"start all nodes with the same."
            )


def agree_on_settings(config: Any) -> None:
    """Check that all ranks have the same config and versions.

    Raises:
        ConfigError: as `agree`.
    """
    agree("their settings", settings(config))


def choose_checkpoint(path: str | None) -> str | None:
    """The first rank's checkpoint, for all ranks: nodes without a shared folder may have found another, or none."""
    if world_size() == 1:
        return path
    chosen = [path]
    dist.broadcast_object_list(chosen, device=collective_device())
    return chosen[0]


def images_identity(dataset: Any) -> dict[str, str]:
    """How many images a data set has, and a hash of their names in order; {} if its source has no files."""
    try:
        (source, *_) = dataset.data_objs
        files = source.files if hasattr(source, "files") else dataset.get_image_paths()[0]
    except (ValueError, AttributeError):
        return {}
    return {"number of images": str(len(files)), "names of the images": files_identity(files)}


def agree_on_images(datasets: Mapping[str, Any]) -> dict[str, str]:
    """Check that all ranks have the same images in the same order; returns `images_identity` of the training images.

    Raises:
        ConfigError: as `agree`.
    """
    identities = {split: images_identity(dataset) for split, dataset in datasets.items()}
    agree("their images", {f"{split}: {key}": one for split, keys in identities.items() for key, one in keys.items()})
    return identities.get("train", {})


def check_same_images(saved: Mapping[str, Any], now: Mapping[str, str], accepted: bool) -> None:
    """Raise if the images are not the checkpoint's: row i of its memory bank is image i.

    Args:
        saved: the identity in the checkpoint; {} if it has none.
        accepted: CHECKPOINT.RESUME_WITH_OTHER_IMAGES.

    Raises:
        ConfigError: naming what differs.
    """
    differ = [key for key in now if key in saved and saved[key] != now[key]]
    if not differ or (accepted and "number of images" not in differ):
        return
    meant = ", or confirm the change by config.CHECKPOINT.RESUME_WITH_OTHER_IMAGES=True"
    raise ConfigError(
        f"The checkpoint has other images: their {differ[0]} was {saved[differ[0]]} and is {now[differ[0]]} (a file "
        f"was renamed, moved to another folder, added or deleted, or a list has another order), so that rows of the "
        f"memory bank would belong to other images; restore them{meant if 'number of images' not in differ else ''}."
    )


def _defines_a_run(key: str) -> bool:
    return bool(OF_THE_RUN.fullmatch(key)) and not OF_THE_NODE.fullmatch(key) and not OF_VISSL.fullmatch(key)


def settings_of_the_run(config: Any) -> dict[str, str]:
    """The settings that a checkpoint stores, to report changes later."""
    return {key: repr(value) for key, value in flattened(config) if _defines_a_run(key)}


def changes_beside_the_machine(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each setting of a run in which two configs differ, without those that follow the machine.

    Args:
        saved, now: the contents of two train_config.yaml.
    """
    machine = r"DISTRIBUTED\..*|TRAINER\..*"
    if any(saved["DISTRIBUTED"].get(key) != now["DISTRIBUTED"][key] for key in ("NUM_NODES", "NUM_PROC_PER_NODE")):
        machine += r"|DATA\.TRAIN\.BATCHSIZE_PER_REPLICA|OPTIMIZER\.param_schedulers\..*"  # the batch, and its rate
    before, after = (
        {key: value for key, value in settings_of_the_run(config).items() if not re.fullmatch(machine, key)}
        for config in (saved, now)
    )
    return changes(before, after, "the run")


def other_files(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each key by which two runs name other images, labels or initial weights."""
    keys = [("DATA", split, key) for split in ("TRAIN", "TEST") for key in ("DATA_PATHS", "LABEL_PATHS")]
    lines = []
    for *above, key in (*keys, ("MODEL", "WEIGHTS_INIT", "PARAMS_FILE")):
        had, has = (
            functools.reduce(lambda node, one: node.get(one) or {}, above, run).get(key) for run in (before, now)
        )
        if _real_paths(had) != _real_paths(has):
            lines.append(f"{'.'.join([*above, key])} is {has or 'not set'}; the run had {had or 'none'}")
    return lines


def _real_paths(paths: Any) -> list[str]:
    return [os.path.realpath(path) for path in ([paths] if isinstance(paths, str) else paths or []) if path]


def changes(saved: Mapping[str, str], now: Mapping[str, str], whose: str = "the checkpoint's run") -> list[str]:
    """A line for each setting that differs from the saved ones; `whose` they are."""
    differ = [key for key in {**saved, **now} if _defines_a_run(key) and saved.get(key) != now.get(key)]
    keys = differ if saved else []
    return [f"{key} is {now.get(key, 'not set')}; {whose} had {saved.get(key, 'none')}" for key in keys]
