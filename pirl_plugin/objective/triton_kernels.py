"""GPU kernels (Triton) if each image has its own negatives: every row is read once and never copied to memory.

A query's gradient is sum_k w_k m_k over the rows m_k of its negatives, and its weights w_k are known only after all
of its scores. The sums taken while the rows are read must therefore not need them:

- infonce: w_k = p_k, the share exp(s_k) / total: an online softmax, as in attention.
- npid: w_k = sigmoid(s_k - threshold) is known at once.
- nce: w_k = slope p_k + p_k^2 / (1 - p_k), with `slope` known at the end. The second part is p^2 + p^3 + p^4 / (1 - p):
  sums of exp(s), exp(2 s) and exp(3 s) times the rows are kept, and the last part matters only where p > `TAIL`, for
  less than 1 / TAIL rows. `nce_tail` goes through the scores again and reads those rows only. If one negative takes
  more than `HEAVY` of the total, it is handled apart and the rows of that query are read a second time: what is left
  for the others would be lost to rounding.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # then plain PyTorch does the work
    triton = None

if triton is not None:

    @triton.jit(do_not_specialize=["size"])  # 1 would become a plain int
    def draw(keys, drawn, count, size, BLOCK: tl.constexpr):
        """pirl_plugin.objective.negatives.draw, equal bit by bit."""
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
    def rows_at(table, places, wanted, columns, dim):
        """Rows [BLOCK, D] of the bank in float32, zero where not wanted; unwanted ones are not read."""
        address = table + places[:, None] * dim + columns[None, :]
        return tl.load(address, mask=wanted[:, None] & (columns < dim)[None, :], other=0.0).to(tl.float32)

    @triton.jit
    def pass_by(
        queries, table, drawn, thresholds, scores, sums, masses, peaks,
        images, count, dim, inverse_temperature,
        FORM: tl.constexpr, TERMS: tl.constexpr, POWERS: tl.constexpr, M: tl.constexpr,
        BLOCK: tl.constexpr, BLOCKS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """Reads the rows, once.

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
            rows = rows_at(table, place, wanted, columns, dim)
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
    def nce_tail(
        table, drawn, scores, references, log_totals, tops, heavy, sums, masses,
        images, count, dim, TAIL: tl.constexpr, TERMS: tl.constexpr, M: tl.constexpr,
        BLOCK: tl.constexpr, BLOCKS: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    ):  # fmt: skip
        """What the powers of `pass_by` leave out, over all negatives except the top one of a heavy query.

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
                rows = rows_at(table, place, (place >= 0) & (largest > 0), columns, dim)
                total += tl.dot(weight, rows, input_precision=PRECISION)
        place = (image * tl.num_programs(1) + part) * M + line
        tl.store(sums + place[:, None] * dim + columns[None, :], total, mask=(columns < dim)[None, :])
        tl.store(masses + place, mass)
