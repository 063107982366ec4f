"""Reads trunk weights from common file formats, and makes a trunk from them in one line.

    from pirl_plugin.network.weights import load_trunk
    trunk = load_trunk("checkpoint.torch")      # images [B, 3, H, W] -> features [B, C]
    features = trunk(torch.stack([trunk.view()(photo) for photo in photos]))    # sized and normalised as in training

Weights always have torchvision's names (conv1.weight, layer1.0.bn1.bias, ...).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pirl_plugin.network.checkpoints import trunk_state
from pirl_plugin.network.networks_in_files import choose_network, networks_in
from pirl_plugin.network.preprocessing import Preprocessing, notes_of, preprocessing_of
from pirl_plugin.network.timm_trunk import TimmArchitecture, TimmTrunk
from pirl_plugin.network.trunks import LAYERS, LAYOUTS, STAGES, ResNetTrunk
from pirl_plugin.safe_loading import read_safely
from pirl_plugin.validation import ConfigError

_OURS = re.compile(r"^(conv1\.|bn1\.|layer[1-4]\.)")


@dataclass(frozen=True)
class Architecture:
    """Which ResNet some weights belong to.

    Attributes:
        depth: 18, 34, 50, 101, 152 or 200.
        width_multiplier: channels of conv1 / 64.
        stem: `imagenet` (7x7, stride 2, max-pool) or `small` (3x3).
        groups, width_per_group: of the 3x3 convolutions of the bottlenecks, as in ResNeXts and wide ResNets.
    """

    depth: int
    width_multiplier: float = 1.0
    stem: str = "imagenet"
    groups: int = 1
    width_per_group: int = 64

    @property
    def is_plain(self) -> bool:
        """Whether its bottlenecks are those of a ResNet."""
        return (self.groups, self.width_per_group) == (1, 64)

    @property
    def input_size(self) -> int:
        """Side of the images that it is usually evaluated on, in pixels."""
        return 32 if self.stem == "small" else 224

    def record(self) -> dict[str, Any]:
        """What an export stores of it."""
        return asdict(self)

    def build(self) -> ResNetTrunk:
        """The network, untrained."""
        return ResNetTrunk(**asdict(self))

    def __str__(self) -> str:
        width = "" if self.width_multiplier == 1 else f" of {self.width_multiplier:g} times the width"
        wide = f" with bottlenecks {self.width_per_group / 64:g} times as wide" if self.groups == 1 else None
        groups = "" if self.is_plain else wide or f" with {self.groups} groups of width {self.width_per_group}"
        return f"ResNet-{self.depth}{width}{groups}{' with a 3x3 stem' if self.stem == 'small' else ''}"


def read_content(path: str | Path) -> Any:
    """The content of a file of weights, without running code from it.

    Raises:
        ConfigError: if the file is missing, cut short, of another kind, or would run code.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return read_safely(path)
    if not path.is_file():
        raise ConfigError(f"There is no checkpoint file at {path}.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConfigError(f"{path} is not a complete .safetensors file: {error}") from error


def read_trunk_weights(path: str | Path) -> dict[str, Tensor]:
    """The trunk's weights and BatchNorm statistics in a file, without running code from it.

    Args:
        path: a checkpoint of this plugin or of VISSL (also of its model zoo), a state dict with torchvision's names
            (also MoCo's, DINO's, timm's ..., anywhere in the file and with any prefix), one of an nn.Sequential of a
            ResNet's children, or a .safetensors file.

    Returns:
        tensors on the CPU by torchvision's names; anything that is not part of the trunk is left out.

    Raises:
        ConfigError: as `read_content`, and if there is no ResNet trunk, there are several, or some weights are not
            finite.
    """
    return trunk_weights_in(read_content(path), str(path))


def trunk_weights_in(content: Any, source: str) -> dict[str, Tensor]:
    """`read_trunk_weights` for the content of a file, already read.

    Args:
        source: the file's name, for the message.
    """
    networks = dict(networks_in(content))
    chosen = choose_network(networks, source)
    if chosen:
        logging.info(f"{source}: of {len(networks)} networks, the one at {chosen} is used")
    if "conv2.weight" in networks[chosen]:
        raise ConfigError(f"{source} holds a ResNet with a stem of several convolutions; it must be one.")
    weights = {key: value for key, value in networks[chosen].items() if _OURS.match(key)}
    check_finite(weights, source)
    return weights


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Raise if a weight is NaN or infinite.

    Raises:
        ConfigError: naming the first tensor.
    """
    for key, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ConfigError(f"{source} has numbers in {key} that are not finite: the run that wrote it diverged.")


def infer_architecture(weights: Mapping[str, Tensor]) -> Architecture:
    """The ResNet that weights of torchvision's names belong to.

    Raises:
        ConfigError: if it is not one that ResNetTrunk can build.
    """
    blocks = tuple(len({key.split(".")[1] for key in weights if key.startswith(f"layer{n}.")}) for n in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in weights
    conv1 = weights["conv1.weight"]
    for depth, (block, layers) in LAYOUTS.items():
        if layers == blocks and (block.expansion == 4) == bottleneck and conv1.shape[2] in (3, 7):
            groups = _groups(weights["layer1.0.conv2.weight"], len(conv1)) if bottleneck else (1, 64)
            return Architecture(depth, len(conv1) / 64, "small" if conv1.shape[2] == 3 else "imagenet", *groups)
    raise ConfigError(
        f"The weights have {blocks} {'bottleneck' if bottleneck else 'basic'} blocks and a {tuple(conv1.shape)} conv1; "
        f"supported are ResNets of depth {', '.join(map(str, LAYOUTS))} with a 7x7 or 3x3 stem."
    )


def _groups(conv2: Tensor, width: int) -> tuple[int, int]:
    """Groups, and width per group, of a bottleneck's 3x3 convolution in the first stage of a network of `width`."""
    groups = len(conv2) // conv2.shape[1]
    return groups, round(64 * conv2.shape[1] / width)


class Trunk(nn.Module):
    """A ResNet, or a network of timm, without its classifier.

    Attributes:
        architecture: which.
        preprocessing: the preprocessing that it expects.
        network: the network itself: (images, [layers]) -> [features].
    """

    def __init__(
        self, architecture: Architecture | TimmArchitecture, preprocessing: Preprocessing | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.preprocessing = preprocessing or Preprocessing(architecture.input_size)
        self.network: ResNetTrunk | TimmTrunk = architecture.build()

    def forward(self, images: Tensor, layer: str = "flatten") -> Tensor:
        """Features of images float [B, 3, H, W], normalised as the weights expect: [B, C], res5 averaged.

        Args:
            layer: or another of trunks.LAYERS: conv1, res1 ... res5 [B, C, h, w], res5avg [B, C, 1, 1]; for timm's
                networks stage1, stage2 ...
        """
        (features,) = self.network(images, [layer])
        return features

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers that `forward` gives."""
        return LAYERS if isinstance(self.network, ResNetTrunk) else ("flatten", *self.network.stages)

    @property
    def stages(self) -> tuple[str, ...]:
        """The layers to compare: conv1 and res2 to res5; for timm's networks at most five, evenly spaced."""
        if isinstance(self.network, ResNetTrunk):
            return STAGES
        names = self.network.stages or ("flatten",)
        count = min(5, len(names))
        return tuple(names[(len(names) * (place + 1)) // count - 1] for place in range(count))

    def view(self, size: int | None = None) -> Callable[[Image.Image], Tensor]:
        """PIL image -> float32 [3, size, size], normalised and, by default, sized as in training.

        Raises:
            ConfigError: as `Preprocessing.sized`.
        """
        return self.preprocessing.sized(size).view()


def load_trunk(path: str | Path) -> Trunk:
    """The trunk of a checkpoint, in eval mode on the CPU; see `read_trunk_weights` for the files it takes.

    Raises:
        ConfigError: as `read_trunk_weights`, and if weights are missing or have another shape.

    Example:
        >>> torch.save(ResNetTrunk(18).state_dict(), "trunk.pth")
        >>> trunk = load_trunk("trunk.pth")
        >>> trunk(torch.randn(2, 3, 64, 64)).shape, trunk.preprocessing.size
        (torch.Size([2, 512]), 224)
    """
    content = read_content(path)
    timm = _timm_architecture(path, content)
    if timm is None:
        trunk = trunk_from_weights(trunk_weights_in(content, str(path)), str(path))
    else:
        weights = trunk_state(content) if "classy_state_dict" in content else content
        if not any(key.startswith("model.") for key in weights):  # timm's own names
            weights = {f"model.{key}": value for key, value in weights.items()}
        check_finite(weights, str(path))
        trunk = _load(Trunk(timm), weights, str(path))
    trunk.preprocessing = preprocessing_of(path, content, trunk.architecture.input_size)
    return trunk


def _timm_architecture(path: str | Path, content: Any) -> TimmArchitecture | None:
    """The network of timm whose weights a run's checkpoint or an export says it holds; None for ResNets."""
    run = content.get("classy_state_dict") if isinstance(content, Mapping) else None
    if isinstance(run, Mapping):
        trunk = (run.get("pirl_plugin") or {}).get("trunk")
    else:
        trunk = (notes_of(path) or {}).get("architecture")
    if not isinstance(trunk, Mapping) or "model" not in trunk:
        return None
    return TimmArchitecture.of_settings(trunk, f"{path}: its network")


def trunk_from_weights(weights: Mapping[str, Tensor], source: str = "the weights") -> Trunk:
    """The trunk with these weights, by torchvision's names."""
    trunk = Trunk(infer_architecture(weights))
    return _load(trunk, {f"_feature_blocks.{key}": value for key, value in weights.items()}, source)


def _load(trunk: Trunk, weights: Mapping[str, Tensor], source: str) -> Trunk:
    """The trunk with weights by its network's own names, in eval mode.

    Raises:
        ConfigError: if they are incomplete, or not this network's.
    """
    try:
        trunk.network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"{source} is not a complete {trunk.architecture}: {' '.join(str(error).split())[:400]}"
        ) from error
    return trunk.eval()
