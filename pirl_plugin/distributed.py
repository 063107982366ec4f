"""The few collective operations that the loss and the bank need; with one process they do nothing."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of `value` over all ranks, a new tensor, without gradient."""
    value = value.detach().clone(memory_format=torch.contiguous_format)  # NCCL accepts no other strides
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def gather_padded(tensor: Tensor, capacity: int, fill: float) -> Tensor:
    """Concatenate [b_r, ...] of all ranks after padding each to [capacity, ...] with `fill`.

    Ranks may hold different b_r <= capacity. Returns [W * capacity, ...], ranks in order, without gradient.
    """
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    padded = tensor.new_full((capacity, *tensor.shape[1:]), fill)
    padded[: len(tensor)] = tensor
    gathered = tensor.new_empty((world_size() * capacity, *tensor.shape[1:]))
    dist.all_gather_into_tensor(gathered, padded)
    return gathered


class Alone:
    """How a contrast is computed if this process holds all rows: nothing is exchanged.

    Attributes:
        holders: how many processes share the rows.
    """

    holders = 1

    def gather(self, tensor: Tensor, fill: float = 0) -> Tensor:
        """[b, ...] of each participating process -> [B, ...] of all of them."""
        return tensor

    def own(self, tensor: Tensor) -> Tensor:
        """[..., B] of all processes -> [..., b] of this one."""
        return tensor

    def maximum(self, tensor: Tensor) -> Tensor:
        """The maximum over the processes, elementwise."""
        return tensor

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The sums over the processes of float tensors, all of the same shape."""
        return tensors

    def join(self, tensor: Tensor) -> Tensor:
        """[..., n] of each process -> [..., W n], side by side."""
        return tensor

    def part(self, tensor: Tensor) -> Tensor:
        """[..., W n] -> [..., n], the part that this process gave to `join`."""
        return tensor


class AmongRanks(Alone):
    """Each rank holds some of the rows, so every rank scores the images of all ranks.

    Args:
        batch: b, images of this rank.
        capacity: the largest number of images per rank.
    """

    def __init__(self, batch: int, capacity: int) -> None:
        self.holders = world_size()
        self.capacity = capacity
        start = rank() * capacity if self.holders > 1 else 0
        self.mine = slice(start, start + batch)

    def gather(self, tensor: Tensor, fill: float = 0) -> Tensor:
        return gather_padded(tensor, self.capacity, fill)

    def own(self, tensor: Tensor) -> Tensor:
        return tensor[..., self.mine]

    def maximum(self, tensor: Tensor) -> Tensor:
        if self.holders > 1:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return sum_over_ranks(torch.stack(tensors)).unbind()

    def join(self, tensor: Tensor) -> Tensor:
        if self.holders == 1:
            return tensor
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.holders)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts, dim=-1)

    def part(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.holders, dim=-1)[rank()] if self.holders > 1 else tensor


def collective_device() -> torch.device:
    """The device that a tensor must be on for a collective operation."""
    on_gpu = world_size() > 1 and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def smallest_and_largest_over_ranks(value: Tensor) -> tuple[int, int]:
    """The smallest and the largest of the ranks' int64 scalars; waits for the device."""
    if world_size() == 1:
        return int(value), int(value)
    both = torch.stack([-value, value])
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    negated, largest = both.tolist()
    return -negated, largest


def largest_over_ranks(number: int, device: torch.device) -> int:
    """The largest of the ranks' numbers; with several ranks, it waits for the device."""
    if world_size() == 1:
        return number
    return smallest_and_largest_over_ranks(torch.tensor(number, device=device))[1]
