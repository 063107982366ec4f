"""Statistics of a batch's scores: the estimate of Z, and the similarities shown in the log."""

from __future__ import annotations

import torch
from torch import Tensor

from pirl_plugin.distributed import sum_over_ranks


class ScoreStatistics:
    """Sums over the scores of a batch, collected from the contrasts; everything stays on the device.

    Args:
        terms: T.
        valid: bool [B], which images count.
    """

    def __init__(self, terms: int, valid: Tensor) -> None:
        self.valid = valid
        self.also_report = False
        sums = torch.zeros(5, terms, dtype=torch.float64, device=valid.device)
        self.exponentials, self.counts, self.negatives, self.above, self.positives = sums

    def sum_exponentials(self, chunk: slice, positive: Tensor, negatives: Tensor) -> None:
        """For Z: the sum of exp(score) over the negatives that count, of the images that count."""
        valid = self.valid[chunk]
        per_image = negatives.double().logsumexp(-1).exp()
        self.exponentials += per_image.masked_fill(~valid, 0).sum(1)
        if self.also_report:
            self.report(chunk, positive, negatives)
        else:
            self.counts += (negatives.isfinite().sum(-1) * valid).sum(1)

    def report(self, chunk: slice, positive: Tensor, negatives: Tensor) -> None:
        """For the log: similarities, and negatives above the positive."""
        valid, finite = self.valid[chunk], negatives.isfinite()
        self.counts += (finite.sum(-1) * valid).sum(1)
        self.negatives += negatives.masked_fill(~finite, 0).sum(-1).masked_fill(~valid, 0).sum(1)
        self.above += ((negatives > positive.unsqueeze(-1)).sum(-1) * valid).sum(1)
        self.positives += positive.masked_fill(~valid, 0).sum(1)

    @torch.no_grad()
    def means(self, temperature: float, names: list[str]) -> dict[str, Tensor]:
        """Means over the images of all ranks that count, by term: scalars on the device."""
        images = self.valid.sum().expand_as(self.counts)
        # If ranks share the images of a batch, each has part of the negatives or all of them: the ratios are the same.
        sums = sum_over_ranks(torch.stack([self.positives, images, self.negatives, self.above, self.counts]))
        positives, images, negatives, above, counts = sums
        values = {
            "positive_similarity": temperature * positives / images.clamp(min=1),
            "negative_similarity": temperature * negatives / counts.clamp(min=1),
            "negatives_above_positive": above / counts.clamp(min=1),
        }
        return {f"{name}/{key}": value[number] for key, value in values.items() for number, name in enumerate(names)}
