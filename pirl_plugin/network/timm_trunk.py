"""Any backbone of timm as a trunk: RegNets, ConvNeXts, ViTs ... (MODEL.TRUNK.NAME: timm).

    MODEL.TRUNK:
      NAME: timm
      TIMM: {model: vit_small_patch16_224, arguments: {dynamic_img_size: true}}

A ViT takes views of two sizes only with dynamic_img_size, which resizes its position embeddings to each size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pirl_plugin.validation import ConfigError, MissingPackageError, check_keys, check_mapping, nearest

KEY = "MODEL.TRUNK.TIMM"
# Arguments of create_model that would give other weights or another network than the run's.
NOT_GIVEN = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes", "in_chans",
    "features_only", "scriptable", "exportable",
}  # fmt: skip


@dataclass(frozen=True)
class TimmArchitecture:
    """A network of timm.

    Attributes:
        model: one of timm.list_models().
        arguments: of timm.create_model, numbers, words and lists of such.
    """

    model: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_settings(cls, settings: Any, where: str = KEY) -> TimmArchitecture:
        """From MODEL.TRUNK.TIMM, or from what a checkpoint or an export stores.

        Raises:
            ConfigError: for unknown keys, a model that timm does not have, or an argument that a run must not give.
            MissingPackageError: if timm is not installed.
        """
        check_keys(check_mapping(settings, where), ("model", "arguments"), where)
        model, arguments = settings.get("model"), settings.get("arguments") or {}
        known = _timm().list_models()
        if model not in known:
            raise ConfigError(
                f"{where}.model is {model!r}{nearest(str(model), known)}; it must be one of the {len(known)} of "
                f"timm.list_models()."
            )
        check_mapping(arguments, f"{where}.arguments")
        refused = NOT_GIVEN.intersection(arguments)
        if refused:
            raise ConfigError(
                f"{where}.arguments has {', '.join(sorted(refused))}; a trunk starts untrained (or from "
                f"MODEL.WEIGHTS_INIT.PARAMS_FILE), has no classifier, and sees RGB."
            )
        return cls(model, dict(arguments))

    @property
    def input_size(self) -> int:
        """Side of the images that it is usually evaluated on, in pixels."""
        given = self.arguments.get("img_size")
        if isinstance(given, Sequence):
            given = given[-1]
        return int(given or _timm().get_pretrained_cfg_value(self.model, "input_size")[-1])

    def record(self) -> dict[str, Any]:
        """What a checkpoint or an export stores of it; `of_settings` reads it."""
        return {"model": self.model, "arguments": dict(self.arguments)}

    def build(self) -> TimmTrunk:
        """The network, untrained."""
        return TimmTrunk(self)

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{self.model} of timm{f' ({given})' * bool(given)}"


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise MissingPackageError(
            "MODEL.TRUNK.NAME is 'timm', and timm is not installed; install it with: pip install timm"
        ) from error
    return timm


class TimmTrunk(nn.Module):
    """A network of timm without its classifier, with features of every stage.

    Attributes:
        channels: of the features `flatten`.
        stages: names of its layers besides `flatten`: stage1, stage2 ... (for a ViT, its blocks).
    """

    def __init__(self, architecture: TimmArchitecture) -> None:
        super().__init__()
        self.name = architecture.model
        try:
            self.model = _timm().create_model(architecture.model, num_classes=0, **architecture.arguments)
        except TypeError as error:
            raise ConfigError(f"{KEY}.arguments does not fit {architecture.model}: {error}.") from error
        self.channels = int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)
        several = hasattr(self.model, "forward_intermediates")
        self.stages = tuple(f"stage{n + 1}" for n in range(len(self.model.feature_info))) if several else ()

    def forward(self, images: Tensor, layers: Sequence[str] | None = None) -> list[Tensor]:
        """Features of images float [B, 3, H, W], normalised.

        Args:
            layers: `flatten` (the default), pooled as the network pools before its classifier [B, C], or any of
                `stages`, maps [B, c, h, w].

        Returns:
            one tensor per layer, in the order of `layers`.

        Raises:
            ConfigError: for a layer that the network does not have, or a size of images that it does not take.
        """
        try:
            return self._features(images, list(layers or ("flatten",)))
        except AssertionError as error:  # timm's
            raise ConfigError(
                f"{self.name} of timm does not take images of {images.shape[2]} x {images.shape[3]}: {error}"
            ) from error

    def _features(self, images: Tensor, wanted: list[str]) -> list[Tensor]:
        if wanted == ["flatten"]:
            return [self.model(images)]
        for name in wanted:
            if name != "flatten" and name not in self.stages:
                raise ConfigError(f"The trunk has no layer {name!r}; it has {', '.join((*self.stages, 'flatten'))}.")
        places = [self.stages.index(name) for name in wanted if name != "flatten"]
        last, maps = self.model.forward_intermediates(images, indices=places, output_fmt="NCHW")
        found = dict(zip(sorted(places), maps, strict=True))

        def layer(name: str) -> Tensor:
            if name != "flatten":
                return found[self.stages.index(name)]
            return self.model.forward_head(last, pre_logits=True)

        return [layer(name) for name in wanted]


def timm_channels(settings: Any) -> int:
    """Features per view of the network of MODEL.TRUNK.TIMM, without allocating its weights."""
    with torch.device("meta"):
        return TimmArchitecture.of_settings(settings).build().channels
