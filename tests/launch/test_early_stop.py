"""A signal before training has begun is no failure: the job goes back into the queue."""

import ast
import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pirl_plugin import early_stop
from pirl_plugin.training.preemption import grace_seconds
from runs import free_port

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
CODE = """
import time
from pirl_plugin import early_stop
early_stop.end_when_asked()
print('ready', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", early_stop.SIGNALS)
def test_a_process_that_only_starts_ends_with_the_code_for_trying_again(number):
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, early_stop.MESSAGE)


STARTED = """
import os, subprocess, sys, time
from pirl_plugin import early_stop
if sys.argv[1] == "starter":
    subprocess.Popen([sys.executable, "-c", sys.argv[2], "started", sys.argv[2]], env=early_stop.environment_of_child())
else:
    early_stop.end_with_starter()
    print(os.getpid(), os.environ.get(early_stop.STARTER), flush=True)
time.sleep(60)
"""


def test_what_a_process_started_ends_with_it_even_if_it_is_killed():
    starter = subprocess.Popen([sys.executable, "-c", STARTED, "starter", STARTED], stdout=subprocess.PIPE, text=True,
                               env=ENVIRONMENT)  # fmt: skip
    pid, passed_on = starter.stdout.readline().split()
    assert passed_on == "None"  # what the started one starts in turn is its own affair
    os.kill(int(pid), 0)
    starter.kill()
    starter.wait()
    assert starter.stdout.read() == ""  # which ends when the last of both has


def test_every_process_that_the_plugin_starts_to_compute_is_told_to_end_with_it():
    starts = []
    for path in sorted((ROOT / "pirl_plugin").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("subprocess.run", "subprocess.Popen"):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                starts.append((path.stem, given.get("env")))
    others = {name for name, environment in starts if environment is None}
    assert others == {"install_detectron2"}  # which waits for git and pip
    told = sorted(name for name, environment in starts if environment is not None)
    assert told == ["benchmarking", "demo_training", "launcher", "study_runs"]


AT_THE_END = """
import sys, time
from pirl_plugin import early_stop
class Slow:
    def __del__(self):  # when Python has put the default handlers back
        print('ending', flush=True)
        time.sleep(1)
early_stop.end_when_asked()
early_stop.end_when_asked()
kept = Slow()
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 75])
def test_a_signal_while_python_ends_changes_nothing_of_the_exit_code(code):
    process = subprocess.Popen([sys.executable, "-c", AT_THE_END, str(code)], stdout=subprocess.PIPE, text=True,
                               env=ENVIRONMENT)  # fmt: skip
    assert process.stdout.readline() == "ending\n"
    for number in early_stop.SIGNALS:
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code


def test_handlers_of_others_are_left_and_other_threads_set_none():
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        early_stop.end_when_asked()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        thread = threading.Thread(target=early_stop.end_when_asked)
        thread.start()
        thread.join()
    finally:
        atexit.unregister(early_stop._pass_over)
        signal.signal(signal.SIGUSR1, before)
        for name in early_stop.SIGNALS:
            if early_stop.is_early(signal.getsignal(name)):
                signal.signal(name, signal.SIG_DFL)


def test_the_grace_is_that_of_whoever_started_the_run_unless_it_is_given(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert (grace_seconds(None), grace_seconds(7)) == (100, 7)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert (grace_seconds(None), grace_seconds(7)) == (25, 7)


BEFORE_THE_RANKS = """
import multiprocessing, os, signal, time
from pirl_plugin.training import preemption

if __name__ == "__main__":
    began = time.monotonic()
    with preemption.forwarded_signals():
        os.kill(os.getpid(), signal.SIGUSR1)  # there is no rank yet
        ranks = [multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,)) for _ in range(2)]
        for rank in ranks:
            rank.start()
            time.sleep(1)
        for rank in ranks:
            rank.join()
    os.kill(os.getpid(), signal.SIGUSR1)
    print([rank.exitcode for rank in ranks], time.monotonic() - began < 30, preemption.forwarded.is_set())
"""


def test_a_rank_that_starts_after_the_signal_is_told_all_the_same(tmp_path):
    (tmp_path / "launcher.py").write_text(BEFORE_THE_RANKS)
    done = subprocess.run([sys.executable, "launcher.py"], capture_output=True, text=True, timeout=100, cwd=tmp_path,
                          env=ENVIRONMENT)  # fmt: skip
    assert done.stdout.strip() == f"[-{signal.SIGTERM:d}, -{signal.SIGTERM:d}] True True", done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_at_any_time_of_the_start_ends_with_75_and_the_same_command_trains(processes, photo_folder, tmp_path):
    command = [
        sys.executable, "-m", "pirl_plugin.commands", "train", "config=pretrain/pirl/jigsaw_small_images_cpu",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        f"config.CHECKPOINT.DIR={tmp_path}/run", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8",
        f"config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}", "config.OPTIMIZER.num_epochs=2",
    ]  # fmt: skip
    for delay in (1.0, 3.0, 5.5, 8.0):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGUSR1)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, 75), (delay, errors[-2000:])
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    assert (tmp_path / "run" / "model_final_checkpoint_phase1.torch").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_a_rank_that_waits_for_another_node_ends_at_once_with_75(to_all, photo_folder, tmp_path):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/pirl/jigsaw_small_images_cpu",
         f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", f"config.CHECKPOINT.DIR={tmp_path}/run", "node_id=0",
         "config.DISTRIBUTED.NUM_NODES=2", f"config.DISTRIBUTED.RUN_ID=localhost:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while True:  # until the rank has opened the port at which it waits
        assert process.poll() is None and time.monotonic() < deadline
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            break
        time.sleep(0.2)
    time.sleep(1)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGUSR1) if to_all else process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75 and time.monotonic() - began < 10, errors[-2000:]
