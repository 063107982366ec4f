"""Several real gloo processes against one that has the whole batch: same loss, gradients and bank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pirl_plugin import distributed
from pirl_plugin.objective.forms import FORMS
from pirl_plugin.objective.negatives import NEGATIVES

TESTS = Path(__file__).resolve().parent


SETTINGS = [
    {"contrast": contrast, "negatives": negatives, "memory_bank": {"name": bank}, "batch_size_per_replica": 8}
    for contrast in FORMS
    for negatives in NEGATIVES
    for bank in ("memory_bank", "sharded_memory_bank")
] + [
    {"contrast": contrast, "negatives": negatives, "memory_bank": {"name": bank, **keys}, "uneven": True}
    for bank in ("memory_bank", "sharded_memory_bank")
    for contrast, negatives, keys in (
        ("npid", "shared", {"fill_first": True}),
        ("nce", "all", {"dtype": "bfloat16"}),
        ("nce", "per_image", {"fill_first": True, "dtype": "bfloat16"}),
        *(("plain_nce", negatives, {}) for negatives in NEGATIVES),  # of a definition alone: gloo_loss.py registers it
    )
]


def name(settings: dict) -> str:
    bank = settings["memory_bank"]
    return "-".join(map(str, [settings["contrast"], settings["negatives"], *bank.values()]))


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, list[list[dict]]]:
    """By number of ranks: what each rank saw for each of SETTINGS."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parents[1]), "OMP_NUM_THREADS": "1"}
    results = {}
    for world_size in (1, 2, 4):
        files = [str(folder / f"meet_{world_size}"), str(folder / f"out_{world_size}")]
        command = [sys.executable, str(TESTS / "gloo_loss.py")]
        processes = [
            subprocess.Popen(
                [*command, str(rank), str(world_size), *files, json.dumps(SETTINGS)],
                env=environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        for process in processes:
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors[-2000:]
        results[world_size] = [torch.load(f"{files[1]}.{rank}", weights_only=True) for rank in range(world_size)]
    return results


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=map(name, SETTINGS))
def test_any_number_of_ranks_equals_one_process_with_the_whole_batch_and_bank(results, number, world_size):
    """With the same draws: they depend on the seed, the step and the image alone."""
    plain = {**SETTINGS[number], "memory_bank": {**SETTINGS[number]["memory_bank"], "name": "memory_bank"}}
    one = results[1][0][SETTINGS.index(plain)]
    ranks = [result[number] for result in results[world_size]]
    for step, value in enumerate(one["values"]):
        mean = sum(rank["values"][step] for rank in ranks) / len(ranks)
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-6)
        for branch in (0, 1):
            together = torch.cat([rank["gradients"][step][branch] for rank in ranks])
            torch.testing.assert_close(together, one["gradients"][step][branch], rtol=1e-4, atol=1e-5)
        for key, value in one["reports"][step].items():
            for rank in ranks:
                torch.testing.assert_close(rank["reports"][step][key], value, rtol=1e-4, atol=1e-5, equal_nan=True)
    for key in ("bank", "filled", "log_z"):
        for rank in ranks:
            tolerance = 4e-3 if "bfloat16" in name(plain) else 1e-5
            torch.testing.assert_close(rank[key], one[key], rtol=tolerance, atol=tolerance, equal_nan=True)
            assert torch.equal(rank[key].isnan(), ranks[0][key].isnan())
            assert torch.equal(rank[key].nan_to_num(), ranks[0][key].nan_to_num())  # among themselves, to the bit
    for rank in ranks:
        assert rank["health"] == pytest.approx(one["health"], rel=4e-3 if "bfloat16" in name(plain) else 1e-4)
    assert 0 < one["health"]["rows_updated"] < 1 and 1 < one["health"]["effective_rank"] < 8
    sharded = SETTINGS[number]["memory_bank"]["name"] == "sharded_memory_bank"
    assert all(rank["held"] == (-(-30 // world_size) if sharded else 30) for rank in ranks)


@pytest.mark.parametrize("what", ["memory banks", "weights"])
def test_banks_or_weights_that_differ_between_ranks_stop_the_run(what, tmp_path):
    code = f"""
import sys, types, torch, torch.distributed as dist
from pirl_plugin.launch import registration
from pirl_plugin.training.hooks import BankAgreementHook
from pirl_plugin.objective.memory_bank import MemoryBank
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=rank, world_size=2)
bank, network = MemoryBank(30, dim=8), torch.nn.Linear(4, 4)
torch.nn.init.constant_(network.weight, 0.5)
torch.nn.init.constant_(network.bias, 0.5)
loss = types.SimpleNamespace(memory_bank=bank)
task = types.SimpleNamespace(base_loss=loss, base_model=network, train_phase_idx=3)
BankAgreementHook().on_phase_end(task)  # the same: silent
if rank == 1:
    (bank.rows if {what!r} == "memory banks" else network.weight.data)[2, 3] += 1e-6
BankAgreementHook().on_phase_end(task)
"""
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parents[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=500)
        assert process.returncode != 0 and f"{what} differ after epoch 3" in errors


@pytest.mark.parametrize("strided", [lambda t: t.T, lambda t: t[:, ::2], lambda t: t])
def test_what_ranks_exchange_is_contiguous_whatever_it_is_given(monkeypatch, tmp_path, strided):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    seen = []
    try:
        monkeypatch.setattr(distributed, "world_size", lambda: 2)  # one rank stands for both
        monkeypatch.setattr(dist, "all_reduce", lambda tensor, **_: seen.append(tensor))
        tensor = strided(torch.rand(3, 4))
        largest = distributed.AmongRanks(2, 2).maximum(tensor)
        (total,) = distributed.AmongRanks(2, 2).sum(tensor)
    finally:
        dist.destroy_process_group()
    assert len(seen) == 2 and all(given.is_contiguous() for given in seen)
    assert torch.equal(largest, tensor) and torch.equal(total, tensor)
    assert seen[0].data_ptr() != tensor.data_ptr()  # the caller's own stays as it is
