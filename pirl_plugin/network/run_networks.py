"""The trunk that a run's config describes, with the weights of a checkpoint or untrained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pirl_plugin.network.checkpoints import trunk_state
from pirl_plugin.network.timm_trunk import TimmArchitecture
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.network.weights import check_finite
from pirl_plugin.registry import Registry
from pirl_plugin.validation import ConfigError

# MODEL.TRUNK.NAME -> config.MODEL -> (images, [layers]) -> [features]; pirl_plugin.host adds VISSL's other trunks.
TRUNKS: Registry[Callable[[Mapping[str, Any]], nn.Module]] = Registry("trunk")


# Keys of MODEL.TRUNK.RESNETS for which VISSL's `resnet` takes other values, but ResNetTrunk only these.
ONLY = {"NORM": "BatchNorm", "STANDARDIZE_CONVOLUTIONS": False, "LAYER4_STRIDE": 2}


def resnet_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ResNetTrunk from config.MODEL.

    Raises:
        ConfigError: if it asks for a network that ResNetTrunk cannot build.
    """
    resnets = model["TRUNK"]["RESNETS"]
    for key, only in ONLY.items():
        if resnets.get(key, only) != only:
            raise ConfigError(
                f"MODEL.TRUNK.RESNETS.{key} is {resnets[key]!r}; features are computed here for {only!r} only."
            )
    return {
        "depth": resnets["DEPTH"],
        "width_multiplier": resnets["WIDTH_MULTIPLIER"],
        "stem": resnets.get("STEM", "imagenet"),
        "zero_init_residual": resnets["ZERO_INIT_RESIDUAL"],
        "groups": resnets.get("GROUPS", 1),
        "width_per_group": resnets.get("WIDTH_PER_GROUP", 64),
    }


def _resnet(model: Mapping[str, Any]) -> nn.Module:
    if model.get("INPUT_TYPE", "rgb") != "rgb":
        raise ConfigError(
            f"MODEL.INPUT_TYPE is {model['INPUT_TYPE']!r}; features are computed here for rgb images only."
        )
    return ResNetTrunk(**resnet_arguments(model))


def _timm(model: Mapping[str, Any]) -> nn.Module:
    """The network of MODEL.TRUNK.TIMM."""
    if model.get("INPUT_TYPE", "rgb") != "rgb":
        raise ConfigError(f"MODEL.INPUT_TYPE is {model['INPUT_TYPE']!r}; a trunk of timm takes rgb only.")
    return TimmArchitecture.of_settings(model["TRUNK"].get("TIMM")).build()


TRUNKS.register("timm", _timm)
TRUNKS.register("pirl_resnet", _resnet)
TRUNKS.register("resnet", _resnet)


def build_trunk(config: Mapping[str, Any], checkpoint: dict[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """The trunk that `config["MODEL"]` describes, in eval mode: with a checkpoint's weights, or untrained.

    Args:
        config: of a run of VISSL's trainer.
        seed: of the untrained network.

    Raises:
        ConfigError: if the trunk is not known, or the checkpoint has another architecture or numbers that are not
            finite.
    """
    model = config["MODEL"]
    build = TRUNKS.find(model["TRUNK"]["NAME"], "MODEL.TRUNK.NAME")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trunk = build(model)
    if checkpoint is not None:
        check_finite(trunk_state(checkpoint), "The checkpoint")
        try:
            trunk.load_state_dict(trunk_state(checkpoint))
        except RuntimeError as error:
            raise ConfigError(
                f"The checkpoint does not fit the trunk {model['TRUNK']['NAME']} of its config: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
    return trunk.eval()
