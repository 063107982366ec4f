"""What progress says: speed, time left, losses over ranks, and what reaches files."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pirl_plugin.training import progress
from pirl_plugin.training.progress import ProgressHook, as_vissl, keep_rows

ROOT = Path(__file__).resolve().parents[2]


def task(**more):
    return SimpleNamespace(
        get_global_batchsize=lambda: 40, device=torch.device("cpu"), train_phase_idx=2, num_train_phases=5,
        max_iteration=500, iteration=100, optimizer=SimpleNamespace(options_view=SimpleNamespace(lr=[0.1, 0.3])),
        base_loss=SimpleNamespace(report={}), losses=[], config={"LOG_FREQUENCY": 4}, **more,
    )  # fmt: skip


def test_speed_share_of_waiting_and_time_left_are_of_the_steps_since_the_last_time(tmp_path, monkeypatch):
    now = iter([100.0, 100.0, 110.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    hook = ProgressHook(tmp_path)
    hook.on_phase_start(SimpleNamespace(start_iter=0))
    hook.images, hook.input_wait = 5 * 40, 2.5  # five steps in ten seconds
    row = hook.row(task(), 1.25, 100)
    assert row["images_per_second"] == 20 and row["step_ms"] == 2000 and row["input_wait_share"] == 0.25
    assert row["seconds_left"] == (500 - 100) * 2 and (row["iteration"], row["epoch"]) == (100, 3)
    assert row["loss"] == 1.25 and row["learning_rate"] == pytest.approx(0.3)
    line = json.loads(as_vissl(row, "0:13:20"))
    assert (line["ep"], line["iter"], line["loss"], line["btime(ms)"], line["lr"]) == (2, 99, 1.25, 2000, 0.3)
    assert line["eta"] == "0:13:20"


def test_a_share_is_at_most_1_and_steps_too_short_to_time_divide_by_no_0(tmp_path, monkeypatch):
    now = iter([100.0, 100.0, 101.0, 101.0, 101.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    hook = ProgressHook(tmp_path)
    hook.on_phase_start(SimpleNamespace(start_iter=0))
    hook.images, hook.input_wait = 40, 1.5  # a batch that was waited for since before
    assert hook.row(task(), 1.0, 1)["input_wait_share"] == 1
    hook.since = 101.0
    row = hook.row(task(), 1.0, 1)
    assert row["step_ms"] < 1e-3 and row["images_per_second"] > 1e9


def test_the_mean_loss_is_that_of_the_steps_and_one_that_is_not_finite_is_pinned_to_its_step(tmp_path):
    hook, now = ProgressHook(tmp_path), task()
    hook.losses = [torch.tensor(value) for value in (1.0, 2.0, 6.0)]
    hook.indices = [[0, 1], [2, 3], [4, 5]]
    loss, _ = hook._read(now, 100)
    assert loss == 3 and now.losses == [1, 2, 6] and hook.losses == []
    assert math.isnan(hook._read(now, 100)[0])  # nothing new
    hook.losses = [torch.tensor(value) for value in (1.0, math.inf, 6.0)]
    hook.indices = [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(FloatingPointError, match="loss of iteration 102 is inf"):
        hook._read(now, 103)
    assert (tmp_path / "not_finite_iteration102_rank0.txt").read_text().split() == ["2", "3"]


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from types import SimpleNamespace
from pirl_plugin.launch import registration
from pirl_plugin.training.progress import ProgressHook
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
hook = ProgressHook(sys.argv[3])
hook.losses, hook.indices = [torch.tensor(1.0 + 4 * rank), torch.tensor(2.0)], [[0], [1]]
task = SimpleNamespace(base_loss=SimpleNamespace(report={}), losses=[])
print(hook._read(task, 2)[0], task.losses)
dist.destroy_process_group()
"""


def test_losses_are_means_over_the_ranks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWO_RANKS]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), f"{tmp_path}/meet", str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        printed, _ = rank.communicate(timeout=500)
        assert rank.returncode == 0 and printed.strip() == "2.5 [3.0, 2.0]"


def test_rows_beyond_where_a_run_goes_on_are_dropped(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("iteration,loss\n4,1.0\n8,2.0\n12,3.0\n16")
    keep_rows(path, 8)
    assert list(csv.reader(path.open())) == [["iteration", "loss"], ["4", "1.0"], ["8", "2.0"]]
    assert [file.name for file in tmp_path.iterdir()] == ["progress.csv"]
