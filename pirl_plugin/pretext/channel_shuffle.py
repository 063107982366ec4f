"""A pretext task that is not in the paper: the colour channels are reordered."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pirl_plugin.pretext.base import SingleViewTransform, draw_number, register_pretext
from pirl_plugin.validation import check_integer

ORDERS = tuple(itertools.permutations(range(3)))  # the identity first


@register_pretext("channel_shuffle_transform")
class ChannelShuffleTransform(SingleViewTransform):
    """T = the orders of red, green and blue.

    Args:
        num_permutations: |T|, from 1 (the identity alone) to 6.
        **common: arguments of SingleViewTransform.
    """

    def __init__(self, num_permutations: int = 6, **common: Any) -> None:
        super().__init__(**common)
        self.num_permutations = check_integer(num_permutations, f"{self.name}.num_permutations (|T|)", 1, len(ORDERS))

    def transform(self, view: Tensor, generator: torch.Generator | None) -> Tensor:
        return view[list(ORDERS[draw_number(self.num_permutations, generator)])]
