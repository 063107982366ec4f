"""Several machines, each a network namespace with its own address on one bridge, of which one is taken off the net."""

import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SILENCE = 15
RUN = [
    "config=pretrain/pirl/jigsaw_small_images_cpu", "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4", "config.OPTIMIZER.num_epochs=2000", "config.LOG_FREQUENCY=1",
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=1", f"config.TRAINER.PIRL_TRAIN_STEP.silence_seconds={SILENCE}",
    "config.LOSS.pirl_loss.memory_bank.fill_first=False",
]  # fmt: skip


class Machines:
    """`count` of them: 10.97.0.1, 10.97.0.2, ... on a bridge; removed by `remove`."""

    def __init__(self, count: int) -> None:
        self.tag = f"p{secrets.token_hex(3)}"  # names of interfaces have at most 15 letters
        self.count = count
        self.ip("link", "add", f"{self.tag}br", "type", "bridge")
        self.ip("link", "set", f"{self.tag}br", "up")
        for number in range(count):
            name = f"{self.tag}n{number}"
            self.ip("netns", "add", name)
            self.ip("link", "add", f"{self.tag}h{number}", "type", "veth", "peer", "name", f"{self.tag}e{number}")
            self.ip("link", "set", f"{self.tag}e{number}", "netns", name)
            self.ip("link", "set", f"{self.tag}h{number}", "master", f"{self.tag}br", "up")
            self.ip("-n", name, "addr", "add", f"10.97.0.{number + 1}/24", "dev", f"{self.tag}e{number}")
            self.ip("-n", name, "link", "set", f"{self.tag}e{number}", "up")
            self.ip("-n", name, "link", "set", "lo", "up")

    @staticmethod
    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def command(self, number: int) -> list[str]:
        return ["ip", "netns", "exec", f"{self.tag}n{number}"]

    def take_off(self, number: int) -> None:
        """No packet comes or goes any more, and nobody is told: on the bridge's side, so that its own link stays up."""
        self.ip("link", "set", f"{self.tag}h{number}", "nomaster")

    def remove(self) -> None:
        for number in range(self.count):
            subprocess.run(["ip", "link", "del", f"{self.tag}h{number}"], capture_output=True)
            subprocess.run(["ip", "netns", "del", f"{self.tag}n{number}"], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self.tag}br"], capture_output=True)


@pytest.fixture
def machines() -> Iterator[Machines]:
    made = None
    try:
        made = Machines(3)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine lets no test make network namespaces: {error}")
    try:
        yield made
    finally:
        made.remove()


def start(machines: Machines, number: int, folder: Path, photos: Path, *overrides: str) -> subprocess.Popen:
    interface = f"{machines.tag}e{number}"
    return subprocess.Popen(
        [*machines.command(number), sys.executable, "-m", "pirl_plugin.launch.launcher", *RUN, f"node_id={number}",
         f"config.DISTRIBUTED.NUM_NODES={machines.count}", "config.DISTRIBUTED.RUN_ID=10.97.0.1:29777",
         f"config.DATA.TRAIN.DATA_PATHS=[{photos}]", f"config.CHECKPOINT.DIR={folder}/run{number}", *overrides],
        stdout=(folder / f"{number}.log").open("w"), stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": interface},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 2])
def test_machines_that_are_left_end_soon_after_one_vanishes_and_name_it(machines, gone, photo_folder, tmp_path):
    nodes = [start(machines, number, tmp_path, photo_folder) for number in range(3)]
    try:
        deadline = time.monotonic() + 240
        while "iteration 3 of" not in (tmp_path / "0.log").read_text():
            assert time.monotonic() < deadline and all(node.poll() is None for node in nodes), [
                (tmp_path / f"{number}.log").read_text()[-3000:] for number in range(3)
            ]
            time.sleep(0.05)
        machines.take_off(gone)
        began = time.monotonic()
        left = [number for number in range(3) if number != gone]
        seconds = []
        for number in left:
            assert nodes[number].wait(120) == 1
            seconds.append(time.monotonic() - began)
        print(f"seconds from the silence of machine {gone} to the end of the others: {seconds}")
        assert max(seconds) < 3 * SILENCE
        for number in left:
            printed = (tmp_path / f"{number}.log").read_text()
            assert re.search(rf"Error: Nothing was heard from rank {gone} \(node {gone}, ", printed), printed[-3000:]
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, 9)
            node.wait()
