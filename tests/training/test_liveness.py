"""Real processes, stopped, killed and failing: who is still there, and what the others say."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from pirl_plugin.training.liveness import Liveness
from runs import free_port

ROOT = Path(__file__).resolve().parents[2]
SILENCE = 2.0
RANKS = f"""
import os, sys, time
from torch.distributed import TCPStore
from pirl_plugin.training.liveness import watched
from pirl_plugin.validation import ConfigError, one_sentence_errors

def run(rank, world_size, port, what):
    store = TCPStore("localhost", port, world_size, is_master=rank == 0)
    with watched(store, "localhost", rank, world_size, 1, {SILENCE}):
        open(f"{{rank}}.ready", "w").close()
        if what == "fail":
            time.sleep(0.5)
            raise ConfigError("DATA is empty.")
        if what == "follow":
            time.sleep(0.6)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:533] Connection closed by peer [127.0.0.1]:29501")
        if what == "told":
            while not os.path.exists("now"):
                time.sleep(0.01)
            raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.97.0.3]:36507")
        if what == "busy":
            end = time.monotonic() + {2 * SILENCE}
            while time.monotonic() < end:
                sorted(range(200_000), key=str)
        elif what == "short":
            time.sleep(0.3)
        else:
            time.sleep({4 * SILENCE})
    print("over", flush=True)

port, roles = int(sys.argv[1]), sys.argv[2:]
for rank, what in enumerate(roles):
    pid = os.fork()  # all that is imported is there at once
    if not pid:
        printed = os.open(f"{{rank}}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(printed, 1), os.dup2(printed, 2)
        with one_sentence_errors():
            run(rank, len(roles), port, what)
        sys.exit()
    print(pid, flush=True)
for _ in roles:
    pid, status = os.wait()
    print(pid, os.waitstatus_to_exitcode(status), time.monotonic(), flush=True)
"""


class Ranks:
    """Ranks of one role each, started."""

    def __init__(self, folder: Path, *roles: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", RANKS, str(free_port()), *roles],
            stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.pids = [int(self.process.stdout.readline()) for _ in roles]
        deadline = time.monotonic() + 60
        while not all((folder / f"{rank}.ready").exists() for rank in range(len(roles))):
            assert time.monotonic() < deadline, [self.printed(rank) for rank in range(len(roles))]
            time.sleep(0.02)

    def printed(self, rank: int) -> str:
        return (self.folder / f"{rank}.log").read_text()

    def ends(self, count: int | None = None) -> dict[int, tuple[int, float, str]]:
        """Of the next `count` ranks that end, all by default: rank -> (exit code, when, all that was printed)."""
        found = {}
        for _ in range(len(self.pids) if count is None else count):
            pid, code, when = self.process.stdout.readline().split()
            rank = self.pids.index(int(pid))
            found[rank] = (int(code), float(when), self.printed(rank))
        return found


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_rank_that_falls_silent_ends_all_others_in_time_with_its_name(gone, how, tmp_path):
    ranks = Ranks(tmp_path, "long", "long", "long")
    began = time.monotonic()
    os.kill(ranks.pids[gone], how)
    found = ranks.ends(3 if how == signal.SIGKILL else 2)
    os.kill(ranks.pids[gone], signal.SIGKILL) if how == signal.SIGSTOP else found.pop(gone)
    said = rf"Error: Nothing was heard from rank {gone} \(node {gone}, .+\) for \d+ s"
    for code, when, printed in found.values():
        assert code == 1 and re.search(said, printed), printed
        assert SILENCE * 0.8 < when - began < 2 * SILENCE + 3


@pytest.mark.parametrize(
    ("how", "said"), [(signal.SIGSTOP, r"Nothing was heard from rank 0 \(.+\) for [2-9] s"),
                  (signal.SIGKILL, r"Rank 0 \(.+\) ended without giving a reason")],
)  # fmt: skip
def test_a_connection_closed_because_another_noticed_sooner_names_the_rank_that_is_gone(how, said, tmp_path):
    ranks = Ranks(tmp_path, "long", "told", "told")
    os.kill(ranks.pids[0], how)
    (tmp_path / "now").touch()
    found = ranks.ends(3 if how == signal.SIGKILL else 2)
    os.kill(ranks.pids[0], signal.SIGKILL) if how == signal.SIGSTOP else found.pop(0)
    assert sorted(found) == [1, 2]
    for code, _, printed in found.values():
        last = printed.strip().splitlines()[-1]
        assert code == 1 and re.match(f"Error: {said}", last) and "Traceback" not in printed, printed


def test_a_busy_rank_and_one_that_is_done_early_are_not_taken_for_gone(tmp_path):
    for code, _, printed in Ranks(tmp_path, "short", "busy", "long", "short").ends().values():
        assert code == 0 and printed.endswith("over\n"), printed


def test_a_job_that_was_suspended_and_goes_on_is_not_taken_for_gone(tmp_path):
    ranks = Ranks(tmp_path, "long", "long")
    for pid in ranks.pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.5 * SILENCE)
    for pid in ranks.pids:
        os.kill(pid, signal.SIGCONT)
    assert [code for code, _, _ in ranks.ends().values()] == [0, 0]


@pytest.mark.parametrize("failing", [0, 1])
def test_other_nodes_say_the_sentence_of_the_rank_that_failed(failing, tmp_path):
    roles = ["long", "long", "follow"]
    roles[failing] = "fail"
    found = Ranks(tmp_path, *roles).ends()
    sentence = rf"Error: Rank {failing} \(node {failing}, .+\) ended with ConfigError: DATA is empty\."
    for rank, (code, _, printed) in found.items():
        assert code == 1
        if rank != failing:
            assert re.match(sentence, printed.strip().splitlines()[-1]) and "Traceback" not in printed, printed
        else:
            assert printed.strip().splitlines()[-1] == "Error: DATA is empty."


def test_a_rank_whose_others_do_not_come_says_so_in_time():
    code = f"""
from pirl_plugin.launch.composition import compose
from pirl_plugin.training import process_group
config = compose(["config=pretrain/pirl/jigsaw_small_images_cpu", "config.DISTRIBUTED.NUM_NODES=2",
                  "config.TRAINER.PIRL_TRAIN_STEP.rendezvous_seconds=2"], check=False).config
import time
began = time.monotonic()
try:
    process_group.join(config, "localhost:{free_port()}", 0, 0)
except process_group.ConfigError as error:
    print(time.monotonic() - began, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, sentence = done.stdout.strip().splitlines()[-1].split(" ", 1)
    assert 1.5 < float(seconds) < 6
    assert sentence.startswith("Rank 0 waited 2 s (TRAINER.PIRL_TRAIN_STEP.rendezvous_seconds) at tcp://localhost:")


@pytest.mark.parametrize("asked_for", [None, 2])
def test_ranks_on_a_cpu_share_its_cores_unless_told_otherwise_and_wait_as_long_as_they_should(asked_for):
    code = f"""
import sys, torch
from pirl_plugin.launch.composition import compose
from pirl_plugin.training import process_group
config = compose(["config=pretrain/pirl/jigsaw_small_images_cpu", "config.DISTRIBUTED.NUM_PROC_PER_NODE=2"],
                 check=False).config
config.TRAINER.PIRL_TRAIN_STEP.timeout_minutes = 7
store = process_group.join(config, "localhost:{free_port()}", int(sys.argv[1]), int(sys.argv[1]))
print(store.timeout.total_seconds(), torch.get_num_threads())
process_group.leave()
"""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": str(asked_for)} if asked_for else {})
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    wanted = asked_for or max(1, len(os.sched_getaffinity(0)) // 2)
    assert [rank.communicate(timeout=60)[0].split()[-2:] for rank in ranks] == [["420.0", str(wanted)]] * 2


def test_the_first_rank_stays_only_until_the_others_are_done():
    port = free_port()
    server = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    stores = [TCPStore("localhost", port, is_master=False) for _ in range(2)]
    ranks = [Liveness(store, rank, 2, 1, silence=300.0) for rank, store in enumerate(stores)]  # it may stay 20 s
    second = threading.Thread(target=ranks[1].__enter__)
    second.start()
    ranks[0].__enter__()
    second.join()
    ended = threading.Timer(1.5, ranks[1].__exit__)
    ended.start()
    began = time.monotonic()
    ranks[0].__exit__()
    assert 1.4 < time.monotonic() - began < 10
    ended.join()
    del server


@pytest.mark.parametrize("reads", [True, False])
def test_the_first_rank_stays_until_a_busy_one_has_read_its_verdict_but_not_for_ever(reads):
    port = free_port()
    server = TCPStore("localhost", port, is_master=True, wait_for_workers=False)
    ranks = [
        Liveness(TCPStore("localhost", port, is_master=False), rank, 3, 1, silence=9.0) for rank in range(3)
    ]  # usually stays 1 s, at most 6
    ranks[0].heard[2] = (7, time.monotonic() - 10)  # this one is gone
    ranks[0]._tell("Nothing was heard from rank 2.")
    said: list[str] = []
    busy = threading.Timer(2.5, lambda: said.append(ranks[1]._verdict()))
    if reads:
        busy.start()
    began = time.monotonic()
    ranks[0]._stay()
    assert (2.4 if reads else 5.9) < time.monotonic() - began < (4 if reads else 8)
    assert said == ["Nothing was heard from rank 2."] * reads
    del server
