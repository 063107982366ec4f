"""Computes loss and query gradient of the contrasts together, without ever holding B x N rows of the bank.

The gradient of a contrast with respect to its query is a weighted sum of the rows just read, as in attention: with
the scores s_k of a query, the weights are dL/ds_k / tau, given in closed form by
pirl_plugin.objective.closed_forms. So one gather of rows serves scores and gradient, for both terms of Eq. 5,
and nothing of size B x N x d is stored for a backward pass. The slow references are autograd on
pirl_plugin.objective.contrast.

If the rows are spread over ranks, each rank scores the images of all ranks against the rows it holds, and an
exchange (pirl_plugin.distributed) adds up the parts of a loss: a few numbers per image, and the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pirl_plugin.distributed import Alone
from pirl_plugin.objective import triton_contrast
from pirl_plugin.objective.forms import ContrastForm

CHUNK_BYTES = 32 * 2**20  # of temporary rows or scores; more on a GPU, see `_budget`
PIECE_BYTES = 2**20  # of scores turned into weights together on a CPU


def _in_pieces(
    form: ContrastForm, positive: Tensor, negatives: Tensor, threshold: Tensor | None, exchange: Alone
) -> tuple[Tensor, Tensor, Tensor]:
    """`form.loss_and_weights` of scores [T, b, N], on a CPU a few queries at a time, to fit the cache."""
    if negatives.device.type != "cpu":
        return form.loss_and_weights(positive, negatives, threshold, exchange)
    shape, flat = positive.shape, negatives.view(-1, negatives.shape[-1])
    positive = positive.reshape(-1)
    threshold = None if threshold is None else threshold.reshape(-1)
    losses, weights = torch.empty_like(positive), torch.empty_like(positive)
    step = max(1, PIECE_BYTES // (4 * max(1, flat.shape[1])))
    for start in range(0, len(flat), step):
        piece = slice(start, start + step)
        limit = None if threshold is None else threshold[piece]
        losses[piece], weights[piece], _ = form.loss_and_weights(positive[piece], flat[piece], limit, exchange)
    return losses.view(shape), weights.view(shape), negatives


def _budget(device: torch.device) -> int:
    return CHUNK_BYTES if device.type == "cpu" else 16 * CHUNK_BYTES


def _product(left: Tensor, rows: Tensor, transpose: bool) -> Tensor:
    """left @ rows.T or left @ rows, with `rows` [N, d] of any float dtype, converted block by block."""
    if rows.dtype == left.dtype:
        return left @ (rows.T if transpose else rows)
    blocks = rows.split(max(1, _budget(rows.device) // (4 * rows.shape[1])))
    if transpose:
        return torch.cat([left @ block.to(left.dtype).T for block in blocks], dim=-1)
    result = left.new_zeros(*left.shape[:-1], rows.shape[1])
    for block, weights in zip(blocks, left.split([len(block) for block in blocks], dim=-1), strict=True):
        result += weights @ block.to(left.dtype)
    return result


class _Contrast(torch.autograd.Function):
    """losses [T, B] of queries [T, B, d]; the gradient is computed in the forward pass."""

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


OnScores = Callable[[slice, Tensor, Tensor], None]
Triple = tuple[Tensor, Tensor, Tensor]
Evaluate = Callable[[slice, Tensor, Tensor, Tensor | None], Triple]


def _contrast_in_chunks(
    queries: Tensor,
    positives: Tensor,
    bytes_per_image: int,
    evaluate: Evaluate,
    temperature: float,
    threshold: Tensor | None,
    exchange: Alone,
) -> Tensor:
    """Losses [T, b], computed for as many images at a time as the memory budget allows.

    Args:
        bytes_per_image: memory per image in a chunk; the same on all ranks.
        evaluate: (which images, their queries [T, c, d], scores of the positives [T, c], thresholds [T, c]) -> losses
            [T, c], dL/d score of the positives [T, c], rows of the negatives here summed by dL/d score [T, c, d].
        threshold: npid only, [T, B].
        Others as in `contrast_per_image`.
    """

    def compute(queries: Tensor) -> tuple[Tensor, Tensor]:
        queries = exchange.gather(queries.transpose(0, 1)).transpose(0, 1)
        losses, gradients = queries.new_empty(queries.shape[:2]), torch.empty_like(queries)
        positive_scores = (queries * positives).sum(-1) / temperature
        step = max(1, _budget(queries.device) // max(1, bytes_per_image))
        for start in range(0, queries.shape[1], step):
            chunk = slice(start, min(start + step, queries.shape[1]))
            limit = None if threshold is None else threshold[:, chunk]
            losses[:, chunk], positive_weights, summed = evaluate(
                chunk, queries[:, chunk], positive_scores[:, chunk], limit
            )
            # Every rank has the positive, so each adds only its share of it.
            positive_weights = (positive_weights / exchange.holders).unsqueeze(-1)
            gradients[:, chunk] = (summed + positive_weights * positives[chunk]) / temperature
        (gradients,) = exchange.sum(gradients)
        return exchange.own(losses), exchange.own(gradients.transpose(1, 2)).transpose(1, 2)

    return _Contrast.apply(queries, compute)


def contrast_per_image(
    form: ContrastForm,
    queries: Tensor,
    positives: Tensor,
    table: Tensor,
    drawn: Tensor,
    temperature: float,
    threshold: Tensor | None = None,
    on_scores: OnScores | None = None,
    exchange: Alone = Alone(),  # noqa: B008
) -> Tensor:
    """Losses if each image has its own N negatives.

    B is the number of images on all ranks of the exchange, b the number on this rank; with a single rank, B = b.

    Args:
        form: of pirl_plugin.objective.forms.
        queries: unit vectors float [T, b, d], T terms over the same images and negatives.
        positives: rows float [B, d].
        table: the rows of the bank held here, [R, d], any float dtype.
        drawn: int64 [B, N], the negatives' places in `table`; negative if there is none.
        temperature: tau.
        threshold: npid only, [T, B], log(Z N / |D|).
        on_scores: called for every chunk of images with (which images, positive scores [T, c], scores of the
            negatives held here [T, c, N]) before they are overwritten.
        exchange: with the ranks that hold the other rows.

    Returns:
        losses [T, b], differentiable in `queries`.
    """

    def by_kernel(chunk: slice, queries: Tensor, positive: Tensor, threshold: Tensor | None) -> Triple:
        assert form.kernel is not None
        scores, losses, positive_weights, summed = triton_contrast.scores_and_losses(
            form.kernel, queries, positive, table, drawn[chunk], temperature, threshold, exchange
        )
        if on_scores is not None:
            on_scores(chunk, positive, scores)
        return losses, positive_weights, summed

    def plainly(chunk: slice, queries: Tensor, positive: Tensor, threshold: Tensor | None) -> Triple:
        places = drawn[chunk]
        held = places.clamp(min=0) if exchange.holders > 1 else places
        # The bank is read only here: [c, N, d]. On a CPU index_select is twice as fast as table[places].
        rows = table.index_select(0, held.reshape(-1)).view(*places.shape, -1).to(queries.dtype)
        scores = torch.bmm(rows, queries.permute(1, 2, 0)).permute(2, 0, 1).contiguous().div_(temperature)
        if exchange.holders > 1:
            scores.masked_fill_(places < 0, -math.inf)
        if on_scores is not None:
            on_scores(chunk, positive, scores)
        losses, positive_weights, weights = _in_pieces(form, positive, scores, threshold, exchange)
        return losses, positive_weights, torch.bmm(weights.transpose(0, 1), rows).transpose(0, 1)

    evaluate: Evaluate = plainly
    bytes_per_image = 4 * drawn.shape[1] * queries.shape[2]
    if triton_contrast.usable(form.kernel, queries, table):
        evaluate = by_kernel
        bytes_per_image = triton_contrast.bytes_per_image(len(queries), drawn.shape[1], queries.shape[2])
    return _contrast_in_chunks(queries, positives, bytes_per_image, evaluate, temperature, threshold, exchange)


def contrast_shared(
    form: ContrastForm,
    queries: Tensor,
    positives: Tensor,
    rows: Tensor,
    places: Tensor | None,
    own: Tensor,
    temperature: float,
    threshold: Tensor | None = None,
    on_scores: OnScores | None = None,
    exchange: Alone = Alone(),  # noqa: B008
) -> Tensor:
    """Losses if all images share the same negatives.

    Args:
        rows: [N, d], any float dtype: a shared draw from the rows held here, or all of them.
        places: int64 [N], their places among the rows held here, negative if they do not count; None if
            `rows` is the whole bank in order.
        own: int64 [B], the place of each image's own row, which does not count for it; negative if another rank
            holds it.
        threshold: npid only, [T, B], log(Z N_b / |D|) with N_b the rows that count.
        Others as in `contrast_per_image`.

    Returns:
        losses [T, b], differentiable in `queries`.
    """
    terms, _, dim = queries.shape

    def evaluate(chunk: slice, queries: Tensor, positive: Tensor, threshold: Tensor | None) -> Triple:
        scores = _product(queries.reshape(-1, dim), rows, transpose=True).div_(temperature).view(terms, -1, len(rows))
        if places is None:
            scores.scatter_(-1, own[chunk].view(1, -1, 1).expand(terms, -1, 1), -math.inf)
        else:
            scores.masked_fill_((places == own[chunk].unsqueeze(1)) | (places < 0), -math.inf)
        if on_scores is not None:
            on_scores(chunk, positive, scores)
        losses, positive_weights, weights = _in_pieces(form, positive, scores, threshold, exchange)
        return losses, positive_weights, _product(weights.view(-1, len(rows)), rows, False).view(terms, -1, dim)

    bytes_per_image = 4 * terms * len(rows)
    return _contrast_in_chunks(queries, positives, bytes_per_image, evaluate, temperature, threshold, exchange)
