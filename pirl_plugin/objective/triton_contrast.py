"""Losses from the GPU kernels of pirl_plugin.objective.triton_kernels, if each image has its own negatives.

Slow references: the plain PyTorch path of pirl_plugin.objective.fused_contrast. Without a GPU the kernels run in
Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pirl_plugin.distributed import Alone, largest_over_ranks
from pirl_plugin.objective import triton_kernels
from pirl_plugin.objective.kernel_launch import Launch, fastest_launch, usual_launch
from pirl_plugin.objective.triton_kernels import triton

TAIL = 1 / 128
HEAVY = 0.6
ROWS_OF_A_PROGRAM = 2048
ROWS_OF_A_TRIAL = 2**17  # more than a GPU's cache holds
LARGEST_DIM = 256  # beyond it, tiles outgrow the shared memory of many GPUs
MOST_TERMS = 5  # three sums per term fit the 16 rows of a matrix product


def _tried(what: str, run: Callable[[], object]) -> bool:
    """Whether something works here; if not, the reason is logged."""
    try:
        run()
    except Exception as error:  # the compiler, the linker or the driver can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        logging.warning(
            f"The GPU kernels cannot {what} here, so plain PyTorch does it, which is slower and takes more memory "
            f"({reason}). Triton needs a C compiler and Python's headers (gcc, Python.h) on the machine with the GPU."
        )
        return False
    return True


@functools.cache
def available(device: torch.device) -> bool:
    """Whether Triton is installed and can build kernels for a GPU; tried once."""
    if triton is None:
        logging.warning("Triton is not installed, so plain PyTorch computes the loss on the GPU, which is slower.")
        return False
    keys = torch.zeros(16, dtype=torch.int64, device=device)
    return _tried("be built", lambda: draw_on_gpu(keys, 1024, 2))


def _trial(
    kernel: str, terms: int, dim: int, dtype: torch.dtype, device: torch.device, rows: int, count: int
) -> Callable[[Launch], object]:
    """`scores_and_losses` of 16 images, to time a launch; uses none of PyTorch's random generators."""
    positive = torch.zeros(terms, 16, device=device)
    table = torch.zeros(rows, dim, dtype=dtype, device=device)
    drawn = draw_on_gpu(torch.arange(16, device=device), count, rows)
    queries, threshold = torch.zeros(terms, 16, dim, device=device), positive if kernel == "npid" else None
    return lambda launch: scores_and_losses(kernel, queries, positive, table, drawn, 1.0, threshold, Alone(), launch)


@functools.cache
def _launch(kernel: str, terms: int, dim: int, dtype: torch.dtype, device: torch.device) -> Launch:
    """The launch for a form's kernels: on a GPU, the fastest, timed at the first call. Ranks may differ."""
    if device.type != "cuda":
        return usual_launch(dim)
    try:
        trial = _trial(kernel, terms, dim, dtype, device, ROWS_OF_A_TRIAL, count=16384)
    except torch.OutOfMemoryError:
        return usual_launch(dim)
    return fastest_launch(kernel, dim, trial)


@functools.cache
def _serves(kernel: str, terms: int, dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a form's kernels run on a GPU with tiles of this size; all ranks agree. Tried once."""

    def trial() -> None:
        _trial(kernel, terms, dim, dtype, device, rows=16, count=32)(usual_launch(dim))

    here = available(device) and _tried(f"compute {kernel} with d = {dim}", trial)
    # On the plain path, ranks that share a bank exchange other tensors.
    return largest_over_ranks(int(not here), device) == 0


def usable(kernel: str | None, queries: Tensor, table: Tensor) -> bool:
    """Whether a form's kernels can serve these queries [T, b, d] and rows [R, d]; else plain PyTorch does."""
    if kernel is None or not table.is_cuda or table.dtype not in (torch.float32, torch.bfloat16):
        return False
    terms, _, dim = queries.shape
    if queries.dtype != torch.float32 or dim > LARGEST_DIM or terms > MOST_TERMS:
        return False
    return _serves(kernel, terms, dim, table.dtype, table.device)


def draw_on_gpu(keys: Tensor, count: int, size: int) -> Tensor:
    """pirl_plugin.objective.negatives.draw by a kernel."""
    drawn = torch.empty(len(keys), count, dtype=torch.int64, device=keys.device)
    block = 1024
    triton_kernels.draw[(len(keys), triton.cdiv(count, block))](keys, drawn, count, size, BLOCK=block)
    return drawn


def _precision(table: Tensor) -> str:
    """How float32 products are computed: as three TF32 tensor-core products, if the GPU has them."""
    ampere = table.is_cuda and torch.cuda.get_device_capability(table.device) >= (8, 0)
    return "tf32x3" if ampere else "ieee"


@dataclass(frozen=True)
class _Passed:
    """The results of `pass_by` for a batch, and how it was launched.

    Attributes:
        queries: float32 [T, c, d].
        positive: scores of the positives [T, c].
        table, drawn: rows held here [R, d], and the negatives' places in them [c, N].
        exchange: with the ranks that hold the other rows.
        grid, shape, tile: of the launch.
        scores: of the negatives [T, c, N].
        sums, masses, peaks: by image, part and line [c, P, M, d], [c, P, M], [c, P, M].
    """

    queries: Tensor
    positive: Tensor
    table: Tensor
    drawn: Tensor
    exchange: Alone
    grid: tuple[int, int]
    shape: tuple[int, int, int]
    tile: dict[str, Any]
    scores: Tensor
    sums: Tensor
    masses: Tensor
    peaks: Tensor

    def by_line(self, values: Tensor, kinds: int) -> Tensor:
        """[c, M, ...] -> [kinds, T, c, ...]."""
        terms = len(self.queries)
        return values[:, : kinds * terms].unflatten(1, (kinds, terms)).movedim(0, 2)

    def relative_to(self, reference: Tensor, powers: int) -> tuple[Tensor, Tensor]:
        """Sums of exp(power (score - reference)), and of the rows by them: [powers, T, c] and [powers, T, c, d]."""
        terms, lines = len(self.queries), self.masses.shape[-1]
        # Each part is relative to its own peak.
        power = torch.arange(lines, device=self.queries.device).div(terms, rounding_mode="floor") + 1
        of_lines = reference.T.repeat(1, -(-lines // terms))[:, None, :lines]
        scale = (power * (self.peaks - of_lines)).exp()
        mass = self.by_line((self.masses * scale).sum(1), powers)
        return mass, self.by_line(torch.einsum("cpm,cpmd->cmd", scale, self.sums), powers)

    def top(self) -> Tensor:
        """The largest score of the negatives [T, c]."""
        return self.exchange.maximum(self.peaks[:, :, : len(self.queries)].amax(1).T)


Losses = tuple[Tensor, Tensor, Tensor]  # losses, dL/d positive score, rows by dL/d the negatives' scores


def _npid(passed: _Passed, threshold: Tensor) -> Losses:
    terms, above = len(passed.queries), threshold - passed.positive
    (loss,) = passed.exchange.sum(passed.masses.sum(1).T[:terms].contiguous())
    summed = passed.sums.sum(1)[:, :terms].transpose(0, 1)
    return softplus(above) + loss, -torch.sigmoid(above), summed


def _infonce(passed: _Passed, threshold: Tensor) -> Losses:
    reference = torch.maximum(passed.top(), passed.positive)
    mass, vectors = passed.relative_to(reference, powers=1)
    positive_share = (passed.positive - reference).exp()
    total = passed.exchange.sum(mass[0])[0] + positive_share
    losses = total.log() + reference - passed.positive
    return losses, positive_share / total - 1, vectors[0] / total.unsqueeze(-1)


def _nce(passed: _Passed, threshold: Tensor) -> Losses:
    top = passed.top()
    reference = torch.maximum(top, passed.positive)
    mass, vectors = passed.relative_to(reference, powers=3)
    positive_share = (passed.positive - reference).exp()
    total = passed.exchange.sum(mass[0])[0] + positive_share
    log_total = total.log() + reference
    heavy = (top - log_total).exp() > HEAVY
    triton_kernels.nce_tail[passed.grid](
        passed.table, passed.drawn, passed.scores, reference.contiguous(), log_total.contiguous(), top.contiguous(),
        heavy.to(torch.int32).contiguous(), passed.sums, passed.masses, *passed.shape, TAIL=TAIL, **passed.tile,
    )  # fmt: skip
    odds, log_complements, below = passed.exchange.sum(*passed.by_line(passed.masses.sum(1), 3))
    tail, linear, top_row = passed.by_line(passed.sums.sum(1), 3)
    top_share = torch.where(heavy, (top - reference).exp(), 0)
    others = below + positive_share
    total = others + top_share
    top_complement = torch.where(heavy, others / total, 1)
    top_odds = top_share / total / top_complement
    slope = 2 - odds - top_odds
    losses = total.log() + reference - passed.positive - log_complements - top_complement.log()
    shares = [vectors[power - 1] / total.unsqueeze(-1) ** power for power in (1, 2, 3)]
    by_slope, is_heavy = slope.unsqueeze(-1), heavy.unsqueeze(-1)
    summed = torch.where(is_heavy, by_slope * linear, by_slope * shares[0] + shares[1] + shares[2]) + tail
    summed += (top_share / total * (2 - odds)).unsqueeze(-1) * top_row
    return losses, positive_share / total * (slope - 1) - 1, summed


# By name: the powers of exp(score) to sum while the rows are read, and the function that turns the sums into losses.
KERNELS: dict[str, tuple[int, Callable[[_Passed, Tensor], Losses]]] = {
    "nce": (3, _nce),
    "npid": (1, _npid),
    "infonce": (1, _infonce),
}


def scores_and_losses(
    kernel: str,
    queries: Tensor,
    positive: Tensor,
    table: Tensor,
    drawn: Tensor,
    temperature: float,
    threshold: Tensor | None,
    exchange: Alone,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and weighted sums of rows of some images.

    Args:
        kernel: one of KERNELS.
        queries: float32 [T, c, d].
        positive: scores of the positives [T, c].
        table: rows held here, float32 or bfloat16 [R, d].
        drawn: int64 [c, N], places in the table; negative: none.
        threshold: npid only [T, c].
        exchange: with the ranks that hold the other rows.
        launch: block size and warps; None: the fastest here.

    Returns:
        scores of the negatives [T, c, N], losses [T, c], dL/d positive score [T, c], and the sum of the negatives'
        rows here by dL/d their scores [T, c, d].
    """
    powers, finish = KERNELS[kernel]
    queries, drawn = queries.contiguous(), drawn.contiguous()
    (terms, images, dim), count = queries.shape, drawn.shape[1]
    launch = launch or _launch(kernel, terms, dim, table.dtype, table.device)
    lines = max(16, triton.next_power_of_2(3 * terms))
    parts = triton.cdiv(count, ROWS_OF_A_PROGRAM)
    tile = {
        "TERMS": terms,
        "M": lines,
        "BLOCK": launch.rows,
        "BLOCKS": ROWS_OF_A_PROGRAM // launch.rows,
        "D": max(16, triton.next_power_of_2(dim)),
        "PRECISION": _precision(table),
        "num_warps": launch.warps,
    }
    scores = queries.new_empty(terms, images, count)
    sums = queries.new_empty(images, parts, lines, dim)
    masses, peaks = queries.new_empty(2, images, parts, lines)
    limits = positive if threshold is None else threshold.contiguous()
    grid, shape = (images, parts), (images, count, dim)
    triton_kernels.pass_by[grid](
        queries, table, drawn, limits, scores, sums, masses, peaks, *shape, 1 / temperature,
        FORM=kernel, POWERS=powers, **tile,
    )  # fmt: skip
    passed = _Passed(queries, positive, table, drawn, exchange, grid, shape, tile, scores, sums, masses, peaks)
    return scores, *finish(passed, limits)


def bytes_per_image(terms: int, num_negatives: int, dim: int) -> int:
    """Memory of `scores_and_losses` per image: scores and partial sums."""
    parts = math.ceil(num_negatives / ROWS_OF_A_PROGRAM)
    return 4 * (terms * num_negatives + parts * max(16, 4 * terms) * dim)
