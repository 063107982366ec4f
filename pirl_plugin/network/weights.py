"""Trunk weights from the files in which people have them, and a trunk from them in one line.

    from pirl_plugin.network.weights import load_trunk
    trunk = load_trunk("checkpoint.torch")      # images [B, 3, H, W] -> features [B, C]

Names are torchvision's (conv1.weight, layer1.0.bn1.bias, ...) wherever weights are handed around.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pirl_plugin.network.trunks import LAYOUTS, ResNetTrunk
from pirl_plugin.safe_loading import read_safely
from pirl_plugin.validation import ConfigError

# Where the weights are, in VISSL's checkpoints, in those of other libraries, and at the top.
_PLACES = (
    ("classy_state_dict", "base_model", "model", "trunk"),
    ("model_state_dict",),
    ("state_dict",),
    ("model",),
    (),
)
_PREFIXES = re.compile(r"^(module\.|model\.|trunk\.|backbone\.|encoder\.|base_model\.|_feature_blocks\.)+")
_OURS = re.compile(r"^(conv1\.|bn1\.|layer[1-4]\.)")


@dataclass(frozen=True)
class Architecture:
    """Which ResNet some weights belong to.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        width_multiplier: channels of conv1 / 64.
        stem: `imagenet` (7x7, stride 2, max-pool) or `small` (3x3).
    """

    depth: int
    width_multiplier: float = 1.0
    stem: str = "imagenet"

    @property
    def input_size(self) -> int:
        """Side of the images that it is usually measured on, in pixels."""
        return 32 if self.stem == "small" else 224

    def __str__(self) -> str:
        width = "" if self.width_multiplier == 1 else f" of {self.width_multiplier:g} times the width"
        return f"ResNet-{self.depth}{width}{' with a 3x3 stem' if self.stem == 'small' else ''}"


def read_trunk_weights(path: str | Path) -> dict[str, Tensor]:
    """The trunk's weights and BatchNorm statistics of a file, without running code from it.

    Args:
        path: a checkpoint of this plugin or of VISSL (its model zoo's too), a state dict of torchvision's names with
            or without a usual prefix, or a .safetensors file.

    Returns:
        tensors on the CPU by torchvision's names; what is not the trunk's is left out.

    Raises:
        ConfigError: where the file is missing or cut short, would run code, or holds no ResNet's trunk.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise ConfigError(f"There is no checkpoint file at {path}.")
        try:
            content: Any = load_file(path)
        except SafetensorError as error:
            raise ConfigError(f"{path} is not a whole .safetensors file: {error}") from error
    else:
        content = read_safely(path)
    return trunk_weights_in(content, str(path))


def trunk_weights_in(content: Any, source: str) -> dict[str, Tensor]:
    """`read_trunk_weights` of what a file held, already read.

    Args:
        source: the file's name, for the message.
    """
    for place in _PLACES:
        found = content
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping):
            named = {_PREFIXES.sub("", key): value for key, value in found.items() if isinstance(value, Tensor)}
            weights = {key: value for key, value in named.items() if _OURS.match(key)}
            if "conv1.weight" in weights and any(key.startswith("layer") for key in weights):
                return weights
            if place and found:
                break
    raise ConfigError(
        f"{source} holds no trunk of a ResNet (conv1, bn1, layer1 to layer4): it may be a file of a head only, or of "
        f"another architecture."
    )


def infer_architecture(weights: Mapping[str, Tensor]) -> Architecture:
    """The ResNet that weights of torchvision's names belong to.

    Raises:
        ConfigError: where it is none that ResNetTrunk can build.
    """
    blocks = tuple(len({key.split(".")[1] for key in weights if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in weights
    conv1 = weights["conv1.weight"]
    for depth, (block, layers) in LAYOUTS.items():
        if layers == blocks and (block.expansion == 4) == bottleneck and conv1.shape[2] in (3, 7):
            return Architecture(depth, conv1.shape[0] / 64, "small" if conv1.shape[2] == 3 else "imagenet")
    raise ConfigError(
        f"The weights have {blocks} {'bottleneck' if bottleneck else 'basic'} blocks and a {tuple(conv1.shape)} conv1; "
        f"known are ResNets of depth {', '.join(map(str, LAYOUTS))} with a 7x7 or 3x3 stem."
    )


class Trunk(nn.Module):
    """A ResNet without its classifier.

    Attributes:
        architecture: which.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.resnet = ResNetTrunk(**asdict(architecture))

    def forward(self, images: Tensor, layer: str = "flatten") -> Tensor:
        """Features of images float [B, 3, H, W], normalised as the weights want: [B, C] of res5, averaged.

        Args:
            layer: or another of trunks.LAYERS: conv1, res1 ... res5 [B, C, h, w], res5avg [B, C, 1, 1].
        """
        (features,) = self.resnet(images, [layer])
        return features


def load_trunk(path: str | Path) -> Trunk:
    """The trunk of a checkpoint, in eval mode on the CPU; see `read_trunk_weights` for the files it takes.

    Raises:
        ConfigError: as `read_trunk_weights`, and where weights are missing or of another shape.
    """
    return trunk_from_weights(read_trunk_weights(path), str(path))


def trunk_from_weights(weights: Mapping[str, Tensor], source: str = "the weights") -> Trunk:
    """The trunk that weights of torchvision's names make."""
    trunk = Trunk(infer_architecture(weights))
    try:
        trunk.resnet.load_state_dict({f"_feature_blocks.{key}": value for key, value in weights.items()})
    except RuntimeError as error:
        raise ConfigError(
            f"{source} is not a whole {trunk.architecture}: {' '.join(str(error).split())[:400]}"
        ) from error
    return trunk.eval()
