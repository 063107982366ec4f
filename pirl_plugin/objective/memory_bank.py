"""The memory bank M (Section 2.2): one unit vector m_I per image, a moving average of f(v_I).

Banks are registered by name in MEMORY_BANKS; `pirl_loss.memory_bank.name` chooses one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pirl_plugin.distributed import Alone, AmongRanks, largest_over_ranks
from pirl_plugin.objective import counter_generator
from pirl_plugin.registry import Registry
from pirl_plugin.safe_loading import read_safely
from pirl_plugin.validation import ConfigError, check_boolean, check_choice, check_integer, check_number

Bank = TypeVar("Bank", bound="MemoryBank")
MEMORY_BANKS: Registry[type[MemoryBank]] = Registry("memory bank")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

OF_INITIAL_ROWS = -1  # instead of a step number: draws of negatives have steps from 0
BLOCK = 2048  # rows generated together


def register_memory_bank(name: str) -> Callable[[type[Bank]], type[Bank]]:
    """Register a memory bank under `name`, which `pirl_loss.memory_bank.name` then accepts."""

    def register(cls: type[Bank]) -> type[Bank]:
        MEMORY_BANKS.register(name, cls)
        return cls

    return register


def initial_rows(
    num_rows: int, dim: int, seed: int, first: int = 0, step: int = 1, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rows first, first + step, ... below num_rows of a new bank: uniformly random unit vectors.

    A row depends only on its number, dim and seed, so it is the same on every rank and for any world size.

    Args:
        num_rows: |D|.
        dim: d.
        seed: at least 0.
        first: below `step`.
        step: 1 for all rows.
        dtype: of the result; the numbers are drawn in float32.

    Returns:
        [ceil((num_rows - first) / step), dim].
    """
    rows = torch.empty(len(range(first, num_rows, step)), dim, dtype=dtype)

    def fill(block: Tensor, start: int) -> None:
        numbers = torch.arange(BLOCK) * step + start
        values = counter_generator.normal(counter_generator.keys(numbers, seed, OF_INITIAL_ROWS), dim)
        block.copy_((values / torch.linalg.vector_norm(values, dim=1, keepdim=True))[: len(block)])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        list(threads.map(fill, rows.split(BLOCK), range(first, num_rows, step * BLOCK)))
    return rows


def bank_rows(checkpoint: Any, source: str) -> Tensor:
    """The whole bank in a checkpoint of this plugin or of VISSL's PIRL or NPID: float32 [|D|, d], of unit norm.

    Raises:
        ConfigError: if there is none.
    """
    whole = checkpoint if isinstance(checkpoint, Mapping) else {}
    loss = whole.get("loss", whole)  # without VISSL, a file may hold the loss alone
    loss = loss if isinstance(loss, Mapping) else {}
    if "memory_bank.rows" in loss:
        return loss["memory_bank.rows"].float()
    if "nce_average.memory" in loss:  # whose first rows are shorter with every rank
        return normalize(loss["nce_average.memory"].float(), dim=1)
    where = " (but names the shard files of one)" if "memory_bank._extra_state" in loss else ""
    raise ConfigError(f"{source} holds no memory bank{where}; initial_rows needs a checkpoint that does.")


def combine_duplicates(indices: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What to average each row of a batch with if some rows occur more than once.

    Args:
        indices: int64 [B], negative ones ignored.
        embeddings: float [B, d].

    Returns:
        targets int64 [B]: the row each entry writes to; ignored entries repeat another entry's row, so that
        no write conflicts (row 0 if all are ignored);
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
    """A full copy of the bank on every rank, kept identical on all of them.

    m_I <- normalise(momentum m_I + (1 - momentum) f(v_I)), with f(v_I) of unit norm. An image that occurs
    more than once in a (global) batch is averaged with the mean of its embeddings, once.

    Args:
        num_rows: |D|, one row per image.
        dim: d.
        momentum: weight of the old row, in [0, 1); 0.5 in the paper.
        fill_first: the first visit of an image only fills its row, with f(v_I), and counts in no loss. Else, as
            in NPID and so in the paper, rows start as random vectors: in the first epoch every positive is noise,
            and the network only learns to differ from the embeddings of the last steps. Worth an epoch if
            there are few.
        dtype: float32 or bfloat16, in which the rows are stored; all arithmetic is float32.
        seed: of the initial rows.
        initial_rows: a checkpoint (of this plugin, or of VISSL's PIRL or NPID) whose bank, of the same number of rows,
            to start from, with all rows marked as updated; None for random rows.
        batch_capacity: the largest number of images per rank and step; None: find out at every step, which
            waits for the device.

    Attributes:
        rows: [|D|, d], unit norm: the rows that this process holds.
        updated: bool [|D|], which of them were ever updated.

    Example:
        >>> bank = MemoryBank(num_rows=100, dim=8, seed=0)
        >>> bank.update(torch.tensor([3]), torch.nn.functional.normalize(torch.ones(1, 8)))
        >>> bank.rows.shape, int(bank.updated.sum())
        (torch.Size([100, 8]), 1)
    """

    rows: Tensor
    updated: Tensor

    def __init__(
        self,
        num_rows: int,
        dim: int = 128,
        momentum: float = 0.5,
        fill_first: bool = False,
        dtype: str = "float32",
        seed: int = 0,
        initial_rows: str | None = None,
        batch_capacity: int | None = None,
    ) -> None:
        super().__init__()
        self.num_rows = check_integer(num_rows, "the number of rows of the memory bank", 2)
        self.dim = check_integer(dim, "pirl_loss.embedding_dim", 1)
        self.momentum = check_number(momentum, "pirl_loss.memory_bank.momentum", 0, 1)
        if self.momentum == 1:
            raise ConfigError("pirl_loss.memory_bank.momentum is 1; it must be below 1, or no row would change.")
        self.fill_first = check_boolean(fill_first, "pirl_loss.memory_bank.fill_first")
        self.batch_capacity = batch_capacity
        self._create_rows(DTYPES[check_choice(dtype, list(DTYPES), "pirl_loss.memory_bank.dtype")], seed)
        if initial_rows is not None:
            rows = bank_rows(read_safely(initial_rows), str(initial_rows))
            if rows.shape != (self.num_rows, self.dim):
                raise ConfigError(
                    f"pirl_loss.memory_bank.initial_rows is {initial_rows!r}, whose bank has {len(rows)} rows of "
                    f"{rows.shape[1]} numbers; this run has {self.num_rows} images and embedding_dim {self.dim}."
                )
            self._take_rows(rows, torch.ones(len(rows), dtype=torch.bool))

    def _create_rows(self, dtype: torch.dtype, seed: int) -> None:
        self.register_buffer("rows", initial_rows(self.num_rows, self.dim, seed, dtype=dtype))
        self.register_buffer("updated", torch.zeros(self.num_rows, dtype=torch.bool))

    def _take_rows(self, rows: Tensor, updated: Tensor) -> None:
        """Load a complete bank, [|D|, d] and bool [|D|]."""
        self.rows.copy_(rows)
        self.updated.copy_(updated)

    def exchange(self, batch: int) -> Alone:
        """The ranks that compute the contrasts of a step together, for `batch` images of this rank."""
        return Alone()

    def lookup(self, indices: Tensor) -> Tensor:
        """Rows m_I of `indices` int64 [...], images of the exchange's batch: float32 [..., d], a copy."""
        # On a CPU twice as fast as self.rows[indices].
        return self.rows.index_select(0, indices.reshape(-1)).view(*indices.shape, self.dim).float()

    def is_filled(self, indices: Tensor) -> Tensor:
        """Whether the rows of `indices` int64 [...], as in `lookup`, can be positives: bool [...]."""
        return self.updated[indices] if self.fill_first else torch.ones_like(indices, dtype=torch.bool)

    def places(self, indices: Tensor) -> Tensor:
        """Places in `rows` of the images `indices` int64 [...]; -1 for images that this process does not hold."""
        return indices

    def held(self, drawn: Tensor) -> Tensor:
        """Places [..., n] of those images of a draw int64 [..., N] that this process holds, padded with -1."""
        return drawn

    def held_places(self) -> Tensor | None:
        """Places of all rows that this process holds, -1 for padding; None: all, in the data set's order."""
        return None

    @torch.no_grad()
    def update(self, indices: Tensor, embeddings: Tensor) -> None:
        """Average the rows of a batch with its embeddings, identically on all ranks.

        Args:
            indices: int64 [b], images of this rank, each below |D|; negative ones are ignored.
            embeddings: [b, d], f(v_I) of unit norm; those that are not finite are ignored.
        """
        indices = torch.where(embeddings.isfinite().all(dim=1), indices, -1)
        ranks = self._among_ranks(len(indices), indices.device)
        indices, embeddings = ranks.gather(indices, -1), ranks.gather(embeddings.float())
        with torch.autocast(indices.device.type, enabled=False):
            targets, means, known = combine_duplicates(self._own(indices), embeddings)
        old = self.rows[targets]
        weight = torch.full_like(means[:, :1], self.momentum)
        if self.fill_first:
            weight = weight * self.updated[targets].unsqueeze(1)
        new = normalize(weight * old.float() + (1 - weight) * means, dim=1)
        self.rows[targets] = torch.where(known.unsqueeze(1), new.to(old.dtype), old)
        self.updated[targets] = known | self.updated[targets]

    def _own(self, indices: Tensor) -> Tensor:
        """`places` with negative indices left as they are."""
        return torch.where(indices < 0, indices, self.places(indices))

    def _among_ranks(self, batch: int, device: torch.device) -> AmongRanks:
        capacity = self.batch_capacity or largest_over_ranks(batch, device)
        if batch > capacity:
            raise ValueError(f"A rank has {batch} images in a step; the bank's batch_capacity is {capacity}.")
        return AmongRanks(batch, capacity)

    def checksum(self) -> Tensor:
        """A checksum: banks that differ in any bit almost surely have different ones. int64 scalar."""
        total = torch.zeros((), dtype=torch.int64, device=self.rows.device)
        columns = torch.arange(1, self.dim + 1, device=self.rows.device)
        bits = self.rows.view(torch.int32 if self.rows.dtype == torch.float32 else torch.int16)
        for number, block in enumerate(bits.split(8192)):
            per_row = (block * columns).sum(dim=1)
            total += (per_row * torch.arange(1, len(block) + 1, device=block.device)).sum() * (number + 1)
        return total

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "rows")
        if saved is not None and saved.shape != self.rows.shape:
            raise self.other_size(*saved.shape)
        whole = "rows" not in self._non_persistent_buffers_set
        if whole and saved is None and prefix + "_extra_state" in state_dict:
            raise ConfigError(
                "The checkpoint has the shards of a sharded_memory_bank, but this run has a memory_bank: set "
                "pirl_loss.memory_bank.name to sharded_memory_bank (with any number of ranks)."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def other_size(self, num_rows: int, dim: int) -> ConfigError:
        """The error for a checkpoint with a bank of another size."""
        return ConfigError(
            f"The checkpoint's memory bank has {num_rows} rows of {dim} numbers, but this run has {self.num_rows} "
            f"images and embedding_dim {self.dim}: resume with the data and the dimension that the checkpoint was "
            f"made with."
        )
