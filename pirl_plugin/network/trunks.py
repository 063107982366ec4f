"""ResNets that VISSL lacks: depth 18 and 34, any width, and a stem for images of 32 to 96 pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from vissl.config import AttrDict
from vissl.models.model_helpers import (
    Flatten,
    get_trunk_forward_outputs,
    transform_model_input_data_type,
)
from vissl.models.trunks import register_model_trunk

from pirl_plugin.validation import check_choice, check_integer, check_number

LAYOUTS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
STEMS = ("imagenet", "small")


def feature_channels(depth: int, width_multiplier: float) -> dict[str, int]:
    """Channels of conv1 and res2 to res5, e.g. {'conv1': 64, ..., 'res5': 512} for (18, 1)."""
    width = round(64 * width_multiplier)
    expansion = LAYOUTS[depth][0].expansion
    return {"conv1": width, **{f"res{i + 2}": width * 2**i * expansion for i in range(4)}}


def trunk_config(depth: int, width_multiplier: float = 1.0, stem: str = "imagenet") -> AttrDict:
    """The part of config.MODEL that `pirl_resnet` reads, outside a run of VISSL."""
    resnets = {"DEPTH": depth, "WIDTH_MULTIPLIER": width_multiplier, "STEM": stem, "ZERO_INIT_RESIDUAL": False}
    checkpointing = {"USE_ACTIVATION_CHECKPOINTING": False, "NUM_ACTIVATION_CHECKPOINTING_SPLITS": 2}
    return AttrDict(
        {
            "TRUNK": {"NAME": "pirl_resnet", "RESNETS": resnets},
            "INPUT_TYPE": "rgb",
            "ACTIVATION_CHECKPOINTING": checkpointing,
        }
    )


@register_model_trunk("pirl_resnet")
class PIRLResNet(nn.Module):
    """torchvision's ResNet in VISSL's clothes, with the same layer names as VISSL's `resnet` trunk.

    Reads MODEL.TRUNK.RESNETS of the config: DEPTH 18, 34, 50, 101 or 152; WIDTH_MULTIPLIER, any number that leaves
    at least 8 channels in conv1; ZERO_INIT_RESIDUAL; STEM `imagenet` (7x7 stride 2, max-pool) or `small` (3x3
    stride 1, no max-pool, for 32x32 images).
    """

    def __init__(self, model_config, model_name: str) -> None:
        super().__init__()
        self.model_config = model_config
        config = model_config.TRUNK.RESNETS
        depth = check_choice(config.DEPTH, LAYOUTS, "MODEL.TRUNK.RESNETS.DEPTH")
        multiplier = check_number(config.WIDTH_MULTIPLIER, "MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER", 0.125)
        stem = check_choice(config.get("STEM", "imagenet"), STEMS, "MODEL.TRUNK.RESNETS.STEM")
        width = check_integer(round(64 * multiplier), "channels of conv1", 8)
        block, layers = LAYOUTS[depth]

        model = ResNet(block, layers, zero_init_residual=config.ZERO_INIT_RESIDUAL)
        model.inplanes = width
        if stem == "imagenet":
            conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
            maxpool = nn.Identity()
        nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")
        stages = [model._make_layer(block, width * 2**i, layers[i], stride=1 if i == 0 else 2) for i in range(4)]
        for stage in stages:
            _initialise(stage, config.ZERO_INIT_RESIDUAL)
        self._feature_blocks = nn.ModuleDict(
            {
                "conv1": conv1,
                "bn1": nn.BatchNorm2d(width),
                "conv1_relu": nn.ReLU(inplace=True),
                "maxpool": maxpool,
                **{f"layer{i + 1}": stage for i, stage in enumerate(stages)},
                "avgpool": nn.AdaptiveAvgPool2d((1, 1)),
                "flatten": Flatten(1),
            }
        )
        self.feat_eval_mapping = {
            "conv1": "conv1_relu",
            "res1": "maxpool",
            "res2": "layer1",
            "res3": "layer2",
            "res4": "layer3",
            "res5": "layer4",
            "res5avg": "avgpool",
            "flatten": "flatten",
        }

    def forward(self, images: Tensor, out_feat_keys: list[str] | None = None) -> list[Tensor]:
        """images [B, 3, H, W] -> the features named in `out_feat_keys`, one tensor each."""
        checkpointing = self.model_config.ACTIVATION_CHECKPOINTING
        return get_trunk_forward_outputs(
            feat=transform_model_input_data_type(images, self.model_config.INPUT_TYPE),
            out_feat_keys=out_feat_keys,
            feature_blocks=self._feature_blocks,
            feature_mapping=self.feat_eval_mapping,
            use_checkpointing=checkpointing.USE_ACTIVATION_CHECKPOINTING,
            checkpointing_splits=checkpointing.NUM_ACTIVATION_CHECKPOINTING_SPLITS,
        )


@torch.no_grad()
def _initialise(stage: nn.Module, zero_init_residual: bool) -> None:
    # _make_layer leaves PyTorch's defaults; torchvision initialises after building.
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
            last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
            nn.init.zeros_(last.weight)
