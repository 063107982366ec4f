"""Estimates the GPU memory of a training step of PIRL by batch size, without a GPU.

    python benchmarks/memory_estimate.py

PyTorch runs the network on fake tensors, which have shapes but no values, and reports what it keeps for the backward
pass. Weights, gradients and momentum, the memory bank, the batch's views and the largest temporary results are added.
Fragmentation, cuDNN's work space and the CUDA context (about 0.5 GB) are not counted; `benchmarks/gpu_report.py`
measures the same on a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from gpu_pieces import Size, step_of
from measuring import print_table, write_json
from plain_pirl import PlainPIRL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

DIM = 128


def without_values(model: nn.Module, mode: FakeTensorMode) -> None:
    """Replace a model's parameters and buffers by tensors of the same shapes that take no memory."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(mode.from_tensor(parameter)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, mode.from_tensor(buffer))


def kept_for_backward(model: PlainPIRL, images: Tensor, patches: Tensor) -> tuple[int, int]:
    """Bytes that autograd keeps from a forward pass besides weights and views, and those of the largest result."""
    known = {StorageWeakRef(each.untyped_storage()) for each in (*model.parameters(), *model.buffers())}
    storages: dict[StorageWeakRef, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in known:
            storages[reference] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model.embeddings(images, patches)
    assert all(output.requires_grad for output in outputs)
    return sum(storages.values()), max(storages.values())


def estimate(size: Size, batch: int, bfloat16: bool) -> dict[str, int]:
    """Bytes of each part of the whole step on one GPU."""
    no_loss = nn.Identity()  # its part is small, and its bank is counted separately
    model = PlainPIRL(step_of(size, bfloat16), no_loss, torch.device("cpu"))
    mode = FakeTensorMode()
    without_values(model, mode)
    with mode:
        images = torch.empty(batch, 3, size.image, size.image)
        patches = torch.empty(9 * batch, 3, size.patch, size.patch)
        activations, largest = kept_for_backward(model, images, patches)
        weights = sum(each.nbytes for part in (model.trunk, model.f, model.g) for each in part.parameters())
    return {
        "weights, gradients, momentum": 3 * weights,
        "views": images.nbytes + patches.nbytes,
        "kept for the backward pass": activations,
        "come and go": 2 * largest,  # a result and its gradient
        "memory bank": 4 * DIM * size.rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/memory_estimate.json"))
    options = parser.parse_args()
    size, found = Size(), {}
    rows = [["B", "float32, GB", "bfloat16, GB"]]
    for batch in options.batches:
        parts = {name: estimate(size, batch, name == "bfloat16") for name in ("float32", "bfloat16")}
        found[batch] = parts
        rows.append([str(batch), *(f"{sum(each.values()) / 1e9:.1f}" for each in parts.values())])
    print_table(f"ResNet-50, {size.image} + 9x{size.patch}, |D| = {size.rows:,}: memory of a step, estimated", rows)
    write_json(options.output, {"bytes": found})


if __name__ == "__main__":
    main()
