"""Reads config.MODEL in one place: inputs, heads, channels of the trunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

from pirl_plugin.network.timm_trunk import timm_channels
from pirl_plugin.network.trunks import LAYOUTS, feature_channels
from pirl_plugin.validation import ConfigError


def trunk_channels(config: Any) -> int | None:
    """Number of features per view, for a ResNet (channels of res5) or a network of timm; else None."""
    trunk = config.MODEL.TRUNK
    if trunk.NAME == "resnet":
        return round(2048 * trunk.RESNETS.WIDTH_MULTIPLIER)
    if trunk.NAME == "pirl_resnet" and trunk.RESNETS.DEPTH in LAYOUTS:
        return feature_channels(trunk.RESNETS.DEPTH, trunk.RESNETS.WIDTH_MULTIPLIER)["res5"]
    if trunk.NAME == "timm":
        return timm_channels(trunk.get("TIMM"))
    return None


def model_inputs(config: Any) -> list[str]:
    """The inputs of the model; VISSL knows no mapping for a single one."""
    mapping = config.MODEL.MULTI_INPUT_HEAD_MAPPING
    for pair in mapping:
        if not _is_pair(pair):
            raise ConfigError(
                f"MODEL.MULTI_INPUT_HEAD_MAPPING has the entry {pair!r}; each must be a pair of an input and its "
                f"layers, as [images, [flatten]]."
            )
    return [key for key, _ in mapping] or ["images"]


def pirl_heads_of(config: Any) -> Iterator[tuple[str, dict]]:
    """(input key, arguments) of every pirl_heads in the model.

    Raises:
        ConfigError: for anything but a list of [name, arguments].
    """
    parameters = config.MODEL.HEAD.PARAMS
    heads = parameters if config.MODEL.MULTI_INPUT_HEAD_MAPPING else [parameters]
    for key, head in zip(model_inputs(config), heads, strict=False):
        modules = [head] if _is_list(head) and len(head) and isinstance(head[0], str) else head
        for module in modules if _is_list(modules) else [modules]:
            if not _is_pair(module) or not isinstance(module[1], (Mapping, DictConfig)):
                raise ConfigError(
                    f"MODEL.HEAD.PARAMS has the entry {module!r}; each must be a pair of a layer and its arguments, as "
                    f"[pirl_heads, {{...}}]."
                )
            name, arguments = module
            if name == "pirl_heads":
                yield key, arguments


def _is_pair(value: Any) -> bool:
    return _is_list(value) and len(value) == 2


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, ListConfig))
