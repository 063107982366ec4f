"""Reads PIRL's loss from a run's config: its class and settings, also of subclasses under another name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classy_vision.losses import LOSS_REGISTRY

from pirl_plugin.objective.loss import PIRLLoss


def pirl_loss_class(config: Any) -> type[PIRLLoss] | None:
    """The class named by LOSS.name if it is PIRLLoss or a subclass, else None."""
    cls = LOSS_REGISTRY.get(config["LOSS"]["name"])
    return cls if isinstance(cls, type) and issubclass(cls, PIRLLoss) else None


def pirl_loss_settings(config: Any) -> Any:
    """LOSS.<name> of a config, which should be a mapping but may be anything; None if it is missing."""
    return config["LOSS"].get(config["LOSS"]["name"])


def sharded_bank_settings(config: Any) -> dict[str, Any] | None:
    """LOSS.<name>.memory_bank of a run's config if it is a sharded_memory_bank, else None."""
    settings = pirl_loss_settings(config) if pirl_loss_class(config) is not None else None
    bank = settings.get("memory_bank") if isinstance(settings, Mapping) else None
    return bank if isinstance(bank, dict) and bank.get("name") == "sharded_memory_bank" else None
