"""Checks MODEL.WEIGHTS_INIT.PARAMS_FILE before anything starts.

VISSL leaves weights that are not in the file random and says so only in the middle of its log; other faults end in an
assertion on each rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vissl.models import build_model
from vissl.utils.checkpoint import (
    append_module_prefix,
    check_model_compatibilty,
    get_checkpoint_model_state_dict,
    replace_module_prefix,
)

from pirl_plugin.network.preprocessing import preprocessing_of
from pirl_plugin.safe_loading import read_safely
from pirl_plugin.validation import ConfigError

KEY = "MODEL.WEIGHTS_INIT.PARAMS_FILE"


def check_initial_weights(config: Any) -> None:
    """Raise if VISSL could not initialise the whole trunk of `config.MODEL`, a ResNet, from the file.

    Raises:
        ConfigError: if the file is missing, cut short, would run code, or holds no trunk or another network's.
    """
    path = config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    try:
        content = read_safely(path)
        state = _named_as_the_model(config, content)
    except ConfigError as error:
        raise ConfigError(f"{KEY}: {error}") from error
    _check_levels(config, content)
    if config.MODEL.TRUNK.NAME not in ("resnet", "pirl_resnet"):
        return  # some of VISSL's other trunks cannot be built without memory
    with torch.device("meta"):
        model = build_model(config.MODEL, config.OPTIMIZER)
    evaluation = config.MODEL.FEATURE_EVAL_SETTINGS
    with_heads = not evaluation.EVAL_MODE_ON or evaluation.EVAL_TRUNK_AND_HEAD
    missing = []
    for name, own in model.state_dict().items():
        head = "heads" in name
        if any(part in name for part in config.MODEL.WEIGHTS_INIT.SKIP_LAYERS) or (head and not with_heads):
            continue
        if name not in state:
            missing += [] if head else [name]
        elif state[name].shape != own.shape:
            raise ConfigError(
                f"{KEY} is {path!r}, in which {name} is {tuple(state[name].shape)}; the {_described(config)} of this "
                f"config needs {tuple(own.shape)}."
            )
        elif state[name].is_floating_point() and not torch.isfinite(state[name]).all():
            raise ConfigError(f"{KEY} is {path!r}, in which {name} has numbers that are not finite.")
    if missing:
        raise ConfigError(
            f"{KEY} is {path!r}, which has no {missing[0]} ({len(missing)} missing in all) for the "
            f"{_described(config)} of this config: it belongs to another network, or is incomplete."
        )


def _check_levels(config: Any, content: Any) -> None:
    """Raise if images are not normalised as the weights need: it would go unnoticed later."""
    path = config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    wanted = preprocessing_of(path, content, 224)
    if not wanted.known:
        return
    for split in ("TRAIN", "TEST"):
        for number, entry in enumerate(config.DATA[split].TRANSFORMS):
            for key in ("mean", "std") if entry.get("name") == "Normalize" else ():
                if not np.allclose(entry[key], getattr(wanted, key), atol=1e-3):
                    raise ConfigError(
                        f"DATA.{split}.TRANSFORMS.{number}.{key} is {list(entry[key])}, but the weights of {path} were "
                        f"trained with {list(getattr(wanted, key))}."
                    )


def _described(config: Any) -> str:
    trunk = config.MODEL.TRUNK
    return f"trunk {trunk.NAME} of depth {trunk.RESNETS.DEPTH} and width {trunk.RESNETS.WIDTH_MULTIPLIER:g}"


def _named_as_the_model(config: Any, content: Any) -> dict[str, Tensor]:
    """The weights of a file under the names that VISSL gives them."""
    settings = config.MODEL.WEIGHTS_INIT
    key, path = settings.STATE_DICT_KEY_NAME, settings.PARAMS_FILE
    if key:
        if not isinstance(content, Mapping) or key not in content:
            raise ConfigError(
                f"{path} has no {key!r} (STATE_DICT_KEY_NAME); make one by pirl export {path} --format vissl."
            )
        content = content[key]
    if key == "classy_state_dict":
        parts = content
        for part in ("base_model", "model"):
            parts = parts.get(part) if isinstance(parts, Mapping) else None
        if not isinstance(parts, Mapping) or not parts.get("trunk"):
            raise ConfigError(f"{path} holds no trunk: it may hold only a head.")
        return get_checkpoint_model_state_dict(config, content)
    if settings.REMOVE_PREFIX:
        content = replace_module_prefix(content, settings.REMOVE_PREFIX)
    if settings.APPEND_PREFIX:
        content = append_module_prefix(content, settings.APPEND_PREFIX)
    try:
        check_model_compatibilty(config, content)
    except Exception as error:  # VISSL raises a bare Exception
        raise ConfigError(f"{path} does not fit: {' '.join(str(error).split())}") from error
    return content
