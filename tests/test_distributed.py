"""Several real gloo processes against one that has the whole batch: same loss, gradients and bank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent


def run_ranks(tmp_path: Path, world_size: int, settings: dict) -> list[dict]:
    name = f"{world_size}_{abs(hash(json.dumps(settings)))}"
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(TESTS / "gloo_loss.py"),
                str(rank),
                str(world_size),
                str(tmp_path / f"meet_{name}"),
                str(tmp_path / f"out_{name}"),
                json.dumps(settings),
            ],
            env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    return [torch.load(tmp_path / f"out_{name}.{rank}", weights_only=True) for rank in range(world_size)]


@pytest.mark.parametrize(
    "settings",
    [
        {"contrast": "nce", "negatives": "all", "batch_size_per_replica": 8},
        {"contrast": "npid", "negatives": "all", "uneven": True, "memory_bank": {"fill_first": True}},
    ],
    ids=["nce", "npid with ranks of different batch sizes"],
)
def test_two_ranks_equal_one_rank_with_the_whole_batch(tmp_path, settings):
    (one,) = run_ranks(tmp_path, 1, settings)
    ranks = run_ranks(tmp_path, 2, settings)
    for step, value in enumerate(one["values"]):
        mean = sum(rank["values"][step] for rank in ranks) / len(ranks)
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
        for branch in (0, 1):
            together = torch.cat([rank["gradients"][step][branch] for rank in ranks])
            torch.testing.assert_close(together, one["gradients"][step][branch], rtol=1e-4, atol=1e-6)
    for key, value in one["state"].items():
        if isinstance(value, torch.Tensor):
            for rank in ranks:
                torch.testing.assert_close(rank["state"][key], value, rtol=1e-5, atol=1e-5, equal_nan=True)
    # Among themselves, to the bit.
    rows = [rank["state"]["memory_bank.rows"] for rank in ranks]
    assert all(torch.equal(rows[0], other) for other in rows[1:])


@pytest.mark.parametrize("negatives", ["per_image", "shared"])
def test_ranks_draw_their_own_negatives_and_keep_one_bank(tmp_path, negatives):
    ranks = run_ranks(tmp_path, 2, {"negatives": negatives, "batch_size_per_replica": 8})
    first, second = (rank["state"]["memory_bank.rows"] for rank in ranks)
    assert torch.equal(first, second)
    assert not torch.equal(ranks[0]["values"][0], ranks[1]["values"][0])


def test_banks_that_differ_between_ranks_stop_the_run(tmp_path):
    code = f"""
import sys, types, torch, torch.distributed as dist
from pirl_plugin import registration
from pirl_plugin.hooks import BankAgreementHook
from pirl_plugin.memory_bank import MemoryBank
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
bank = MemoryBank(30, dim=8)
task = types.SimpleNamespace(base_loss=types.SimpleNamespace(memory_bank=bank), train_phase_idx=3)
BankAgreementHook().on_phase_end(task)  # the same: silent
if rank == 1:
    bank.rows[17, 3] += 1e-6
BankAgreementHook().on_phase_end(task)
"""
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1 and "memory banks differ after epoch 3" in errors
