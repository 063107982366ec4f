"""The memory bank M (Section 2.2): one unit vector m_I an image, a moving average of f(v_I).

Banks are registered by name in MEMORY_BANKS; `pirl_loss.memory_bank.name` chooses one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn.functional import normalize

from pirl_plugin.distributed import gather_padded, largest_over_ranks
from pirl_plugin.validation import ConfigError, check_integer, check_number

MEMORY_BANKS = Registry("memory_bank")

_BLOCK = 8192  # rows initialised from one seed; they fit into a cache


def register_memory_bank(name: str) -> Callable[[type], type]:
    """Register a bank class under `name`."""

    def register(cls: type) -> type:
        MEMORY_BANKS._do_register(name, cls)
        return cls

    return register


def initial_rows(start: int, stop: int, dim: int, seed: int) -> Tensor:
    """Rows start..stop-1 of a new bank: uniformly random unit vectors float32 [stop - start, dim].

    A row depends on its number, dim and seed only: every rank of any world size makes the same.
    """
    rows = torch.empty(stop - start, dim)
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
        first, last = block * _BLOCK, (block + 1) * _BLOCK
        # In place where the block is whole: new memory costs more than the random numbers. Where it is not, drawn
        # whole all the same: what randn gives a row depends on how much it draws.
        whole = start <= first and last <= stop
        values = rows[first - start : last - start] if whole else torch.empty(_BLOCK, dim)
        torch.randn(values.shape, generator=generator, out=values)
        values.div_(torch.linalg.vector_norm(values, dim=1, keepdim=True))
        if not whole:
            low, high = max(first, start), min(last, stop)
            rows[low - start : high - start] = values[low - first : high - first]
    return rows


def combine_duplicates(indices: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each row of a batch is to be averaged with when some rows occur more than once.

    Args:
        indices: int64 [B], negative ones ignored.
        embeddings: float [B, d].

    Returns:
        targets int64 [B]: the row each entry writes to; ignored entries repeat another entry's row, so that
        no write conflicts (row 0 where all are ignored);
        means float [B, d]: the mean of the embeddings of the same row, the same for all of its entries;
        known bool [B]: whether the row has any entry that is not ignored.
    """
    valid = indices >= 0
    first_valid = indices.clamp(min=0).gather(0, valid.int().argmax().unsqueeze(0))
    targets = torch.where(valid, indices, first_valid)
    same = (targets.unsqueeze(0) == targets.unsqueeze(1)) & valid.unsqueeze(0)
    counts = same.sum(dim=1, keepdim=True)
    embeddings = embeddings.masked_fill(~valid.unsqueeze(1), 0)
    means = same.to(embeddings.dtype) @ embeddings / counts.clamp(min=1)
    first = same.int().argmax(dim=1)  # so that all entries of a row get the same bits
    return targets, means[first], counts.squeeze(1) > 0


@register_memory_bank("memory_bank")
class MemoryBank(nn.Module):
    """The whole bank on every rank, kept the same on all of them.

    m_I <- normalise(momentum m_I + (1 - momentum) f(v_I)), with f(v_I) of unit norm. An image that occurs
    more than once in a (global) batch is averaged with the mean of its embeddings, once.

    Args:
        num_rows: |D|, one row an image.
        dim: d.
        momentum: weight of the old row, in [0, 1); 0.5 in the paper.
        fill_first: the first visit of an image only fills its row, with f(v_I), and counts in no loss. Else, as
            in NPID and so in the paper, rows start as random vectors: in the first epoch every positive is noise,
            and what there is to learn is to be unlike the embeddings of the last steps. Worth an epoch where
            there are few.
        seed: of the initial rows.
        batch_capacity: the most images a rank can have in a step; None finds out at every step, at the cost
            of waiting for the device.

    Attributes:
        rows: float32 [|D|, d], unit norm.
        updated: bool [|D|], which rows were ever updated.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int = 128,
        momentum: float = 0.5,
        fill_first: bool = False,
        seed: int = 0,
        batch_capacity: int | None = None,
    ) -> None:
        super().__init__()
        self.num_rows = check_integer(num_rows, "the number of rows of the memory bank", 2)
        self.dim = check_integer(dim, "pirl_loss.embedding_dim", 1)
        self.momentum = check_number(momentum, "pirl_loss.memory_bank.momentum", 0, 1)
        if self.momentum == 1:
            raise ConfigError("pirl_loss.memory_bank.momentum is 1, with which no row would ever change.")
        self.fill_first = bool(fill_first)
        self.batch_capacity = batch_capacity
        self.register_buffer("rows", initial_rows(0, num_rows, dim, seed))
        self.register_buffer("updated", torch.zeros(num_rows, dtype=torch.bool))

    def lookup(self, indices: Tensor) -> Tensor:
        """Rows m_I of `indices` int64 [...]: float32 [..., d], a copy."""
        rows = self.rows.index_select(0, indices.reshape(-1))  # on a CPU twice as fast as self.rows[indices]
        return rows.view(*indices.shape, self.dim)

    def is_filled(self, indices: Tensor) -> Tensor:
        """Whether the rows of `indices` int64 [...] can be positives: bool [...]."""
        return self.updated[indices] if self.fill_first else torch.ones_like(indices, dtype=torch.bool)

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Average the rows of a batch with its embeddings, on all ranks alike.

        Args:
            indices: int64 [b], images of this rank, each below |D|; negative ones are passed over.
            embeddings: [b, d], f(v_I) of unit norm.
        """
        capacity = self.batch_capacity or largest_over_ranks(len(indices), indices.device)
        if len(indices) > capacity:
            raise ValueError(f"A rank has {len(indices)} images in a step; the bank was told at most {capacity}.")
        indices = gather_padded(indices, capacity, -1)
        embeddings = gather_padded(embeddings.to(self.rows.dtype), capacity, 0)
        with torch.autocast(indices.device.type, enabled=False):
            targets, means, known = combine_duplicates(indices, embeddings)
        old = self.rows[targets]
        weight = torch.full_like(means[:, :1], self.momentum)
        if self.fill_first:
            weight = weight * self.updated[targets].unsqueeze(1)
        new = normalize(weight * old + (1 - weight) * means, dim=1)
        self.rows[targets] = torch.where(known.unsqueeze(1), new, old)
        self.updated[targets] = known | self.updated[targets]

    def checksum(self) -> Tensor:
        """A number that differs between banks that differ in any bit, almost surely: int64 scalar."""
        total = torch.zeros((), dtype=torch.int64, device=self.rows.device)
        columns = torch.arange(1, self.dim + 1, device=self.rows.device)
        for number, block in enumerate(self.rows.view(torch.int32).split(_BLOCK)):
            per_row = (block * columns).sum(dim=1)
            total += (per_row * torch.arange(1, len(block) + 1, device=block.device)).sum() * (number + 1)
        return total

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "rows")
        if saved is not None and saved.shape != self.rows.shape:
            raise ConfigError(
                f"The checkpoint's memory bank has {saved.shape[0]} rows of {saved.shape[1]} numbers, but this run "
                f"has {self.num_rows} images and embedding_dim {self.dim}: resume with the data and the dimension "
                f"that the checkpoint was made with."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
