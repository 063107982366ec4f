"""`sharded_memory_bank`: row i lives on rank i mod W, for data sets whose bank is larger than a GPU.

Every rank scores the queries of all ranks against the rows that it holds. In a step, ranks exchange the batch's
indices, queries, positives and gradients, and a few sums per image: traffic depends on the batch, not on |D|.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pirl_plugin.distributed import AmongRanks, rank, sum_over_ranks, world_size
from pirl_plugin.objective.memory_bank import MemoryBank, initial_rows, register_memory_bank
from pirl_plugin.validation import ConfigError

READ_AT_ONCE = 2**16  # rows of a shard file


def most_held(count: int, holders: int) -> int:
    """How many of `count` uniform draws each of `holders` ranks has room for.

    The number that falls to a rank is binomial; it exceeds its mean by more than ten standard deviations once in
    10^23 draws. Then the step stops with an error.
    """
    mean = count / holders
    return count if holders == 1 else min(count, math.ceil(mean + 10 * math.sqrt(mean) + 10))


@register_memory_bank("sharded_memory_bank")
class ShardedMemoryBank(MemoryBank):
    """A bank of which each of W ranks holds every W-th row; otherwise like MemoryBank.

    All ranks must take part in every lookup and update, and `lookup` and `is_filled` ask all of them for the same
    images: those of the whole batch. A checkpoint names shard files, one per rank, which any number of ranks can load.

    Args:
        folder: where the shard files of checkpoints are (the launcher fills in the checkpoint folder).

    Attributes:
        rows: [ceil(|D| / W), d]; the last row may belong to no image if W does not divide |D|.
        shards: names of the last checkpoint's shard files, in `folder`.

    Example:
        >>> from pirl_plugin import PIRLLoss
        >>> loss = PIRLLoss(100, num_negatives=10, memory_bank={"name": "sharded_memory_bank"})
        >>> loss.memory_bank.rows.shape  # of one process: all rows
        torch.Size([100, 128])
    """

    def __init__(self, *args: Any, folder: str = ".", **kwargs: Any) -> None:
        self.holders, self.holder = world_size(), rank()
        self.folder = str(folder)
        self.shards: list[str] = []
        super().__init__(*args, **kwargs)

    def _create_rows(self, dtype: torch.dtype, seed: int) -> None:
        # Equal sizes on all ranks, so that all of them split their work into the same pieces.
        size = math.ceil(self.num_rows / self.holders)
        rows = initial_rows(size * self.holders, self.dim, seed, self.holder, self.holders, dtype)
        self.num_held = len(range(self.holder, self.num_rows, self.holders))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("updated", torch.zeros(len(rows), dtype=torch.bool), persistent=False)

    def exchange(self, batch: int) -> AmongRanks:
        return self._among_ranks(batch, self.rows.device)

    def _from_holders(self, indices: Tensor, values: Tensor) -> Tensor:
        """values[place] of each image from the rank that holds it."""
        places = self.places(indices.reshape(-1))
        found = values[places.clamp(min=0)]
        found = found.masked_fill((places < 0).view(-1, *[1] * (found.dim() - 1)), 0)
        return sum_over_ranks(found).view(*indices.shape, *values.shape[1:])

    def lookup(self, indices: Tensor) -> Tensor:
        return self._from_holders(indices, self.rows).float()

    def is_filled(self, indices: Tensor) -> Tensor:
        return self._from_holders(indices, self.updated.int()) > 0 if self.fill_first else super().is_filled(indices)

    def places(self, indices: Tensor) -> Tensor:
        return torch.where(indices % self.holders == self.holder, indices // self.holders, -1)

    def held(self, drawn: Tensor) -> Tensor:
        room = most_held(drawn.shape[-1], self.holders)
        places = self.places(drawn)
        mine = places >= 0
        slot = mine.cumsum(-1) - 1
        enough = (slot[..., -1] < room).all()
        if drawn.device.type == "cpu":
            assert enough, "more of a draw fell to one rank than most_held allows"
        else:
            torch._assert_async(enough)
        # Draws held by other ranks go to an extra last column, which is cut off.
        held = drawn.new_full((*drawn.shape[:-1], room + 1), -1)
        held.scatter_(-1, torch.where(mine, slot, room), places)
        return held[..., :room].contiguous()

    def held_places(self) -> Tensor:
        places = torch.arange(len(self.rows), device=self.rows.device)
        return torch.where(places < self.num_held, places, -1)

    def _own(self, indices: Tensor) -> Tensor:
        return self.places(indices)  # rows that other ranks hold are ignored here

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save_shard(self, name: str) -> None:
        """Write this rank's rows to a file in `folder`; every rank must do so before the checkpoint is written.

        Args:
            name: the checkpoint's name, the same on all ranks.
        """
        self.shards = [f"{name}_bank{number}of{self.holders}.safetensors" for number in range(self.holders)]
        path = Path(self.folder, self.shards[self.holder])
        unfinished = path.with_suffix(".unfinished")
        tensors = {"rows": self.rows[: self.num_held].contiguous(), "updated": self.updated[: self.num_held]}
        try:
            save_file(tensors, unfinished)
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def delete_orphans(self) -> None:
        """Delete shard files in `folder` whose checkpoint is gone, except the last saved; called by one rank."""
        for path in Path(self.folder).glob("model_*_bank*of*.safetensors"):
            name = path.name.partition("_bank")[0]
            final = name.replace("model_", "model_final_checkpoint_", 1)
            if path.name not in self.shards and not any(path.with_name(f"{n}.torch").exists() for n in (name, final)):
                path.unlink()

    def get_extra_state(self) -> dict[str, Any]:
        return {"num_rows": self.num_rows, "dim": self.dim, "shards": self.shards}

    def set_extra_state(self, state: dict[str, Any] | None) -> None:
        if state is None:
            return
        if (state["num_rows"], state["dim"]) != (self.num_rows, self.dim):
            raise self.other_size(state["num_rows"], state["dim"])
        if not state["shards"]:
            raise ConfigError("The checkpoint names no shard files of its sharded_memory_bank: it cannot be resumed.")
        self.shards = list(state["shards"])
        for number, name in enumerate(self.shards):
            self._load_shard(Path(self.folder, name), number, len(self.shards))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        whole = state_dict.pop(prefix + "rows", None)
        if whole is not None:  # of a memory_bank
            if whole.shape != (self.num_rows, self.dim):
                raise self.other_size(*whole.shape)
            self._take_rows(whole, state_dict.pop(prefix + "updated"))
            state_dict = {**state_dict, prefix + "_extra_state": None}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _take_rows(self, rows: Tensor, updated: Tensor) -> None:
        self.rows[: self.num_held] = rows[self.holder :: self.holders].to(self.rows)
        self.updated[: self.num_held] = updated[self.holder :: self.holders]

    def _load_shard(self, path: Path, holder: int, holders: int) -> None:
        """Load this rank's rows from the shard file of rank `holder` of `holders`."""
        try:
            with safe_open(str(path), framework="pt") as file:
                rows, updated = file.get_slice("rows"), file.get_tensor("updated")
                expected = len(range(holder, self.num_rows, holders))
                if rows.get_shape() != [expected, self.dim]:
                    raise ConfigError(f"{path} has rows of shape {rows.get_shape()}; it should have {expected} rows.")
                for start in range(0, expected, READ_AT_ONCE):
                    end = min(start + READ_AT_ONCE, expected)
                    places = self.places(torch.arange(start, end) * holders + holder)  # of the images in the file
                    mine = places >= 0
                    if mine.any():
                        target = places[mine].to(self.rows.device)
                        self.rows[target] = rows[start:end][mine].to(self.rows)
                        self.updated[target] = updated[start:end][mine].to(self.updated.device)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{path}, a shard of the checkpoint's memory bank, cannot be read ({error}); all shard files must be "
                f"in the checkpoint's folder."
            ) from error
