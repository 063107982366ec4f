"""Turns command-line overrides into a checked VISSL config, or raises with a sentence that says what is wrong."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from vissl.config import AttrDict
from vissl.utils.hydra_config import compose_hydra_configuration, convert_to_attrdict, save_attrdict_to_disk

from hydra_plugins.pirl_plugin_path import PirlPluginPath
from pirl_plugin.launch.config_check import check_config
from pirl_plugin.launch.config_completion import complete
from pirl_plugin.launch.value_check import check_values, warn_of_learning_rate
from pirl_plugin.paths import config_folder
from pirl_plugin.validation import ConfigError, nearest

# Keys for which null is a valid value.
MAY_BE_NULL = ("num_permutations", "num_transformations", "seed", "KEEP_LAST", "initial_rows", "in_channels")

# Keys that accept any number, though a config may give an integer.
ANY_NUMBER = ("WIDTH_MULTIPLIER",)

# In a default editable install Hydra does not find search-path plugins outside the checkout.
Plugins.instance().register(PirlPluginPath)


def compose(overrides: list[str], write_config: bool = False, check: bool = True) -> AttrDict:
    """Compose a run's full VISSL config (node_id, engine_name and `config`), checked and completed.

    Args:
        overrides: as on the command line, e.g. ["config=pretrain/pirl/jigsaw_8node", "config.SEED_VALUE=1"].
        write_config: write train_config.yaml into the checkpoint folder, as VISSL's launcher does.
        check: raise if the run could not train as configured, including its data.

    Raises:
        ConfigError: in one sentence, for an invalid override, name or value.
    """
    composed = _compose(overrides)
    _name_checkpoint_folder(overrides, composed.config)
    if check:
        _check_kinds(overrides, composed)
        check_values(AttrDict(OmegaConf.to_container(composed)).config)
    complete(composed.config)
    if check:
        check_config(AttrDict(OmegaConf.to_container(composed)).config)
        if composed.engine_name == "train":
            warn_of_learning_rate(composed.config)
    whole, _ = convert_to_attrdict(composed, dump_config=False)
    if write_config:
        write(whole.config)
    if composed.engine_name == "train":
        _warn_of_replaced_values(overrides, whole.config.OPTIMIZER.param_schedulers.lr)
    return whole


def make_folder(config: AttrDict) -> None:
    """Make a run's checkpoint folder; if that fails, VISSL would only call it invalid.

    Raises:
        OSError: if it cannot be made.
    """
    if "://" not in config.CHECKPOINT.DIR:
        os.makedirs(config.CHECKPOINT.DIR, exist_ok=True)


def write(config: AttrDict) -> None:
    """Write train_config.yaml of a composed config into its checkpoint folder, as VISSL's launcher does."""
    make_folder(config)
    save_attrdict_to_disk(_plain(config))


def as_written(config: AttrDict) -> dict[str, Any]:
    """What train_config.yaml of a composed config holds."""
    return yaml.safe_load(yaml.dump(_plain(config).to_dict()))


def _plain(config: AttrDict) -> AttrDict:
    plain = AttrDict(config.to_dict())
    fsdp = plain.MODEL.FSDP_CONFIG
    fsdp.compute_dtype = str(fsdp.compute_dtype).removeprefix("torch.")  # VISSL has turned the name into a dtype
    return plain


def default_folder(overrides: list[Override]) -> str:
    """The default checkpoint folder: runs/<name of the config>."""
    chosen = next((o for o in overrides if o.key_or_group == "config" and not o.is_sweep_override()), None)
    return f"runs/{chosen.value()}" if chosen is not None else "runs"


VISSLS_FOLDERS = ("", ".", "checkpoints", "./checkpoints")  # of its defaults and configs


def _name_checkpoint_folder(overrides: list[str], config: DictConfig) -> None:
    """Set the default folder; VISSL's own is the current folder, which checkpoints would clutter."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    given = any(override.key_or_group == "config.CHECKPOINT.DIR" for override in parsed)
    if config.CHECKPOINT.DIR in VISSLS_FOLDERS and not given:
        config.CHECKPOINT.DIR = default_folder(parsed)


def _check_kinds(overrides: list[str], composed: DictConfig) -> None:
    """Raise if an override has another type than the value it replaces: VISSL would fail on it much later.

    Raises:
        ConfigError: naming key, value and type.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    groups = tuple(str(override.input_line) for override in parsed if _is_group(override))
    values = [override for override in parsed if not _is_group(override)]
    if not values:
        return
    try:
        base = _without_values(groups, os.getcwd(), _last_edit())
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    _compare_kinds(values, base, composed)


def _last_edit() -> float:
    """When a YAML file of the plugin, or of a folder configs/ here, was last changed."""
    folders = (config_folder(), Path("configs"))
    return max((path.stat().st_mtime for folder in folders for path in folder.rglob("*.yaml")), default=0.0)


@functools.lru_cache(maxsize=16)
def _without_values(groups: tuple[str, ...], folder: str, last_edit: float) -> DictConfig:
    """The config of the groups alone, not to be changed.

    Args:
        groups: overrides that choose configs, such as config=pretrain/pirl/jigsaw_8node.
        folder: the current one, which may have configs of its own.
        last_edit: as `_last_edit` returns it.
    """
    return compose_hydra_configuration(list(groups))


def _compare_kinds(values: list[Override], base: DictConfig, composed: DictConfig) -> None:
    for override in values:
        key = override.key_or_group
        before, now = OmegaConf.select(base, key), OmegaConf.select(composed, key)
        if before is None or (now is None and key.rsplit(".", 1)[-1] in MAY_BE_NULL):
            continue
        wanted = _kind(before)
        if _kind(now) != wanted and not (wanted == "a number" and _kind(now) == "a whole number"):
            number = wanted == "a whole number" and _kind(now) == "a number"
            if number and (key.endswith(ANY_NUMBER) or (before in (0, 1, -1) and not isinstance(before, bool))):
                continue  # a whole number by chance
            hint = f"; in quotes, \"{key}='{now}'\", it is one" if wanted == "text" and now is not None else ""
            example = "" if OmegaConf.is_config(before) and len(before) > 3 else f", as {_shown(before)}"
            raise ConfigError(f"{key} is {_shown(now)}; it must be {wanted}{example}{hint}.")


def _kind(value: object) -> str:
    if OmegaConf.is_list(value):
        return "a list"
    if OmegaConf.is_dict(value):
        return "a mapping"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    return kinds.get(type(value), "another value")


def _shown(value: object) -> str:
    return repr(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)


def _warn_of_replaced_values(overrides: list[str], schedule: AttrDict) -> None:
    """Warn of an override that VISSL's learning-rate scaling replaces, or that its schedule does not read."""
    for override in OverridesParser.create().parse_overrides(overrides):
        prefix, _, key = override.key_or_group.rpartition(".")
        if prefix == "config.OPTIMIZER.param_schedulers.lr" and key in ("start_value", "end_value", "values"):
            value = override.value()
            if schedule.name == "composite":
                logging.warning(
                    f"{override.input_line} has no effect: {prefix}.name is composite, which reads only {prefix}."
                    f"schedulers; override those, or name another schedule, such as cosine."
                )
            elif schedule[key] != value and schedule.auto_lr_scaling.auto_scale:
                logging.warning(
                    f"{override.input_line} has no effect: VISSL scales the learning rate for the global batch and "
                    f"uses {schedule[key]}; override {prefix}.auto_lr_scaling.base_value, or set auto_scale there to "
                    f"false."
                )


def _compose(overrides: list[str]) -> DictConfig:
    try:
        return compose_hydra_configuration(overrides)
    except OverrideParseException as error:
        raise ConfigError(_explain_parse(error)) from error
    except MissingConfigException as error:
        raise ConfigError(_explain_missing(error)) from error
    except ConfigCompositionException as error:
        raise ConfigError(_explain_override(error, overrides)) from error
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    except TypeError as error:  # Hydra's own, for an entry of a list that is deleted
        raise ConfigError(f"The overrides {' '.join(overrides)} cannot be applied: {error}.") from error


def quote(value: object) -> str:
    """`value` as a quoted string of Hydra's override grammar, whatever characters it contains."""
    text = str(value)
    escaped = re.sub(r"(\\*)'", lambda match: match.group(1) * 2 + "\\'", text)
    return f"'{escaped}'"


def _explain_parse(error: OverrideParseException) -> str:
    return (
        f"Override {error.override!r} cannot be read; write key=value, with quotes around a value that has spaces, "
        f"brackets or letters beyond ASCII (\"key='value'\")."
    )


def _is_group(override: Override) -> bool:
    # Config groups are written config=a/b and +config/a/b=c; values are config.A.B=c.
    return "." not in override.key_or_group


def _explain_missing(error: MissingConfigException) -> str:
    wanted = error.missing_cfg_file or " ".join(str(error).split())
    name = wanted.removeprefix("config/")
    return (
        f"There is no config named {name!r}{nearest(name, config_names())}; "
        f"the plugin's are listed in docs/which_config.md and are in configs/config, VISSL's in its configs package."
    )


def config_names() -> list[str]:
    """Names of the plugin's own configs, for `config=<name>`."""
    folder = config_folder() / "config"
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _explain_override(error: ConfigCompositionException, overrides: list[str]) -> str:
    if not any(o.startswith(("config=", "+config=")) for o in overrides):
        return "No config is chosen; give one, such as config=pretrain/pirl/jigsaw_8node."
    parsed = OverridesParser.create().parse_overrides(overrides)
    try:
        base = _without_values(tuple(str(o.input_line) for o in parsed if _is_group(o)), os.getcwd(), _last_edit())
    except HydraException:
        base = None
    for override in parsed:
        if base is None or _is_group(override) or override.is_add() or override.is_force_add():
            continue
        node, path = base, list[str]()
        for part in override.key_or_group.split("."):
            if OmegaConf.is_list(node) and part.isdigit() and int(part) < len(node):
                node, path = node[int(part)], [*path, part]
                continue
            if not OmegaConf.is_dict(node) or part not in node:
                known = list(node) if OmegaConf.is_dict(node) else []
                return (
                    f"There is no key {override.key_or_group!r}: {'.'.join(path) or 'the config'} has no "
                    f"{part!r}{nearest(part, known)}; a new key is written "
                    f"+{override.input_line}."
                )
            node, path = node[part], [*path, part]
    return " ".join(re.sub(r"\s+", " ", str(error)).split())


def _prefix(override: Override) -> str:
    """The + or ++ that an override was written with."""
    line = str(override.input_line)
    return line[: len(line) - len(line.lstrip("+"))]


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """The runs of a sweep: `key=a,b` means one run per value, several such keys mean all combinations.

    Each of several runs gets its own checkpoint folder below config.CHECKPOINT.DIR (default_folder), named after the
    swept keys and values. `-m` and `--multirun` are accepted and change nothing.

    Raises:
        ConfigError: for an override that cannot be read.
    """
    overrides = [override for override in overrides if override not in ("-m", "--multirun")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except OverrideParseException as error:
        raise ConfigError(_explain_parse(error)) from error
    fixed = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    swept = [o for o in parsed if o.is_sweep_override()]
    if not swept:
        return [fixed]
    folder = next((o.value() for o in parsed if o.key_or_group == "config.CHECKPOINT.DIR"), None)
    folder = default_folder(parsed) if folder is None else folder
    choices = [[(o, value) for value in o.sweep_string_iterator()] for o in swept]
    runs = []
    for combination in itertools.product(*choices):
        values = [f"{_prefix(o)}{o.key_or_group}={value}" for o, value in combination]
        name = "_".join(f"{o.key_or_group.split('.')[-1].rstrip('_')}-{value}" for o, value in combination)
        name = re.sub(r"[^\w.-]+", "-", name)
        kept = [o for o in fixed if not o.startswith("config.CHECKPOINT.DIR=")]
        runs.append([*kept, *values, f"config.CHECKPOINT.DIR={quote(f'{folder}/{name}')}"])
    return runs
