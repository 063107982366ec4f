"""The contrasts of one batch: its positives, the negatives D_N drawn for it, and the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from pirl_plugin.objective.forms import ContrastForm
from pirl_plugin.objective.fused_contrast import OnScores, contrast_per_image, contrast_shared
from pirl_plugin.objective.memory_bank import MemoryBank
from pirl_plugin.objective.negatives import draw_negatives, draw_shared_negatives

DRAWN_AT_ONCE = 2**20  # numbers, if a rank keeps only the ones it holds


class BatchContrast:
    """A batch's positives and negatives, the same for both terms of Eq. 5.

    Its B images are those of all ranks if the bank is sharded, else the b images of this rank.

    Args:
        bank: M.
        target: int64 [b], the images' rows; negative for an image that does not count.
        negatives: `per_image`, `shared` or `all`; see PIRLLoss.
        num_negatives: N.
        seed, step: of the draw.

    Attributes:
        valid: bool [B], which images count.
    """

    def __init__(
        self, bank: MemoryBank, target: Tensor, negatives: str, num_negatives: int, seed: int, step: int
    ) -> None:
        self.bank, self.negatives, self.num_negatives = bank, negatives, num_negatives
        self.exchange = bank.exchange(len(target))
        everyone = self.exchange.gather(target, -1)
        self.rows = everyone.clamp(min=0)
        self.valid = (everyone >= 0) & bank.is_filled(self.rows)
        self.positives = bank.lookup(self.rows)
        if negatives == "per_image":
            # With several holders, few images at a time: a draw takes W times the memory of what is kept.
            alone = self.exchange.holders == 1
            at_once = len(self.rows) if alone else max(1, DRAWN_AT_ONCE // num_negatives)
            parts = [
                bank.held(draw_negatives(part, bank.num_rows, num_negatives, seed, step))
                for part in self.rows.split(at_once)
            ]
            self.places = parts[0] if len(parts) == 1 else torch.cat(parts)  # no copy in the usual case
        elif negatives == "shared":
            self.drawn = draw_shared_negatives(bank.num_rows, num_negatives, seed, step, self.rows.device)
            self.places = bank.held(self.drawn)

    def losses(
        self,
        form: ContrastForm,
        queries: Tensor,
        temperature: float,
        threshold: Tensor | None = None,
        on_scores: OnScores | None = None,
    ) -> Tensor:
        """Losses [T, b] of unit queries [T, b, d], differentiable in them; the arguments as in `contrast_per_image`."""
        if self.negatives == "per_image":
            return contrast_per_image(
                form,
                queries,
                self.positives,
                self.bank.rows,
                self.places,
                temperature,
                threshold=threshold,
                on_scores=on_scores,
                exchange=self.exchange,
            )
        if self.negatives == "all":
            rows, places = self.bank.rows, self.bank.held_places()
        else:
            rows, places = self.bank.rows.index_select(0, self.places.clamp(min=0)), self.places
        return contrast_shared(
            form,
            queries,
            self.positives,
            rows,
            places,
            self.bank.places(self.rows),
            temperature,
            threshold=threshold,
            on_scores=on_scores,
            exchange=self.exchange,
        )

    def counts(self) -> Tensor:
        """How many negatives each image has: int64 [B]."""
        number = self.bank.num_rows - 1 if self.negatives == "all" else self.num_negatives
        counts = torch.full_like(self.rows, number)
        if self.negatives == "shared":
            counts = counts - (self.drawn == self.rows.unsqueeze(1)).sum(1)
        return counts
