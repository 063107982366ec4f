"""The contrast between a positive pair and N negatives (Eq. 3-4), the NPID form and InfoNCE.

Pure functions of scores: cosine similarity / tau of a query with its positive [B] and with its negatives
[B, N]. `keep` bool [B, N] says which negatives count (None: all). Each returns the loss of each image [B];
the scores may have any float dtype, the arithmetic is at least float32.

The query is g(v_It) in the first term of Eq. 5 and f(v_I) in the second; positives and negatives are rows of
the memory bank in both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus


def _prepare(positive: Tensor, negatives: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(positive.dtype, torch.float32)
    positive, negatives = positive.to(dtype), negatives.to(dtype)
    if keep is not None:
        negatives = negatives.masked_fill(~keep, -math.inf)
    return positive, negatives


def nce(positive: Tensor, negatives: Tensor, keep: Tensor | None = None) -> Tensor:
    """The paper's loss: -log h(positive) - sum over the negatives of log(1 - h(negative)).

    Read literally, the second term of Eq. 4 swaps its arguments and its denominator would compare negatives
    with each other. The reading here: the query is scored once against {positive} and D_N, one softmax gives
    each its share h (Eq. 3), and the second term sums log(1 - share) over the negatives.

    Where all shares of the negatives are small, log(1 - h) is about -h, and the loss is close to InfoNCE plus
    (1 - the positive's share).
    """
    positive, negatives = _prepare(positive, negatives, keep)
    scores = torch.cat([positive.unsqueeze(1), negatives], dim=1)
    log_total = scores.logsumexp(dim=1, keepdim=True)
    # log(1 - share) of the largest score loses all digits when its share is near 1: there it comes from the
    # sum of the others. Every other share is at most 1/2.
    largest = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.argmax(1, keepdim=True), True)
    log_rest = scores.masked_fill(largest, -math.inf).logsumexp(dim=1, keepdim=True) - log_total
    share = (scores - log_total).exp().masked_fill(largest, 0)
    log_complement = torch.where(largest, log_rest, torch.log1p(-share))
    return (log_total.squeeze(1) - positive) - log_complement[:, 1:].sum(dim=1)


def infonce(positive: Tensor, negatives: Tensor, keep: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy of the positive against {positive} and D_N: -log h(positive)."""
    positive, negatives = _prepare(positive, negatives, keep)
    return torch.cat([positive.unsqueeze(1), negatives], dim=1).logsumexp(dim=1) - positive


def npid(
    positive: Tensor,
    negatives: Tensor,
    log_z: Tensor,
    num_rows: int,
    keep: Tensor | None = None,
) -> Tensor:
    """NPID's noise-contrastive form (Wu et al. 2018): P = exp(s) / Z against uniform noise.

    h = P / (P + N / |D|), loss = -log h(positive) - sum of log(1 - h(negative)), with N the number of
    negatives that count.

    Args:
        log_z: log of the normalising constant Z, a scalar without gradient; see `estimate_log_z`.
        num_rows: |D|; the noise has density 1 / |D|.
    """
    positive, negatives = _prepare(positive, negatives, keep)
    counts = torch.full_like(positive, negatives.shape[1]) if keep is None else keep.sum(dim=1).to(positive)
    threshold = log_z + counts.log() - math.log(num_rows)
    return softplus(threshold - positive) + softplus(negatives - threshold.unsqueeze(1)).sum(dim=1)


def estimate_log_z(negatives: Tensor, num_rows: int, keep: Tensor | None = None) -> Tensor:
    """log of |D| times the mean of exp(score) over a batch's negatives: a scalar without gradient."""
    _, negatives = _prepare(negatives[:, 0], negatives.detach(), keep)
    count = negatives.numel() if keep is None else keep.sum()
    count = torch.as_tensor(count, dtype=negatives.dtype, device=negatives.device)
    return negatives.flatten().logsumexp(0) - count.log() + math.log(num_rows)
