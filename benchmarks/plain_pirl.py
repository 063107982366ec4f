"""PIRL's training step in plain PyTorch, for the GPU report: no trainer, so that nothing else is measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.trunks import ResNetTrunk, feature_channels


@dataclass(frozen=True)
class Step:
    """The settings of a step.

    Attributes:
        depth, width, stem: of the ResNetTrunk.
        bfloat16: autocast for the network; the loss is computed in float32 in any case.
        compiled: torch.compile for the trunk.
    """

    depth: int = 50
    width: float = 1.0
    stem: str = "imagenet"
    bfloat16: bool = False
    compiled: bool = False


class PlainPIRL(nn.Module):
    """Trunk, heads, loss with its bank, and SGD; see examples/plain_pytorch.py for the same as a script.

    Args:
        step: settings of a step.
        loss: a PIRLLoss, with its bank.
        learning_rate, weight_decay: of SGD with momentum 0.9; the rate may be changed in `optimizer`.
    """

    def __init__(
        self, step: Step, loss: nn.Module, device: torch.device, learning_rate: float = 0.03, weight_decay: float = 1e-4
    ) -> None:
        super().__init__()
        self.how, self.where = step, device
        channels = feature_channels(step.depth, step.width)["res5"]
        self.trunk = ResNetTrunk(step.depth, step.width, stem=step.stem)
        self.f, self.g = PIRLHead("image", channels), PIRLHead("jigsaw", channels)
        self.loss = loss
        self.to(device, memory_format=torch.channels_last)
        if step.compiled:
            self.trunk.compile(dynamic=False)
        parameters = [parameter for part in (self.trunk, self.f, self.g) for parameter in part.parameters()]
        self.optimizer = torch.optim.SGD(parameters, learning_rate, momentum=0.9, weight_decay=weight_decay)

    def embeddings(self, images: Tensor, patches: Tensor) -> list[Tensor]:
        """f(v_I) and g(v_It), float32 [B, d] each."""
        images, patches = (views.contiguous(memory_format=torch.channels_last) for views in (images, patches))
        with torch.autocast(self.where.type, torch.bfloat16, enabled=self.how.bfloat16):
            (of_images,), (of_patches,) = self.trunk(images), self.trunk(patches)
            return [self.f(of_images).float(), self.g(of_patches).float()]

    def step(self, images: Tensor, patches: Tensor, index: Tensor) -> Tensor:
        """One step of SGD on views float32 [B, 3, S, S] and [9 B, 3, P, P]; returns the loss without waiting for it."""
        loss = self.loss(self.embeddings(images, patches), index)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
