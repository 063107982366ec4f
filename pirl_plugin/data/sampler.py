"""Which images a step sees: a shuffle by (seed, epoch) that can resume in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from pirl_plugin.distributed import rank, world_size


class ShuffledSampler(Sampler[int]):
    """Images of this rank, in the order of the steps.

    The shuffled data set is cut into global batches, and each global batch into one part per rank: a step has the same
    images for any number of ranks, as long as the global batch is the same.

    Args:
        dataset: anything with a length.
        batch_size: images per rank and step.
        seed: of the shuffle, the same on all ranks.
        drop_last: drop the incomplete last global batch; else the first images of the epoch's order fill it up, as in
            PyTorch's DistributedSampler.
        num_replicas, rank: default: those of the process group.
    """

    def __init__(
        self,
        dataset: Sized,
        batch_size: int,
        seed: int = 0,
        drop_last: bool = True,
        num_replicas: int | None = None,
        rank_: int | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed, self.drop_last = len(dataset), batch_size, seed, drop_last
        self.num_replicas = world_size() if num_replicas is None else num_replicas
        self.rank = rank() if rank_ is None else rank_
        self.epoch, self.start_iter = 0, 0
        # VISSL also prints these.
        self.shuffle, self.num_samples = True, len(self)
        self.total_size = self.num_samples * self.num_replicas

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.num_replicas

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def set_start_iter(self, start_iter: int) -> None:
        """Skip the first `start_iter` steps of the epoch, which are done."""
        self.start_iter = start_iter

    def __len__(self) -> int:
        """Images of this rank in a full epoch."""
        if self.drop_last:
            return self.size // self.global_batch * self.batch_size
        return -(-self.size // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        # The generator mixes its seeds well: neighbouring seeds give unrelated shuffles.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        kind = torch.int32 if self.size < 2**31 else torch.int64  # 0.4 GB for 100 million images
        order = torch.randperm(self.size, generator=generator, dtype=kind)
        if not self.drop_last:
            missing = len(self) * self.num_replicas - self.size
            order = torch.cat([order, order.repeat(-(-missing // self.size))[:missing]])
        for start in range(self.start_iter * self.global_batch, len(order), self.global_batch):
            whole = order[start : start + self.global_batch]
            if len(whole) < self.global_batch and self.drop_last:
                return
            share = len(whole) // self.num_replicas
            yield from whole[self.rank * share : (self.rank + 1) * share].tolist()
