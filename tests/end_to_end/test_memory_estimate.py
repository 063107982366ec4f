"""The memory that benchmarks/memory_estimate.py counts without a GPU is what a real forward pass keeps."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from gpu_pieces import Size, step_of
from memory_estimate import DIM, estimate, kept_for_backward
from plain_pirl import PlainPIRL


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize(("depth", "width", "image", "patch", "batch"), [(18, 0.25, 32, 12, 3), (50, 0.125, 96, 36, 2)])
def test_tensors_without_values_keep_as_many_bytes_as_real_ones(depth, width, image, patch, batch, bfloat16):
    size = Size(rows=1000, image=image, patch=patch, depth=depth, width=width)
    model = PlainPIRL(step_of(size, bfloat16), nn.Identity(), torch.device("cpu"))
    images, patches = torch.randn(batch, 3, image, image), torch.randn(9 * batch, 3, patch, patch)

    kept, largest = kept_for_backward(model, images, patches)
    counted = estimate(size, batch, bfloat16)

    # Without values, a mean per channel is taken for bfloat16 where a real one is float32.
    assert counted["kept for the backward pass"] == pytest.approx(kept, rel=0.01 if bfloat16 else 0)
    assert counted["come and go"] == 2 * largest
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert counted["weights, gradients, momentum"] == 3 * 4 * weights
    assert counted["memory bank"] == 4 * DIM * 1000


def test_bfloat16_keeps_about_half_and_twice_the_batch_twice_as_much():
    size = Size(depth=50, width=0.5)
    kept = {
        (batch, bfloat16): estimate(size, batch, bfloat16)["kept for the backward pass"]
        for batch in (4, 8) for bfloat16 in (False, True)
    }  # fmt: skip
    assert kept[8, False] == pytest.approx(2 * kept[4, False], rel=0.05)
    assert 0.45 < kept[8, True] / kept[8, False] < 0.65
