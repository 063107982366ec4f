"""Measures how far unit embeddings are spread, which shows a collapse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NO_VARIANCE = 1e-10  # of unit float32 vectors: rounding alone may leave this much


@dataclass(frozen=True)
class Moments:
    """Sums over embeddings; the sums of several ranks can be added.

    Attributes:
        count: n, scalar.
        total: sum of x, float64 [d].
        products: sum of x x^T, float64 [d, d].
    """

    count: Tensor
    total: Tensor
    products: Tensor

    @classmethod
    def of(cls, embeddings: Tensor) -> Moments:
        """Of unit embeddings [n, d], of any real dtype; n may be 0."""
        values = embeddings.double()  # differences between embeddings may be small compared with their size
        count = torch.tensor(float(len(values)), dtype=torch.float64, device=values.device)
        return cls(count, values.sum(0), values.T @ values)

    def packed(self) -> Tensor:
        """All in one tensor, float64 [1 + d + d * d]."""
        return torch.cat([self.count.view(1), self.total, self.products.flatten()])

    @classmethod
    def unpacked(cls, packed: Tensor, dim: int) -> Moments:
        """The inverse of `packed`."""
        return cls(packed[0], packed[1 : 1 + dim], packed[1 + dim :].view(dim, dim))

    def covariance(self) -> Tensor:
        """Of the embeddings about their mean: float64 [d, d]."""
        mean = self.total / self.count
        return self.products / self.count - torch.outer(mean, mean)


def spectrum(moments: Moments) -> Tensor:
    """Each principal direction's share of the variance, in descending order: float64 [d], sum 1 (0 if no variance)."""
    variances = torch.linalg.eigvalsh(moments.covariance()).clamp(min=0).flip(0)
    total = variances.sum()
    return variances / total if total > NO_VARIANCE else torch.zeros_like(variances)


def effective_rank(moments: Moments) -> float:
    """How many directions the embeddings use: exp of the entropy of `spectrum`, in [1, d] (Roy and Vetterli, 2007).

    0 if all embeddings are the same.
    """
    shares = spectrum(moments)
    return float(torch.special.entr(shares).sum().exp()) if shares.any() else 0.0


def spread(moments: Moments) -> float:
    """The variance of unit embeddings: 0 if all are the same, near 1 if they have no common direction.

    1 minus it is the mean cosine similarity of two embeddings (an embedding with itself included).
    """
    return float(moments.covariance().diagonal().sum().clamp(min=0))
