"""The trunk theta: ResNets of any depth and width, and a stem for images of 32 to 96 pixels.

Layers and weights are named as in VISSL's `resnet`, so that checkpoints and configs work with both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from pirl_plugin.validation import check_choice, check_integer, check_number

LAYOUTS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
STEMS = ("imagenet", "small")

# The layers that features are taken from, and the block that each one follows, in the network's order.
BLOCK_OF_LAYER = {
    "conv1": "conv1_relu",
    "res1": "maxpool",
    "res2": "layer1",
    "res3": "layer2",
    "res4": "layer3",
    "res5": "layer4",
    "res5avg": "avgpool",
    "flatten": "flatten",
}
LAYERS = tuple(BLOCK_OF_LAYER)
STAGES = ("conv1", "res2", "res3", "res4", "res5")  # the five that the paper compares (Table 2, Figure 5)


def feature_channels(depth: int, width_multiplier: float) -> dict[str, int]:
    """Channels of conv1 and res2 to res5, e.g. {'conv1': 64, ..., 'res5': 512} for (18, 1)."""
    width = round(64 * width_multiplier)
    expansion = LAYOUTS[depth][0].expansion
    return {"conv1": width, **{f"res{i + 2}": width * 2**i * expansion for i in range(4)}}


class ResNetTrunk(nn.Module):
    """torchvision's ResNet without its classifier, with features of every layer.

    Args:
        depth: 18, 34, 50, 101, 152 or 200.
        width_multiplier: channels of conv1 / 64, any number that gives at least 8 channels.
        stem: `imagenet` (7x7 stride 2, max-pool), or `small` (3x3 stride 1, no max-pool, for 32x32 images).
        zero_init_residual: start each block's last BatchNorm at 0, so that the block begins as the identity.
        groups, width_per_group: of the 3x3 convolutions of the bottlenecks (32 and 8 for a ResNeXt-101 32x8d).

    Raises:
        ConfigError: for a value out of range.

    Example:
        >>> trunk = ResNetTrunk(18)
        >>> (features,) = trunk(torch.randn(2, 3, 64, 64))
        >>> features.shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        depth: int = 50,
        width_multiplier: float = 1.0,
        stem: str = "imagenet",
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        where = "MODEL.TRUNK.RESNETS"
        block, layers = LAYOUTS[check_choice(depth, list(LAYOUTS), f"{where}.DEPTH")]
        multiplier = check_number(width_multiplier, f"{where}.WIDTH_MULTIPLIER", 0.125)
        check_choice(stem, STEMS, f"{where}.STEM")
        width = check_integer(round(64 * multiplier), "channels of conv1", 8)

        model = ResNet(
            block,
            list(layers),
            zero_init_residual=zero_init_residual,
            groups=groups,
            width_per_group=width_per_group,
        )
        model.inplanes = width
        maxpool: nn.Module = nn.Identity()
        if stem == "imagenet":
            conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
            maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        else:
            conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")
        stages = [model._make_layer(block, width * 2**i, layers[i], stride=1 if i == 0 else 2) for i in range(4)]
        for stage in stages:
            _initialise(stage, zero_init_residual)
        self._feature_blocks = nn.ModuleDict(
            {
                "conv1": conv1,
                "bn1": nn.BatchNorm2d(width),
                "conv1_relu": nn.ReLU(inplace=True),
                "maxpool": maxpool,
                **{f"layer{i + 1}": stage for i, stage in enumerate(stages)},
                "avgpool": nn.AdaptiveAvgPool2d((1, 1)),
                "flatten": nn.Flatten(1),
            }
        )

    def forward(self, images: Tensor, layers: Sequence[str] | None = None) -> list[Tensor]:
        """Features of images float [B, 3, H, W], normalised.

        Args:
            layers: of LAYERS; default: `flatten`, res5 averaged.

        Returns:
            one tensor per layer, in the order of `layers`: maps [B, C, h, w], res5avg [B, C, 1, 1], flatten [B, C].

        Raises:
            ConfigError: for a layer that the network does not have.
        """
        wanted = [BLOCK_OF_LAYER[check_choice(layer, LAYERS, "The layer")] for layer in layers or ("flatten",)]
        found: dict[str, Tensor] = {}
        features = images
        for name, block in self._feature_blocks.items():
            features = block(features)
            if name in wanted:
                found[name] = features
            if len(found) == len(set(wanted)):
                break
        return [found[name] for name in wanted]


@torch.no_grad()
def _initialise(stage: nn.Module, zero_init_residual: bool) -> None:
    # _make_layer leaves PyTorch's defaults; torchvision initialises after building.
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, (BasicBlock, Bottleneck)):
            last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
            nn.init.zeros_(last.weight)
