"""Finds the ResNets in a checkpoint file's content, whichever library or method wrote it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from pirl_plugin.validation import ConfigError

# Of several networks in a file, the one that the method's authors evaluate: DINO's teacher, the trained encoder of MoCo
# and BYOL, timm's weight average.
_CHOSEN = (r"\bteacher\b", r"\bencoder_q\b", r"\bonline_(network|encoder|net)\b", r"(model|state_dict)_ema\b")
_VISSL = "classy_state_dict.base_model.model.trunk."
_DEPTH = 5  # of mappings in mappings, in a file


def networks_in(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(place, weights by torchvision's names) of every ResNet trunk in a file's content."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    tensors = {str(key).replace("_orig_mod.", ""): value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in sorted({key.removesuffix("conv1.weight") for key in tensors if key.endswith("conv1.weight")}):
        if f"{prefix}layer1.0.conv1.weight" in tensors:
            yield f"{place}{prefix}", _below(tensors, prefix)
    for prefix in sorted({key.removesuffix("0.weight") for key in tensors if re.search(r"(^|\.)0\.weight$", key)}):
        below = _named_children(_below(tensors, prefix))
        if below:
            yield f"{place}{prefix}", below
    for key, value in content.items():
        yield from networks_in(value, f"{place}{key}.", depth + 1)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _named_children(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of nn.Sequential(*resnet.children()) by their names in the ResNet; empty if it is not one."""
    stages = sorted(int(match.group(1)) for key in tensors if (match := re.fullmatch(r"(\d+)\.0\.conv1\.weight", key)))
    if len(stages) != 4 or stages != list(range(stages[0], stages[0] + 4)) or stages[0] < 3:
        return {}
    names = {"0": "conv1", "1": "bn1"} | {str(stage): f"layer{i + 1}" for i, stage in enumerate(stages)}
    parts = ((key.partition("."), value) for key, value in tensors.items())
    return {f"{names[first]}.{rest}": value for (first, _, rest), value in parts if first in names}


def choose_network(networks: Mapping[str, Any], source: str) -> str:
    """The place of the network to use, of all in a file."""
    if not networks:
        raise ConfigError(
            f"{source} holds no trunk of a ResNet (conv1, bn1, layer1 to layer4): it may hold only a head, or "
            f"another architecture."
        )
    own = [place for place in networks if place.startswith(_VISSL)]
    if len(own) == 1:  # a loss may hold a momentum encoder as well
        return own[0]
    for pattern in _CHOSEN if len(networks) > 1 else ():
        matching = [place for place in networks if re.search(pattern, place)]
        if len(matching) == 1:
            return matching[0]
    if len(networks) > 1:
        names = ", ".join(repr(place) for place in networks)
        raise ConfigError(
            f"{source} holds {len(networks)} ResNets, at {names}: save the one that is meant in a separate file."
        )
    return next(iter(networks))
