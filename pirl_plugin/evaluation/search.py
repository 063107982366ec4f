"""Finds the most similar rows of a bank, in chunks on any device, with bounded memory whatever the bank's size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pirl_plugin.network.devices import choose_device
from pirl_plugin.validation import check_integer

QUERIES_AT_ONCE = 1024  # with ROWS_AT_ONCE, 256 MiB of similarities
ROWS_AT_ONCE = 65_536  # of 2,048 float32 values, 512 MiB


def _unit(features: np.ndarray, device: torch.device) -> Tensor:
    """Some rows as float32 of norm 1 on a device; always a copy, since the file may be mapped read-only."""
    return normalize(torch.from_numpy(np.array(features, dtype=np.float32)).to(device), dim=1, eps=1e-12)


@torch.inference_mode()
def nearest_neighbors(
    queries: np.ndarray,
    bank: np.ndarray,
    k: int,
    chunk: int = QUERIES_AT_ONCE,
    bank_chunk: int = ROWS_AT_ONCE,
    device: str | torch.device | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of `bank` [N, D] to each of `queries` [Q, D], by cosine similarity.

    Each chunk of the bank is read and copied to the device once; the bank may be a memory-mapped file.

    Args:
        queries, bank: any real dtype; a row with NaN is never a neighbour.
        k: at most N.
        chunk, bank_chunk: how many queries and rows are compared at once.
        device: None for the GPU if there is one.

    Returns:
        similarities float32 [Q, k], in descending order, and row numbers int64 [Q, k].
    """
    check_integer(k, "the number of neighbours k", 1, len(bank))
    where = device if isinstance(device, torch.device) else choose_device(device)
    best = torch.full((len(queries), k), -torch.inf)
    rows = torch.zeros(len(queries), k, dtype=torch.int64)
    for first in range(0, len(bank), bank_chunk):
        part = _unit(bank[first : first + bank_chunk], where).T
        for start in range(0, len(queries), chunk):
            mine = slice(start, start + chunk)
            scores = (_unit(queries[mine], where) @ part).nan_to_num_(nan=-torch.inf)
            values, numbers = scores.topk(min(k, scores.shape[1]), dim=1)
            values = torch.cat([best[mine].to(where), values], dim=1)
            numbers = torch.cat([rows[mine].to(where), numbers + first], dim=1)
            values, order = values.topk(k, dim=1)
            best[mine], rows[mine] = values.cpu(), numbers.gather(1, order).cpu()
    return best.numpy(), rows.numpy()
