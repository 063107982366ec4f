"""Loss and query gradient of the contrasts together, without ever holding B x N rows of the bank.

The gradient of a contrast with respect to its query is a weighted sum of the rows that were just read, as in
attention: with the scores s_k of a query, the weights are dL/ds_k / tau, and each form has them in closed form
(`loss_and_weights`). So one gather of some rows serves scores and gradient, for both terms of Eq. 5, and nothing of
size B x N x d is stored for a backward pass. The slow references are autograd on pirl_plugin.contrast.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

CHUNK_BYTES = 32 * 2**20  # of temporary rows or scores; more on a GPU, see `_budget`
PIECE_BYTES = 2**20  # of scores that are turned into weights together on a CPU


def loss_and_weights(
    form: str, positive: Tensor, negatives: Tensor, threshold: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A contrast and its derivatives with respect to the scores.

    Args:
        form: nce, infonce or npid; see pirl_plugin.contrast for the definitions.
        positive: scores (cosine / tau) of the positives [...].
        negatives: scores of the negatives [..., N], -inf where they do not count; OVERWRITTEN with the weights.
        threshold: npid only: log(Z N / |D|) of each query [...].

    Returns:
        loss [...], dL/d positive [...], dL/d negatives [..., N] (the memory of `negatives`).
    """
    if form == "npid":
        loss = softplus(negatives - threshold.unsqueeze(-1)).sum(-1)
        weights = negatives.sub_(threshold.unsqueeze(-1)).sigmoid_()
        return softplus(threshold - positive) + loss, -torch.sigmoid(threshold - positive), weights

    top = negatives.amax(dim=-1)
    reference = torch.maximum(top, positive)
    positive_share = (positive - reference).exp()
    if form == "infonce":
        share = negatives.sub_(reference.unsqueeze(-1)).exp_()
        total = share.sum(-1) + positive_share
        return total.log() + reference - positive, positive_share / total - 1, share.div_(total.unsqueeze(-1))

    # nce. A share near 1 leaves no digits in 1 - share: for the largest negative (and its equals) it comes from the
    # sum of the others.
    is_top = negatives == top.unsqueeze(-1)
    share = negatives.sub_(reference.unsqueeze(-1)).exp_().masked_fill_(is_top, 0)
    below, equals = share.sum(-1), is_top.sum(-1)
    top_share = (top - reference).exp()
    others = below + positive_share + (equals - 1) * top_share
    total = others + top_share
    share.div_(total.unsqueeze(-1))
    positive_share, top_share, top_complement = positive_share / total, top_share / total, others / total
    odds = share / (1 - share)
    odds_below = odds.sum(-1)
    loss = total.log() + reference - positive - torch.log1p(-share).sum(-1) - equals * top_complement.log()
    # With odds r = p / (1 - p) and A their sum over the negatives, dL/ds_k = p_k (2 - (A - r_k)) for a negative
    # and p (1 - A) - 1 for the positive.
    top_odds = top_share / top_complement
    all_odds = odds_below + equals * top_odds
    weights = torch.mul(odds.add_((2 - all_odds).unsqueeze(-1)), share, out=negatives)
    top_weight = top_share * (2 - odds_below - (equals - 1) * top_odds)
    weights.addcmul_(is_top.to(weights.dtype), top_weight.unsqueeze(-1))
    return loss, positive_share * (1 - all_odds) - 1, weights


def _in_pieces(
    form: str, positive: Tensor, negatives: Tensor, threshold: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`loss_and_weights` of scores [T, b, N], on a CPU a few queries at a time: what it holds then fits a cache."""
    if negatives.device.type != "cpu":
        return loss_and_weights(form, positive, negatives, threshold)
    shape, flat = positive.shape, negatives.view(-1, negatives.shape[-1])
    positive = positive.reshape(-1)
    threshold = None if threshold is None else threshold.reshape(-1)
    losses, weights = torch.empty_like(positive), torch.empty_like(positive)
    step = max(1, PIECE_BYTES // (4 * max(1, flat.shape[1])))
    for start in range(0, len(flat), step):
        piece = slice(start, start + step)
        limit = None if threshold is None else threshold[piece]
        losses[piece], weights[piece], _ = loss_and_weights(form, positive[piece], flat[piece], limit)
    return losses.view(shape), weights.view(shape), negatives


def _budget(device: torch.device) -> int:
    return CHUNK_BYTES if device.type == "cpu" else 16 * CHUNK_BYTES


class _Contrast(torch.autograd.Function):
    """losses [T, B] of queries [T, B, d]; the gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx, queries: Tensor, compute: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            losses, gradients = compute(queries.detach())
        ctx.save_for_backward(gradients)
        return losses

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None]:
        (gradients,) = ctx.saved_tensors
        return gradients * upstream.unsqueeze(-1), None


def _contrast_in_chunks(
    form: str,
    queries: Tensor,
    positives: Tensor,
    bytes_per_image: int,
    score: Callable[[slice, Tensor], tuple[Tensor, Tensor]],
    weighted_sum: Callable[[Tensor, Tensor], Tensor],
    temperature: float,
    threshold: Tensor | None,
    on_scores: Callable[[slice, Tensor, Tensor], None] | None,
) -> Tensor:
    """Losses [T, B], as many images at a time as the budget has room for.

    Args:
        bytes_per_image: what an image adds to a chunk.
        score: (which images, their queries [T, b, d]) -> scores of the negatives [T, b, N] and the rows that gave them.
        weighted_sum: (weights [T, b, N], those rows) -> [T, b, d].
        threshold: npid only, [T, B].
        Others as in `contrast_per_image`.
    """

    def compute(queries: Tensor) -> tuple[Tensor, Tensor]:
        losses, gradients = queries.new_empty(queries.shape[:2]), torch.empty_like(queries)
        positive_scores = (queries * positives).sum(-1) / temperature
        step = max(1, _budget(queries.device) // bytes_per_image)
        for start in range(0, queries.shape[1], step):
            chunk = slice(start, min(start + step, queries.shape[1]))
            scores, rows = score(chunk, queries[:, chunk])
            own = positive_scores[:, chunk]
            if on_scores is not None:
                on_scores(chunk, own, scores)
            limit = None if threshold is None else threshold[:, chunk]
            losses[:, chunk], positive_weights, weights = _in_pieces(form, own, scores, limit)
            sums = weighted_sum(weights, rows) + positive_weights.unsqueeze(-1) * positives[chunk]
            gradients[:, chunk] = sums / temperature
        return losses, gradients

    return _Contrast.apply(queries, compute)


def contrast_per_image(
    form: str,
    queries: Tensor,
    positives: Tensor,
    lookup: Callable[[Tensor], Tensor],
    drawn: Tensor,
    temperature: float,
    threshold: Tensor | None = None,
    on_scores: Callable[[slice, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Losses with N negatives of its own for each image.

    Args:
        form: nce, infonce or npid.
        queries: unit vectors float [T, B, d], T terms over the same images and negatives.
        positives: rows float [B, d].
        lookup: int64 [...] -> rows [..., d] of the bank.
        drawn: int64 [B, N], the negatives' rows.
        temperature: tau.
        threshold: npid only, [T], log(Z N / |D|).
        on_scores: called for every chunk of images with (which images, positive scores [T, b], negative scores
            [T, b, N]) before they are overwritten.

    Returns:
        losses [T, B], differentiable in `queries`.
    """

    def score(chunk: slice, queries: Tensor) -> tuple[Tensor, Tensor]:
        rows = lookup(drawn[chunk]).to(queries.dtype)  # [b, N, d]: the only reading of the bank
        return torch.bmm(rows, queries.permute(1, 2, 0)).permute(2, 0, 1).contiguous().div_(temperature), rows

    def weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
        return torch.bmm(weights.transpose(0, 1), rows).transpose(0, 1)

    limit = None if threshold is None else threshold.unsqueeze(1).expand(queries.shape[:2])
    bytes_per_image = 4 * drawn.shape[1] * queries.shape[2]
    arguments = (bytes_per_image, score, weighted_sum, temperature, limit, on_scores)
    return _contrast_in_chunks(form, queries, positives, *arguments)


def contrast_shared(
    form: str,
    queries: Tensor,
    positives: Tensor,
    rows: Tensor,
    row_numbers: Tensor | None,
    own: Tensor,
    temperature: float,
    threshold: Tensor | None = None,
    on_scores: Callable[[slice, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Losses with the same rows as negatives for every image.

    Args:
        rows: [N, d], any float dtype: a shared draw, or the whole bank.
        row_numbers: int64 [N], which rows of the bank they are; None where `rows` is the whole bank in its order.
        own: int64 [B], each image's own row of the bank, which does not count for it.
        threshold: npid only, [T, B], log(Z N_b / |D|) with N_b the rows that count.
        Others as in `contrast_per_image`.

    Returns:
        losses [T, B], differentiable in `queries`.
    """

    terms, _, dim = queries.shape
    table = rows.to(queries.dtype)

    def score(chunk: slice, queries: Tensor) -> tuple[Tensor, Tensor]:
        scores = (queries.reshape(-1, dim) @ table.T).div_(temperature).view(terms, -1, len(table))
        if row_numbers is None:
            scores.scatter_(-1, own[chunk].view(1, -1, 1).expand(terms, -1, 1), -math.inf)
        else:
            scores.masked_fill_(row_numbers == own[chunk].unsqueeze(1), -math.inf)
        return scores, table

    def weighted_sum(weights: Tensor, table: Tensor) -> Tensor:
        return (weights.view(-1, len(table)) @ table).view(terms, -1, dim)

    arguments = (4 * terms * len(rows), score, weighted_sum, temperature, threshold, on_scores)
    return _contrast_in_chunks(form, queries, positives, *arguments)
