"""Registers with VISSL the plugin's parts by name: each is a thin wrapper of a class that does not need VISSL.

    pirl_loss (and what `register_pirl_loss` adds)      LOSS                 objective/loss.py
    memory_bank, sharded_memory_bank                    LOSS.*.memory_bank   objective/ (the loss finds them)
    jigsaw_patch_transform, rotation_transform,
    rotation_jigsaw_transform, image_view_transform,
    affine_, channel_shuffle_, cutout_transform         TRANSFORMS           pretext/
    shuffle_patches_transform (covariant Jigsaw)        TRANSFORMS           host/covariant_jigsaw.py
    pirl_heads                                          MODEL.HEAD           network/heads.py
    pirl_resnet                                         MODEL.TRUNK          network/trunks.py
    timm                                                MODEL.TRUNK          network/timm_trunk.py
    pirl_collator                                       COLLATE_FUNCTION     data/collator.py
    image_files                                         DATA_SOURCES         data/image_files.py

`pirl_task` and `pirl_train_step` depend on VISSL themselves: training/task.py and training/train_step.py register
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classy_vision.dataset.transforms import TRANSFORM_REGISTRY, register_transform
from classy_vision.losses import LOSS_REGISTRY, ClassyLoss, register_loss
from torch import Tensor, nn
from vissl import data as vissl_data
from vissl.data.collators import register_collator
from vissl.data.ssl_transforms import ssl_transforms_wrapper
from vissl.models.heads import register_model_head
from vissl.models.model_helpers import get_trunk_forward_outputs, transform_model_input_data_type
from vissl.models.trunks import MODEL_TRUNKS_REGISTRY, register_model_trunk

from pirl_plugin.data.collator import pirl_collator
from pirl_plugin.data.image_files import ImageFiles
from pirl_plugin.host import covariant_jigsaw  # noqa: F401  (registers itself)
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.run_networks import TRUNKS, resnet_arguments
from pirl_plugin.network.timm_trunk import TimmArchitecture, TimmTrunk
from pirl_plugin.network.trunks import BLOCK_OF_LAYER, ResNetTrunk
from pirl_plugin.objective.loss import PIRL_LOSSES, PIRLLoss
from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS, PretextTransform
from pirl_plugin.validation import ConfigError

# VISSL passes these transforms the whole sample, not only the image.
_WHOLE_SAMPLE = ssl_transforms_wrapper.DEFAULT_TRANSFORM_TYPES["TRANSFORMS_WITH_OVERWRITE_ENTIRE_BATCH"]


def _refuse_names_of_others(name: str, registry: dict[str, Any], ours: type) -> None:
    other = registry.get(name)
    if other is not None and not (isinstance(other, type) and issubclass(other, ours)):
        raise ConfigError(f"VISSL has its own {name!r} ({other!r}); register yours under another name.")


def _register_pretext(name: str, transform: type[PretextTransform]) -> None:
    _refuse_names_of_others(name, TRANSFORM_REGISTRY, PretextTransform)
    register_transform(name, bypass_checks=True)(transform)
    if name not in _WHOLE_SAMPLE:
        _WHOLE_SAMPLE.append(name)


def _register_loss(name: str, loss: type[PIRLLoss]) -> None:
    _refuse_names_of_others(name, LOSS_REGISTRY, PIRLLoss)
    door = type(f"Vissl_{name}", (loss, ClassyLoss), {"__doc__": loss.__doc__, "__module__": __name__})
    globals()[door.__name__] = door  # pickle looks for it here
    register_loss(name, bypass_checks=True)(door)


PRETEXT_TRANSFORMS.follow(_register_pretext)
PIRL_LOSSES.follow(_register_loss)
register_collator("pirl_collator")(pirl_collator)
vissl_data.DATASET_SOURCE_MAP["image_files"] = ImageFiles
vissl_data.DATA_SOURCES_WITH_SUBSET_SUPPORT.add("image_files")


@register_model_head("pirl_heads")
class VisslHead(PIRLHead):
    """PIRLHead as VISSL builds it: with config.MODEL first."""

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


@register_model_trunk("pirl_resnet")
class VisslResNet(ResNetTrunk):
    """ResNetTrunk as VISSL builds and calls it: MODEL.TRUNK.RESNETS, INPUT_TYPE and activation checkpointing."""

    feat_eval_mapping = BLOCK_OF_LAYER

    def __init__(self, model_config: Any, model_name: str) -> None:
        super().__init__(**resnet_arguments(model_config))
        self.model_config = model_config

    def forward(self, images: Tensor, layers: Sequence[str] | None = None) -> list[Tensor]:
        """images [B, 3, H, W] -> the features named in `layers`, one tensor each, in the network's order."""
        checkpointing = self.model_config.ACTIVATION_CHECKPOINTING
        return get_trunk_forward_outputs(
            feat=transform_model_input_data_type(images, self.model_config.INPUT_TYPE),
            out_feat_keys=layers,
            feature_blocks=self._feature_blocks,
            feature_mapping=BLOCK_OF_LAYER,
            use_checkpointing=checkpointing.USE_ACTIVATION_CHECKPOINTING,
            checkpointing_splits=checkpointing.NUM_ACTIVATION_CHECKPOINTING_SPLITS,
        )


@register_model_trunk("timm")
class VisslTimm(TimmTrunk):
    """TimmTrunk as VISSL builds and calls it: from MODEL.TRUNK.TIMM."""

    def __init__(self, model_config: Any, model_name: str) -> None:
        super().__init__(TimmArchitecture.of_settings(model_config.TRUNK.get("TIMM")))
        self.config = model_config

    def forward(self, images: Tensor, layers: Sequence[str] | None = None) -> list[Tensor]:
        """images [B, 3, H, W] -> the features named in `layers`, one tensor each."""
        return super().forward(transform_model_input_data_type(images, self.config.INPUT_TYPE), layers)


def _vissl_trunk(name: str) -> Any:
    def build(model: Any) -> nn.Module:
        from vissl.config import AttrDict

        return MODEL_TRUNKS_REGISTRY[name](AttrDict(model), name)

    return build


def register_trunks_of_vissl() -> None:
    """Let `build_trunk` build trunks that only VISSL has, including the user's own."""
    for name in MODEL_TRUNKS_REGISTRY:
        if name not in TRUNKS:
            TRUNKS.register(name, _vissl_trunk(name))
