"""`pirl_task`: VISSL's training task, with the network and its inputs as `pirl_train_step` wants them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from classy_vision.tasks import register_task
from torch import Tensor
from vissl.trainer.train_task import SelfSupervisionTask

from pirl_plugin.pretext import PRETEXT_TRANSFORMS, PretextTransform
from pirl_plugin.step_settings import StepSettings


@register_task("pirl_task")
class PIRLTask(SelfSupervisionTask):
    """VISSL's task; reads TRAINER.PIRL_TRAIN_STEP of the config.

    Attributes:
        step_settings: of `pirl_train_step`.
        transform: the pretext transform, for what its workers leave to the device.
    """

    def __init__(self, config) -> None:
        super().__init__(config)
        self.step_settings = StepSettings.from_config(config.TRAINER.get("PIRL_TRAIN_STEP", {}))

    @functools.cached_property
    def transform(self) -> PretextTransform:
        transform = self.config.DATA.TRAIN.TRANSFORMS[0]
        return PRETEXT_TRANSFORMS[transform["name"]].from_config(transform)

    def _build_model(self):
        model = super()._build_model()
        if self.step_settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.step_settings.compile:
            model.trunk.compile()  # in place: names of weights stay
        return model

    def prepare_inputs(self, sample: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """The network's inputs of a batch, augmented and normalised: [B, 3, h, w], or such by name."""
        inputs = sample["input"]
        parameters = sample["photometric"][0] if "photometric" in sample else None
        if isinstance(inputs, dict):
            return self.transform.finish(inputs, parameters)
        return self.transform.finish({"images": inputs}, parameters)["images"]
