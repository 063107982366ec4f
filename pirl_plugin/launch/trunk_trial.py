"""Tries VISSL's trunks other than its ResNets before a run: they fail in many ways, each with a traceback."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY

from pirl_plugin.launch.model_config import pirl_heads_of
from pirl_plugin.pretext.base import PretextTransform
from pirl_plugin.validation import ConfigError

RESNETS = ("resnet", "pirl_resnet")  # these cannot fail this way, and have their own checks


def check_other_trunk(config: Any, task: PretextTransform) -> None:
    """Raise if a trunk cannot be built from its keys, or cannot take views of the pretext task's sizes.

    Raises:
        ConfigError: with the trunk's own reason.
    """
    trunk = config.MODEL.TRUNK
    if trunk.NAME in RESNETS:
        return
    channels = list[int]()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            network = MODEL_TRUNKS_REGISTRY[trunk.NAME](config.MODEL, trunk.NAME)
        except Exception as error:  # assertions, missing keys, missing packages: VISSL can raise anything
            raise ConfigError(
                f"MODEL.TRUNK.NAME is {trunk.NAME!r}, which VISSL cannot build from the keys of MODEL.TRUNK: "
                f"{_reason(error)}; give what it needs, or use pirl_resnet."
            ) from error
        if config.MACHINE.DEVICE == "cpu" and any(isinstance(m, nn.SyncBatchNorm) for m in network.modules()):
            raise ConfigError(
                f"MODEL.TRUNK.NAME is {trunk.NAME!r}, whose SyncBatchNorm PyTorch has on GPUs only; use pirl_resnet."
            )
        layers = [pair[1] for pair in config.MODEL.MULTI_INPUT_HEAD_MAPPING] or [[]]
        for size, names in zip(_sizes(config, task), (layers[0], layers[-1]), strict=False):
            try:
                features = network.eval()(torch.zeros(2, 3, size, size), names)
            except Exception as error:  # as above
                several = "MODEL.TRUNK.TIMM.arguments.dynamic_img_size=True, so that a ViT takes images of any size, "
                raise ConfigError(
                    f"MODEL.TRUNK.NAME is {trunk.NAME!r}, which cannot take views of {size} pixels, as {task.name} "
                    f"makes: {_reason(error)}; use {several * (trunk.NAME == 'timm')}pirl_resnet, or views of another "
                    f"size."
                ) from error
            if features is None or len(features) != 1 or features[0].shape[0] != 2:
                raise ConfigError(
                    f"MODEL.TRUNK.NAME is {trunk.NAME!r}, which has no layers {list(names)}; if it has one output, "
                    f"name none: MODEL.MULTI_INPUT_HEAD_MAPPING=[[images,[]],[pretext,[]]]."
                )
            channels.append(features[0].flatten(1).shape[1])
    for (key, head), number in zip(pirl_heads_of(config), channels, strict=False):
        if head.get("in_channels") != number:
            raise ConfigError(
                f"pirl_heads.in_channels ({key}) is {head.get('in_channels')}, but the trunk {trunk.NAME} gives "
                f"{number} features per view; give in_channels: {number}."
            )


def _sizes(config: Any, task: PretextTransform) -> list[int]:
    """Sides of the image view and of the pretext views, in pixels."""
    views = task.pretext_views(torch.zeros(3, 256, 256, dtype=torch.uint8), None) if task.num_views else None
    return [task.image_crop_size, *([views.shape[-1]] if views is not None else [])]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, KeyError):
        return f"{text} is missing"
    return text or type(error).__name__
