"""GPU kernels (Triton) for negatives of each image's own: every row is read once, and never stored again.

A query's gradient is sum_k w_k m_k over the rows m_k of its negatives, and its weights w_k are known only after all
of its scores. What is summed while the rows pass by must therefore not need them:

- infonce: w_k = p_k, the share exp(s_k) / total: an online softmax, as in attention.
- npid: w_k = sigmoid(s_k - threshold) is known at once.
- nce: w_k = slope p_k + p_k^2 / (1 - p_k), with `slope` known at the end. The second part is p^2 + p^3 + p^4 / (1 - p):
  sums of exp(s), exp(2 s) and exp(3 s) times the rows are kept, and the last part matters only where p > `TAIL`, for
  less than 1 / TAIL rows. `_nce_tail` passes over the scores again and reads those rows only. Where one negative takes
  more than `HEAVY` of the total, it is told apart and the rows of that one query are read a second time: what is left
  for the others would drown in rounding.

Slow references: the plain PyTorch path of pirl_plugin.objective.fused_contrast. Without a GPU the kernels run in
Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pirl_plugin.distributed import Alone

try:
    import triton
    import triton.language as tl
except ImportError:  # then plain PyTorch does the work
    triton = None

TAIL = 1 / 128
HEAVY = 0.6
ROWS_OF_A_BLOCK = 32  # with 4 warps no register is spilled; compiled for, but not yet timed on, a GPU
ROWS_OF_A_PROGRAM = 2048
LARGEST_DIM = 256  # beyond it, tiles outgrow the shared memory of many GPUs
MOST_TERMS = 5  # three sums a term fit the 16 rows of a matrix product


def available() -> bool:
    """Whether Triton is installed."""
    return triton is not None


def usable(queries: Tensor, table: Tensor) -> bool:
    """Whether the kernels can serve these queries [T, b, d] and rows [R, d]; else plain PyTorch does."""
    fits = queries.dtype == torch.float32 and queries.shape[2] <= LARGEST_DIM and len(queries) <= MOST_TERMS
    return table.is_cuda and available() and fits and table.dtype in (torch.float32, torch.bfloat16)


if triton is not None:

    @triton.jit(do_not_specialize=["size"])  # 1 would become a plain int
    def _draw(keys, drawn, count, size, BLOCK: tl.constexpr):
        """pirl_plugin.objective.negatives.draw, bit by bit."""
        image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
        number = block * BLOCK + tl.arange(0, BLOCK)
        bits = tl.load(keys + image) + (number + 1).to(tl.int64) * -7046029254386353131
        bits ^= (bits >> 30) & 17179869183
        bits *= -4658895280553007687
        bits ^= (bits >> 27) & 137438953471
        bits *= -7723592293110705685
        bits ^= (bits >> 31) & 8589934591
        uniform = ((bits >> 11) & 9007199254740991).to(tl.float64)
        value = (uniform * (size.to(tl.float64) * 1.1102230246251565e-16)).to(tl.int64)
        tl.store(drawn + image * count + number, value, mask=number < count)

    @triton.jit
    def _rows(table, places, wanted, columns, dim):
        """Rows [BLOCK, D] of the bank in float32, zero where not wanted; unwanted ones are not read."""
        address = table + places[:, None] * dim + columns[None, :]
        return tl.load(address, mask=wanted[:, None] & (columns < dim)[None, :], other=0.0).to(tl.float32)

    @triton.jit
    def _pass_by(
        queries, table, drawn, thresholds, scores, sums, masses, peaks,
        images, count, dim, inverse_temperature,
        FORM: tl.constexpr, TERMS: tl.constexpr, POWERS: tl.constexpr, M: tl.constexpr,
        BLOCK: tl.constexpr, BLOCKS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """The only reading of the rows.

        Line m of a tile belongs to term m % TERMS and to power m // TERMS + 1. Leaves for each image, part and line:
        sum of weight x row [D], sum of weights (npid: the loss) and the score that the exponentials are relative to.
        """
        image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        line, columns = tl.arange(0, M), tl.arange(0, D)
        term, power = line % TERMS, (line // TERMS + 1).to(tl.float32)
        used = line < TERMS * POWERS
        address = queries + (term * images + image)[:, None] * dim + columns[None, :]
        query = tl.load(address, mask=used[:, None] & (columns < dim)[None, :], other=0.0)
        if FORM == "npid":
            threshold = tl.load(thresholds + term * images + image, mask=used, other=0.0)
        total = tl.zeros((M, D), tl.float32)
        mass = tl.zeros((M,), tl.float32)
        peak = tl.full((M,), float("-inf"), tl.float32)
        for block in range(BLOCKS):
            number = (part * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
            place = tl.load(drawn + image * count + number, mask=number < count, other=-1)
            wanted = place >= 0
            rows = _rows(table, place, wanted, columns, dim)
            score = tl.dot(query, tl.trans(rows), input_precision=PRECISION) * inverse_temperature
            score = tl.where(wanted[None, :], score, float("-inf"))
            where = scores + (term * images + image)[:, None] * count + number[None, :]
            tl.store(where, score, mask=(line < TERMS)[:, None] & (number < count)[None, :])
            if FORM == "npid":
                above = score - threshold[:, None]
                weight = 1 / (1 + tl.exp(-above))
                # softplus
                mass += tl.sum(tl.maximum(above, 0.0) + tl.log(1 + tl.exp(-tl.abs(above))), axis=1)
            else:
                higher = tl.maximum(peak, tl.max(score, axis=1))
                finite = tl.where(higher == float("-inf"), 0.0, higher)
                shrink = tl.exp(power * (peak - finite))
                weight = tl.exp(power[:, None] * (score - finite[:, None]))
                mass = mass * shrink + tl.sum(weight, axis=1)
                total *= shrink[:, None]
                peak = higher
            total += tl.dot(weight, rows, input_precision=PRECISION)
        place = (image * tl.num_programs(1) + part) * M + line
        tl.store(sums + place[:, None] * dim + columns[None, :], total, mask=(columns < dim)[None, :])
        tl.store(masses + place, mass)
        tl.store(peaks + place, peak)

    @triton.jit
    def _nce_tail(
        table, drawn, scores, references, log_totals, tops, heavy, sums, masses,
        images, count, dim, TAIL: tl.constexpr, TERMS: tl.constexpr, M: tl.constexpr,
        BLOCK: tl.constexpr, BLOCKS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """What the powers of `_pass_by` leave out, over the negatives but the top one of a heavy query.

        Line m belongs to term m % TERMS and has, by m // TERMS,
        0: rows by p^4 / (1 - p) where p > TAIL (heavy: by p^2 / (1 - p), all); sum of the odds p / (1 - p)
        1: heavy: rows by p; sum of log(1 - p)
        2: heavy: the top row; sum of exp(score - reference)
        """
        image, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
        line, columns = tl.arange(0, M), tl.arange(0, D)
        term, kind = line % TERMS, line // TERMS
        used = line < 3 * TERMS
        query = term * images + image
        reference = tl.load(references + query, mask=used, other=0.0)[:, None]
        log_total = tl.load(log_totals + query, mask=used, other=0.0)[:, None]
        top = tl.load(tops + query, mask=used, other=0.0)[:, None]
        is_heavy = tl.load(heavy + query, mask=used, other=0)[:, None] != 0
        kind = kind[:, None]
        total = tl.zeros((M, D), tl.float32)
        mass = tl.zeros((M,), tl.float32)
        for block in range(BLOCKS):
            number = (part * BLOCKS + block) * BLOCK + tl.arange(0, BLOCK)
            inside = used[:, None] & (number < count)[None, :]
            score = tl.load(scores + query[:, None] * count + number[None, :], mask=inside, other=float("-inf"))
            is_top = is_heavy & (score == top)
            share = tl.where(is_top, 0.0, tl.exp(score - log_total))
            odds = share / (1 - share)
            # log(1 - p); where p is small from its series, because 1 - p has no digits for it
            series = -share * (1 + share * (0.5 + share * (1 / 3 + share * (0.25 + share * 0.2))))
            log_complement = tl.where(share < 0.03125, series, tl.log(1 - share))
            relative = tl.where(is_top, 0.0, tl.exp(score - reference))
            mass += tl.sum(tl.where(kind == 0, odds, tl.where(kind == 1, log_complement, relative)), axis=1)
            tail = tl.where(share > TAIL, odds * share * share * share, 0.0)
            first = tl.where(is_heavy, odds * share, tail)
            second = tl.where(is_heavy, share, 0.0)
            weight = tl.where(kind == 0, first, tl.where(kind == 1, second, tl.where(is_top, 1.0, 0.0)))
            weight = tl.where(inside, weight, 0.0)
            largest = tl.max(weight, axis=0)
            if tl.max(largest, axis=0) > 0:
                place = tl.load(drawn + image * count + number, mask=number < count, other=-1)
                rows = _rows(table, place, (place >= 0) & (largest > 0), columns, dim)
                total += tl.dot(weight, rows, input_precision=PRECISION)
        place = (image * tl.num_programs(1) + part) * M + line
        tl.store(sums + place[:, None] * dim + columns[None, :], total, mask=(columns < dim)[None, :])
        tl.store(masses + place, mass)


def draw_on_gpu(keys: Tensor, count: int, size: int) -> Tensor:
    """pirl_plugin.objective.negatives.draw by a kernel."""
    drawn = torch.empty(len(keys), count, dtype=torch.int64, device=keys.device)
    block = 1024
    _draw[(len(keys), triton.cdiv(count, block))](keys, drawn, count, size, BLOCK=block)
    return drawn


def _precision(table: Tensor) -> str:
    """How products of float32 are made: three tensor-core products where there are such cores, and no fewer."""
    ampere = table.is_cuda and torch.cuda.get_device_capability(table.device) >= (8, 0)
    return "tf32x3" if ampere else "ieee"


def scores_and_losses(
    form: str,
    queries: Tensor,
    positive: Tensor,
    table: Tensor,
    drawn: Tensor,
    temperature: float,
    threshold: Tensor | None,
    exchange: Alone,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and weighted sums of rows of some images.

    Args:
        queries: float32 [T, c, d].
        positive: scores of the positives [T, c].
        table: rows held here, float32 or bfloat16 [R, d].
        drawn: int64 [c, N], places in the table, negative where there is none.
        threshold: npid only [T, c].
        exchange: with the ranks that hold the other rows.

    Returns:
        scores of the negatives [T, c, N], losses [T, c], dL/d positive score [T, c], and the sum of the negatives'
        rows here by dL/d their scores [T, c, d].
    """
    queries, drawn = queries.contiguous(), drawn.contiguous()
    (terms, images, dim), count = queries.shape, drawn.shape[1]
    powers = 3 if form == "nce" else 1
    lines = max(16, triton.next_power_of_2(3 * terms))
    blocks = ROWS_OF_A_PROGRAM // ROWS_OF_A_BLOCK
    parts = triton.cdiv(count, ROWS_OF_A_PROGRAM)
    tile = {
        "TERMS": terms,
        "M": lines,
        "BLOCK": ROWS_OF_A_BLOCK,
        "BLOCKS": blocks,
        "D": max(16, triton.next_power_of_2(dim)),
        "PRECISION": _precision(table),
    }
    scores = queries.new_empty(terms, images, count)
    sums = queries.new_empty(images, parts, lines, dim)
    masses, peaks = queries.new_empty(2, images, parts, lines)
    limits = positive if threshold is None else threshold.contiguous()
    shape = (images, count, dim)
    _pass_by[(images, parts)](
        queries, table, drawn, limits, scores, sums, masses, peaks, *shape, 1 / temperature,
        FORM=form, POWERS=powers, **tile,
    )  # fmt: skip
    if form == "npid":
        (loss,) = exchange.sum(masses.sum(1).T[:terms])
        loss = softplus(limits - positive) + loss
        return scores, loss, -torch.sigmoid(limits - positive), sums.sum(1)[:, :terms].transpose(0, 1)

    def by_line(values: Tensor, kinds: int) -> Tensor:
        """[c, M, ...] -> [kinds, T, c, ...]."""
        return values[:, : kinds * terms].unflatten(1, (kinds, terms)).movedim(0, 2)

    top = exchange.maximum(peaks[:, :, :terms].amax(1).T)
    reference = torch.maximum(top, positive)
    # Each part is relative to its own peak.
    powered = torch.arange(lines, device=queries.device).div(terms, rounding_mode="floor") + 1
    lines_reference = reference.T.repeat(1, -(-lines // terms))[:, None, :lines]
    scale = (powered * (peaks - lines_reference)).exp()
    mass = by_line((masses * scale).sum(1), powers)
    vectors = by_line(torch.einsum("cpm,cpmd->cmd", scale, sums), powers)
    positive_share = (positive - reference).exp()
    total = exchange.sum(mass[0])[0] + positive_share
    log_total = total.log() + reference
    if form == "infonce":
        return scores, log_total - positive, positive_share / total - 1, vectors[0] / total.unsqueeze(-1)

    heavy = (top - log_total).exp() > HEAVY
    _nce_tail[(images, parts)](
        table, drawn, scores, reference.contiguous(), log_total.contiguous(), top.contiguous(),
        heavy.to(torch.int32).contiguous(), sums, masses, *shape, TAIL=TAIL, **tile,
    )  # fmt: skip
    odds, log_complements, below = exchange.sum(*by_line(masses.sum(1), 3))
    tail, linear, top_row = by_line(sums.sum(1), 3)
    top_share = torch.where(heavy, (top - reference).exp(), 0)
    others = below + positive_share
    total = others + top_share
    top_complement = torch.where(heavy, others / total, 1)
    top_odds = top_share / total / top_complement
    log_total = total.log() + reference
    slope = 2 - odds - top_odds
    loss = log_total - positive - log_complements - top_complement.log()
    shares = [vectors[power - 1] / total.unsqueeze(-1) ** power for power in (1, 2, 3)]
    slope_, heavy_ = slope.unsqueeze(-1), heavy.unsqueeze(-1)
    summed = torch.where(heavy_, slope_ * linear, slope_ * shares[0] + shares[1] + shares[2]) + tail
    summed += (top_share / total * (2 - odds)).unsqueeze(-1) * top_row
    return scores, loss, positive_share / total * (slope - 1) - 1, summed


def bytes_per_image(terms: int, num_negatives: int, dim: int) -> int:
    """What `scores_and_losses` holds for an image: scores and partial sums."""
    parts = math.ceil(num_negatives / ROWS_OF_A_PROGRAM)
    return 4 * (terms * num_negatives + parts * max(16, 4 * terms) * dim)
