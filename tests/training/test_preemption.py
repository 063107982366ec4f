"""A signal to a run: what happens at the end of its step, and what asking all ranks costs a step."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pirl_plugin.training.preemption import SIGNALS, PreemptionHook
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
distributed.destroy_process_group()
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


@pytest.fixture
def hook():
    written: list[int] = []
    hook = PreemptionHook(lambda task: written.append(task.iteration), grace=50.0)
    hook.written = written
    before = {name: signal.getsignal(name) for name in SIGNALS}
    hook.on_start(None)
    yield hook
    hook.on_exception(None)
    assert {name: signal.getsignal(name) for name in SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint_and_the_code_for_trying_again(hook, number, caplog):
    hook.on_step(SimpleNamespace(iteration=3))
    assert hook.written == []
    os.kill(os.getpid(), number)
    wait_until(hook.requested.is_set)
    wait_until(lambda: hook.timer is not None and hook.timer.is_alive())
    with pytest.raises(SystemExit) as end:
        hook.on_step(SimpleNamespace(iteration=4))
    assert end.value.code == 75 and hook.written == [4]
    assert "Stopped after iteration 4; the same command resumes from there." in caplog.text
    wait_until(lambda: not hook.timer.is_alive())  # else it would end this process


def test_signals_of_others_do_not_end_a_run(hook):
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(0.1)
    hook.on_step(SimpleNamespace(iteration=1))
    signal.signal(signal.SIGUSR2, before)
    assert not hook.requested.is_set() and hook.written == []


def test_a_run_that_ends_by_itself_leaves_no_handlers_and_no_threads():
    threads, before = set(threading.enumerate()), {name: signal.getsignal(name) for name in SIGNALS}
    hook = PreemptionHook(lambda task: None)
    hook.on_start(None)
    assert all(signal.getsignal(name) is not before[name] for name in SIGNALS)
    hook.on_end(None)
    hook.on_end(None)  # VISSL may call both
    hook.on_exception(None)
    assert {name: signal.getsignal(name) for name in SIGNALS} == before
    wait_until(lambda: set(threading.enumerate()) <= threads)  # of earlier tests, some may have ended meanwhile


def test_a_step_that_does_not_end_is_ended_after_its_grace():
    code = """
import os, signal, time
from pirl_plugin.training.preemption import PreemptionHook
hook = PreemptionHook(print, grace=0.5)
hook.on_start(None)
os.kill(os.getpid(), signal.SIGTERM)
began = time.monotonic()
try:
    time.sleep(20)
finally:
    print("never")
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (75, "")
    assert "Asked to stop, but the step did not end within 0 s" in done.stderr and time.monotonic() - began < 15


def test_a_process_that_ends_without_stopping_the_watch_is_not_held_up_by_it():
    code = "import os, signal\nfrom pirl_plugin.training.preemption import PreemptionHook\n"
    code += "hook = PreemptionHook(print, grace=40)\nhook.on_start(None)\n"
    for asked in ("", "os.kill(os.getpid(), signal.SIGUSR1)\nhook.requested.wait()\n"):
        done = subprocess.run([sys.executable, "-c", code + asked + "raise SystemExit(3)"], timeout=30)
        assert done.returncode == 3
