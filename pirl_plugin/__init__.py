"""PIRL: self-supervised learning of pretext-invariant representations (Misra & van der Maaten, CVPR 2020).

The names below need only PyTorch and are imported at first use; pirl_plugin.launch trains with VISSL.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pirl_plugin.network.features import embed as embed
    from pirl_plugin.network.heads import PIRLHead as PIRLHead
    from pirl_plugin.network.trunks import ResNetTrunk as ResNetTrunk
    from pirl_plugin.network.weights import load_trunk as load_trunk
    from pirl_plugin.objective.loss import PIRLLoss as PIRLLoss
    from pirl_plugin.objective.memory_bank import MemoryBank as MemoryBank
    from pirl_plugin.objective.sharded_memory_bank import ShardedMemoryBank as ShardedMemoryBank
    from pirl_plugin.pretext.jigsaw import JigsawPatchTransform as JigsawPatchTransform
    from pirl_plugin.pretext.rotation import RotationTransform as RotationTransform
    from pirl_plugin.validation import ConfigError as ConfigError

_PUBLIC = {
    "ConfigError": "validation",
    "JigsawPatchTransform": "pretext.jigsaw",
    "MemoryBank": "objective.memory_bank",
    "PIRLHead": "network.heads",
    "PIRLLoss": "objective.loss",
    "ResNetTrunk": "network.trunks",
    "RotationTransform": "pretext.rotation",
    "ShardedMemoryBank": "objective.sharded_memory_bank",
    "embed": "network.features",
    "load_trunk": "network.weights",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
