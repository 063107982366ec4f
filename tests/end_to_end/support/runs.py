"""For tests that start runs: free ports, processes left behind, and whether two checkpoints are the same."""

import contextlib
import os
import signal
import socket
import time
from pathlib import Path

import torch


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("localhost", 0))
        return [listener.getsockname()[1] for listener in listeners]


def free_port() -> int:
    return free_ports(1)[0]


def same(one, other) -> bool:
    """Whether two checkpoints are equal, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        # VISSL's count of its loop, and its list of the losses that this process has seen in the epoch; the config.
        keys = set(one) - {"iteration_num", "losses", "settings"}
        return set(one) == set(other) and all(same(one[key], other[key]) for key in keys)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def processes_of(group: int) -> list[int]:
    """Living processes of a process group, zombies left out."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of, *_ = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(of) == group and state not in "ZX":
            found.append(int(status.parent.name))
    return found


def left_after(group: int, seconds: float) -> list[int]:
    """Processes of a group that have not ended within some seconds; they are killed."""
    deadline = time.monotonic() + seconds
    while (left := processes_of(group)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left
