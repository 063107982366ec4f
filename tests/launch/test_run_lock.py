"""Two runs never train in one folder, and a folder whose run is gone is free at once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pirl_plugin.launch.run_lock import NAME, STALE_SECONDS, _started, only_run_in, owner
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


ELSEWHERE = {"host": "elsewhere", "machine": "elsewhere pid:[1]"}


def test_a_folder_is_held_while_a_run_is_in_it_and_free_after(tmp_path):
    with only_run_in(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / NAME).read_text()) == owner()
        with (
            pytest.raises(
                ConfigError, match=rf"another run is training \(process {os.getpid()} on {socket.gethostname()}"
            ),
            only_run_in(tmp_path / "run"),
        ):
            pass
        assert (tmp_path / "run" / NAME).is_file()
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(RuntimeError, match="failed"), only_run_in(tmp_path / "run"):
        raise RuntimeError("failed")
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("other", "age", "job", "free"),
    [
        ({"pid": 2**22 + 1}, 0, "", True),  # no such process here
        ({"started": "1"}, 0, "", True),  # another process has its number now
        (ELSEWHERE, 0, "", False),
        (ELSEWHERE, STALE_SECONDS + 60, "", True),  # it would have touched the file
        ({**ELSEWHERE, "job": "SLURM_JOB_ID 7"}, 0, "7", True),  # put back into the queue
        ({**ELSEWHERE, "job": "SLURM_JOB_ID 7"}, 0, "8", False),
    ],
)
def test_a_run_that_is_gone_holds_nothing(other, age, job, free, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    path = tmp_path / NAME
    path.write_text(json.dumps({**owner(), **other}))
    os.utime(path, (time.time() - age, time.time() - age))
    if job:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    if free:
        with only_run_in(tmp_path):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(ConfigError, match=r"on elsewhere"), only_run_in(tmp_path):
            pass
        assert json.loads(path.read_text())["host"] == "elsewhere"


def test_a_torn_file_holds_a_while_and_torn_writes_are_cleared_away(tmp_path):
    (tmp_path / NAME).write_text('{"host": "els')
    with pytest.raises(ConfigError, match="another run is training"), only_run_in(tmp_path):
        pass
    os.utime(tmp_path / NAME, (0, 0))
    (tmp_path / "model_phase0.torch.node1.77.unfinished").write_bytes(b"half")
    with only_run_in(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_dead_process_that_nobody_reaped_holds_nothing(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    place = {key: owner()[key] for key in ("host", "machine")}
    lock = {**place, "pid": child.pid, "started": _started(child.pid), "job": ""}
    (tmp_path / NAME).write_text(json.dumps(lock))
    with pytest.raises(ConfigError, match=f"process {child.pid} on"), only_run_in(tmp_path):
        pass
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        time.sleep(0.01)
    with only_run_in(tmp_path):
        pass
    child.wait()


@pytest.mark.slow
def test_a_second_run_is_refused_while_the_first_trains_and_takes_over_when_that_was_killed(photo_folder, tmp_path):
    command = [
        sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/pirl/jigsaw_small_images_cpu",
        "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        f"config.CHECKPOINT.DIR={tmp_path}/run", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(
        [*command, "config.OPTIMIZER.num_epochs=200"],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run" / "model_phase0.torch").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        second = subprocess.run(
            [*command, "config.OPTIMIZER.num_epochs=200"], env=environment, capture_output=True, text=True, timeout=500
        )
        assert second.returncode == 1 and first.poll() is None
        last = second.stderr.strip().splitlines()[-1]
        assert last.startswith("Error: CHECKPOINT.DIR is ") and f"process {first.pid} on" in last
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = len((tmp_path / "run" / "progress.csv").read_text().splitlines())
    third = subprocess.run(
        [*command, f"config.OPTIMIZER.num_epochs={done + 7}"],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert third.returncode == 0, third.stdout[-1500:] + third.stderr[-1500:]
    assert "Resume from file" in third.stdout and not (tmp_path / "run" / NAME).exists()
