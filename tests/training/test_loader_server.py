"""A killed rank leaves no processes behind: real workers of a real DataLoader."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runs import left_after, processes_of

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import multiprocessing, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
from pirl_plugin.training.task import leave_signals_to_the_rank

class Numbers(Dataset):
    def __len__(self):
        return 10_000
    def __getitem__(self, index):
        time.sleep(0.01 if index < 9_000 else 100)  # some in the middle of a long read
        return index

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["__main__", "pirl_plugin.training.loader_server"])
    loader = DataLoader(Numbers(), 4, num_workers=3, multiprocessing_context=sys.argv[1],
                        worker_init_fn=leave_signals_to_the_rank)
    if sys.argv[2] == "end":
        print("working", flush=True)
        for _, batch in zip(range(3), loader):
            pass
        sys.exit()
    for number, batch in enumerate(loader):
        if number == 3:
            print("working", flush=True)
"""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    (folder / "rank.py").write_text(RANK)
    return subprocess.Popen(
        [sys.executable, str(folder / "rank.py"), *arguments], stdout=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_and_their_server_end_within_seconds_of_a_killed_rank(tmp_path):
    with start(tmp_path, "forkserver", "work") as process:
        assert process.stdout.readline() == "working\n"
        assert len(processes_of(process.pid)) >= 5  # rank, server, workers
        os.killpg(process.pid, signal.SIGUSR1)  # to the whole job: reaches neither server nor workers
        os.killpg(process.pid, signal.SIGUSR2)
        process.kill()
        process.wait()
    assert not left_after(process.pid, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_rank_that_ends_as_it_should_is_not_cut_short_by_its_server(tmp_path):
    with start(tmp_path, "forkserver", "end") as process:
        assert process.wait(60) == 0
    assert not left_after(process.pid, 10)
