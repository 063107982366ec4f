"""Warnings that a training's features get worse, each logged once with remedies that helped when tried."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

REMEDIES = (
    "What helped when tried: heads with batch_norm: true, a lower learning rate, more steps (`pirl pretrain` "
    "picks all three); see docs/small_data_sets.md."
)
LATE = 2 / 3  # of the epochs, after which a loss at chance level is a bad sign
NEAR = 0.02  # distance of the loss from chance
FALLEN, NARROW = 0.25, 8.0  # share of the largest effective rank so far, and number of directions
SAMPLE = 1024  # rows of the bank whose movement is measured
STILL = 1e-5  # mean 1 - cosine between a row and itself an epoch before


def chance_loss(loss: Any) -> float | None:
    """The value of Eq. 5 if all scores are equal, so that no image is told apart; None for a form with a constant Z.

    Args:
        loss: a PIRLLoss.
    """
    if loss.form.uses_z:
        return None
    count = loss.num_rows - 1 if loss.negatives == "all" else loss.num_negatives
    return float(loss.form.definition(torch.zeros(1, dtype=torch.float64), torch.zeros(1, count, dtype=torch.float64)))


class WarningSigns:
    """Remembers the statistics of past epochs.

    Args:
        chance: the loss at chance level; None if it is not known.
        epochs: number of epochs of the run.
    """

    def __init__(self, chance: float | None, epochs: int) -> None:
        self.chance, self.epochs = chance, epochs
        self.largest_rank = 0.0
        self.rows: Tensor | None = None
        self.given: set[str] = set()

    def after_epoch(self, epoch: int, loss: float | None, rank: float | None, rows: Tensor) -> Iterator[str]:
        """Yield warnings, one sentence each.

        Args:
            epoch: from 1.
            loss: its mean; None if there was none yet.
            rank: effective rank of the bank; None if it is not known.
            rows: some rows of the bank, float [n, d], the same ones each time.
        """
        for sign, sentence in self._found(epoch, loss, rank, rows):
            if sign not in self.given:
                self.given.add(sign)
                yield f"{sentence} {REMEDIES}"

    def _found(self, epoch: int, loss: float | None, rank: float | None, rows: Tensor) -> Iterator[tuple[str, str]]:
        late = epoch >= max(2, LATE * self.epochs)
        if late and loss is not None and self.chance is not None and loss > (1 - NEAR) * self.chance:
            sentence = (
                f"After {epoch} of {self.epochs} epochs the loss is {loss:.3f}, and if no image is told apart it is "
                f"{self.chance:.3f}: the network has not learned to tell images apart."
            )
            yield "chance", sentence
        self.largest_rank = max(self.largest_rank, rank or 0.0)
        if rank is not None and rank < min(NARROW, FALLEN * self.largest_rank):
            sentence = (
                f"The memory bank's effective rank has fallen from {self.largest_rank:.1f} to {rank:.1f}: the "
                f"embeddings of all images become alike."
            )
            yield "rank", sentence
        before, self.rows = self.rows, rows.detach().float().clone()
        if before is None or before.shape != rows.shape or len(rows) == 0:
            return
        moved = 1 - float(torch.cosine_similarity(before, self.rows, dim=1).mean())
        if moved < STILL:
            sentence = (
                f"The memory bank hardly moved in epoch {epoch} (1 - cosine {moved:.1g}): the learning rate may be too "
                f"low, or the views of an image are all alike."
            )
            yield "still", sentence
