"""Processes that the kernel really kills for want of memory, in a cgroup with a limit."""

import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from pirl_plugin import out_of_memory
from pirl_plugin.validation import one_sentence_errors

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1_500_000_000
PROGRAM = """
import os, signal, sys
from torch.utils.data import DataLoader, Dataset
from pirl_plugin.validation import one_sentence_errors

class Images(Dataset):
    def __len__(self):
        return 100
    def __getitem__(self, index):
        if index == 5 and sys.argv[1] == "hungry":
            bytearray(b"1") * 4_000_000_000
        if index == 5 and sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return index

with one_sentence_errors():
    for _ in DataLoader(Images(), 2, num_workers=2):
        pass
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A new one whose processes may have LIMIT bytes."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    folder = (first if first.is_dir() else second) / f"pirl_{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        limit = folder / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")
        if not limit.exists():
            folder.rmdir()
            pytest.skip("this machine lets no test limit memory: no memory controller")
        limit.write_text(str(LIMIT))
    except OSError as error:
        pytest.skip(f"this machine lets no test limit memory: {error}")
    yield folder
    folder.rmdir()


def run(what: str, cgroup: Path | None = None) -> str:
    join = f'echo $$ > {cgroup}/cgroup.procs; exec "$@"' if cgroup else 'exec "$@"'
    done = subprocess.run(
        ["sh", "-c", join, "sh", sys.executable, "-c", PROGRAM, what],
        capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return sentence  # the other worker may print after it that nobody listens any more


@pytest.mark.skipif(out_of_memory.kills() is None, reason="this kernel does not count what it kills")
def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_called_that(cgroup):
    sentence = run("hungry", cgroup)
    assert sentence.startswith("Error: A worker that reads images was killed by the kernel, because memory ran out")
    assert "DATA.NUM_DATALOADER_WORKERS" in sentence


def test_a_worker_that_somebody_kills_is_not_said_to_have_lacked_memory():
    before = out_of_memory.kills()
    sentence = run("killed")
    others = out_of_memory.kills() != before  # of another test at the same time
    assert sentence.startswith("Error: A worker that reads images was killed ")
    assert ("not by the kernel" in sentence) == (before is not None and not others)


def test_a_worker_that_is_gone_when_its_tensor_is_fetched_is_said_to_have_been_killed():
    """The main process may notice this before PyTorch hears of the death, which then ends in other errors."""
    reading, writing = os.pipe()
    worker = os.fork()
    if not worker:
        os.write(writing, bytes(ForkingPickler.dumps(torch.zeros(3))))
        time.sleep(600)
    os.close(writing)
    passed = os.read(reading, 100_000)
    os.close(reading)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    with pytest.raises(SystemExit, match=r"^Error: A worker that reads images was killed "), one_sentence_errors():
        ForkingPickler.loads(passed)


def test_the_death_of_another_worker_does_not_disturb_the_sentence_or_the_exit_after_it(monkeypatch):
    def disturbed(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")

    def cause_of_a_kill():
        os.kill(os.getpid(), signal.SIGCHLD)
        return "by nobody"

    monkeypatch.setattr(out_of_memory, "cause_of_a_kill", cause_of_a_kill)
    before = signal.signal(signal.SIGCHLD, disturbed)
    try:
        with pytest.raises(SystemExit, match="killed by nobody"), one_sentence_errors():
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
        os.kill(os.getpid(), signal.SIGCHLD)
        signal.signal(signal.SIGCHLD, disturbed)
        with pytest.raises(ZeroDivisionError), one_sentence_errors():
            1 / 0  # noqa: B018
        assert signal.getsignal(signal.SIGCHLD) is disturbed
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("end", ["ConnectionResetError: [Errno 104] Connection reset by peer", "EOFError"])
def test_a_worker_may_go_at_any_time_of_passing_and_other_connections_are_not_meant(end):
    frame = '  File "/torch/multiprocessing/reductions.py", line 540, in rebuild_storage_fd\n    fd = df.detach()\n'
    assert out_of_memory.in_words(f"Traceback (most recent call last):\n{frame}{end}\n").startswith("A worker that ")
    assert not out_of_memory.in_words(f"Traceback (most recent call last):\n{frame}ValueError: of another kind\n")
    assert not out_of_memory.in_words(f"Traceback (most recent call last):\n{end}\n")


def test_a_kernel_that_does_not_count_is_not_quoted(monkeypatch, tmp_path):
    monkeypatch.setattr(out_of_memory, "COUNTERS", tmp_path / "none")
    assert out_of_memory.kills() is None
    assert out_of_memory.cause_of_a_kill().startswith("most likely by the kernel, because memory ran out;")


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [(3, 5, r"by the kernel, because memory ran out \(2 killed since the start\); use fewer"),
     (5, 5, "but not by the kernel: memory had not run out$"), (None, 5, "most likely by the kernel")],
)  # fmt: skip
def test_kills_are_counted_from_the_start_of_the_program(monkeypatch, tmp_path, before, now, reason):
    (tmp_path / "vmstat").write_text(f"pgfault 12\noom_kill {now}\noom_kill_other 9\n")
    monkeypatch.setattr(out_of_memory, "COUNTERS", tmp_path / "vmstat")
    monkeypatch.setattr(out_of_memory, "_before", before)
    assert out_of_memory.kills() == now and re.match(reason, out_of_memory.cause_of_a_kill())


def test_a_gpu_without_room_is_a_sentence_with_what_to_do(capsys):
    text = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.25 GiB of which 1.2 GiB"
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise torch.OutOfMemoryError(f"{text} is free.")
    assert "(CUDA out of memory. Tried to allocate 2.50 GiB)" in str(end.value)
    assert "TRAINER.PIRL_TRAIN_STEP.accumulation_steps" in str(end.value)


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError), one_sentence_errors():
        raise RuntimeError(f"DataLoader worker (pid 12) is killed by signal: {signal.SIGTERM.name}")
