"""Each contrast and its derivatives with respect to the scores, in closed form, as used in training.

The slow references are autograd on the definitions of pirl_plugin.objective.contrast. Each function takes

    positive    scores (cosine / tau) of the positives, float [...]
    negatives   scores of the negatives held here [..., N], -inf for those that do not count; OVERWRITTEN
    threshold   `npid` only: log(Z N / |D|) of each query [...]
    exchange    with the ranks that hold the other negatives

and returns the loss [...], dL/d positive [...] and dL/d negatives [..., N] (in the memory of `negatives`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pirl_plugin.distributed import Alone
from pirl_plugin.validation import ConfigError

LossAndWeights = tuple[Tensor, Tensor, Tensor]
ClosedForm = Callable[[Tensor, Tensor, Tensor | None, Alone], LossAndWeights]


def npid(positive: Tensor, negatives: Tensor, threshold: Tensor | None, exchange: Alone) -> LossAndWeights:
    """dL/ds = sigmoid(s - threshold) for a negative, -sigmoid(threshold - s) for the positive."""
    assert threshold is not None
    (loss,) = exchange.sum(softplus(negatives - threshold.unsqueeze(-1)).sum(-1))
    weights = negatives.sub_(threshold.unsqueeze(-1)).sigmoid_()
    return softplus(threshold - positive) + loss, -torch.sigmoid(threshold - positive), weights


def infonce(positive: Tensor, negatives: Tensor, threshold: Tensor | None, exchange: Alone) -> LossAndWeights:
    """dL/ds = the share p for a negative, p - 1 for the positive."""
    reference = torch.maximum(exchange.maximum(negatives.amax(dim=-1)), positive)
    positive_share = (positive - reference).exp()
    share = negatives.sub_(reference.unsqueeze(-1)).exp_()
    total = exchange.sum(share.sum(-1))[0] + positive_share
    return total.log() + reference - positive, positive_share / total - 1, share.div_(total.unsqueeze(-1))


def nce(positive: Tensor, negatives: Tensor, threshold: Tensor | None, exchange: Alone) -> LossAndWeights:
    """With odds r = p / (1 - p) and A their sum over the negatives: p_k (2 - (A - r_k)) for a negative, p (1 - A) - 1
    for the positive.

    A share near 1 leaves no digits in 1 - share: for the largest negative (and its equals) it comes from the sum of the
    others.
    """
    top = exchange.maximum(negatives.amax(dim=-1))
    reference = torch.maximum(top, positive)
    positive_share = (positive - reference).exp()
    is_top = negatives == top.unsqueeze(-1)
    share = negatives.sub_(reference.unsqueeze(-1)).exp_().masked_fill_(is_top, 0)
    below, equals = exchange.sum(share.sum(-1), is_top.sum(-1).to(share.dtype))
    top_share = (top - reference).exp()
    others = below + positive_share + (equals - 1) * top_share
    total = others + top_share
    share.div_(total.unsqueeze(-1))
    positive_share, top_share, top_complement = positive_share / total, top_share / total, others / total
    odds = share / (1 - share)
    odds_below, log_complements = exchange.sum(odds.sum(-1), torch.log1p(-share).sum(-1))
    loss = total.log() + reference - positive - log_complements - equals * top_complement.log()
    top_odds = top_share / top_complement
    slope = 2 - odds_below - equals * top_odds
    weights = torch.mul(odds.add_(slope.unsqueeze(-1)), share, out=negatives)
    top_weight = top_share * (2 - odds_below - (equals - 1) * top_odds)
    weights.addcmul_(is_top.to(weights.dtype), top_weight.unsqueeze(-1))
    return loss, positive_share * (slope - 1) - 1, weights


def by_autograd(
    definition: Callable[[Tensor, Tensor], Tensor], positive: Tensor, negatives: Tensor, exchange: Alone
) -> LossAndWeights:
    """The same by autograd, for a contrast without a closed form: slower, and takes more memory.

    Args:
        definition: scores of the positives [B] and of the negatives [B, N] -> losses [B].

    Raises:
        ConfigError: if the definition returns another shape.
    """
    queries = positive.numel()
    with torch.enable_grad():
        scores = positive.detach().reshape(queries).requires_grad_()
        everyone = exchange.join(negatives.detach().reshape(queries, -1)).requires_grad_()
        loss = definition(scores, everyone)
        if loss.shape != scores.shape:
            raise ConfigError(
                f"The contrast {getattr(definition, '__name__', definition)!r} returns {tuple(loss.shape)} for "
                f"{queries} queries; it must return one loss each, ({queries},)."
            )
        of_positive, of_negatives = torch.autograd.grad(
            loss.sum(), (scores, everyone), allow_unused=True, materialize_grads=True
        )
    negatives.copy_(exchange.part(of_negatives).view_as(negatives))
    return loss.detach().view_as(positive), of_positive.view_as(positive), negatives
