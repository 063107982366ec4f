"""The forms L of the contrast by name: the definition of each, and the code that trains with it.

`definition` is the slow, obviously correct function of pirl_plugin.objective.contrast; `closed_form` and `kernel` are
the fast versions, which tests compare with it. Your own form needs only a definition: docs/add_a_contrast_form.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pirl_plugin.distributed import Alone
from pirl_plugin.objective import closed_forms, contrast
from pirl_plugin.registry import Registry
from pirl_plugin.validation import ConfigError


@dataclass(frozen=True)
class ContrastForm:
    """A contrast between a positive and N negatives.

    Attributes:
        name: its name in `pirl_loss.contrast`.
        definition: the slow reference: (positive scores [B], negative scores [B, N]) -> losses [B]; with `uses_z` it
            also takes log Z and |D|.
        closed_form: used in training; None: autograd on the definition is.
        kernel: used in training on a GPU if each image has its own negatives, by its name in
            pirl_plugin.objective.triton_contrast; None: the closed form is used there as well.
        uses_z: whether it has NPID's constant Z, which the loss estimates; it then needs a closed form.
    """

    name: str
    definition: Callable[..., Tensor]
    closed_form: closed_forms.ClosedForm | None = None
    kernel: str | None = None
    uses_z: bool = False

    def __post_init__(self) -> None:
        if self.uses_z and self.closed_form is None:
            raise ConfigError(f"The contrast form {self.name!r} uses Z and has no closed form, which Z needs.")

    def loss_and_weights(
        self, positive: Tensor, negatives: Tensor, threshold: Tensor | None = None, exchange: Alone | None = None
    ) -> closed_forms.LossAndWeights:
        """The contrast and its derivatives with respect to the scores; see pirl_plugin.objective.closed_forms."""
        exchange = exchange or Alone()
        if self.closed_form is None:
            return closed_forms.by_autograd(self.definition, positive, negatives, exchange)
        return self.closed_form(positive, negatives, threshold, exchange)

    def check(self) -> None:
        """Try the definition on a few scores and raise if it cannot be trained with.

        Raises:
            ConfigError: if losses or gradients are not finite, or a negative that does not count has a gradient.
        """
        generator = torch.Generator().manual_seed(0)
        positive, negatives = torch.randn(3, generator=generator), torch.randn(3, 5, generator=generator)
        negatives[1, 2] = -torch.inf
        loss, of_positive, of_negatives = self.loss_and_weights(positive, negatives)
        finite = all(bool(values.isfinite().all()) for values in (loss, of_positive, of_negatives))
        if not finite or of_negatives[1, 2] != 0:
            raise ConfigError(
                f"The contrast {self.name!r} gives losses {loss.tolist()} and a gradient of "
                f"{float(of_negatives[1, 2])} for a negative of score -inf, which "
                f"does not count: losses and gradients must be finite, and that one 0."
            )


FORMS: Registry[ContrastForm] = Registry("contrast form")

FORMS.register("nce", ContrastForm("nce", contrast.nce, closed_forms.nce, kernel="nce"))
FORMS.register("npid", ContrastForm("npid", contrast.npid, closed_forms.npid, kernel="npid", uses_z=True))
FORMS.register("infonce", ContrastForm("infonce", contrast.infonce, closed_forms.infonce, kernel="infonce"))


def register_form(name: str) -> Callable[[Callable[[Tensor, Tensor], Tensor]], Callable[[Tensor, Tensor], Tensor]]:
    """Register the definition of a contrast under `name`, which `pirl_loss.contrast` then takes.

    The function gets the scores (cosine / tau) of the positives, float [B], and of the negatives, float [B, N], where
    -inf stands for a negative that does not count, and returns the losses [B]. Autograd computes the gradient.
    """

    def register(definition: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        FORMS.register(name, ContrastForm(name, definition))
        return definition

    return register
