"""What it costs a step to ask whether any rank was told to stop, between real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from runs import free_ports

ROOT = Path(__file__).resolve().parents[2]
RANKS = """
import json, os, sys, time
import numpy as np
from torch import distributed
from torch.distributed import TCPStore
from pirl_plugin.training.liveness import watched
from pirl_plugin.training.preemption import PreemptionHook

count, port = int(sys.argv[1]), int(sys.argv[2])
rank = 0
for number in range(1, count):
    if not os.fork():
        rank = number
        break
store = TCPStore("localhost", port, count, is_master=rank == 0)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=count)
hook, seconds = PreemptionHook(lambda task: None), []
with watched(store, "localhost", rank, count, 1, 30.0):
    hook.on_start(None)
    for step in range(300):
        time.sleep(0.005)  # the step itself
        began = time.perf_counter()
        hook.on_step(None)
        seconds.append(time.perf_counter() - began)
    hook.on_end(None)
    distributed.barrier()
if rank == 0:
    print(json.dumps(list(np.percentile(seconds[10:], [50, 90]))))
    for _ in range(count - 1):
        os.wait()
"""


def test_asking_all_ranks_and_signs_of_life_cost_less_than_a_millisecond_a_step():
    done = subprocess.run(
        [sys.executable, "-c", RANKS, "2", str(free_ports(1)[0])],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    median, most = json.loads(done.stdout)
    print(f"half of the steps took at most {1e3 * median:.3f} ms, nine of ten {1e3 * most:.3f} ms")
    assert median < 1e-3
