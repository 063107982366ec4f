"""The job script of docs/cluster.md and submitit under a real SLURM: cut at random times, requeued, they end equal."""

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pirl_plugin.network.checkpoints import load_checkpoint
from runs import same
from small_slurm import NoSlurm, SmallSlurm

ROOT = Path(__file__).resolve().parents[3]
JOBS = int(os.environ.get("PIRL_SLURM_JOBS", "0"))
RUN = (
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125 config.LOSS.pirl_loss.negatives=per_image "
    "config.LOSS.pirl_loss.num_negatives=16 config.OPTIMIZER.num_epochs=20 config.DISTRIBUTED.NUM_NODES=2 "
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=1 config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4 "
    "config.DATA.NUM_DATALOADER_WORKERS=0 config.DATA.TRAIN.DATA_PATHS=[$PHOTOS] config.CHECKPOINT.DIR=$RUN_FOLDER"
)


def readmes_job() -> str:
    """The script of docs/cluster.md, for two nodes without GPUs and small images."""
    (script,) = re.findall(
        r"```sh\n(#!/bin/bash\n#SBATCH.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL
    )
    for written, here in (
        ("--nodes=8 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=80", "--nodes=2 --ntasks-per-node=1"),
        ("pretrain/pirl/jigsaw_8node", "pretrain/pirl/jigsaw_small_images_cpu"),
        ("config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=500", f"config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY=50 {RUN}"),
    ):
        assert written in script
        script = script.replace(written, here)
    return script


@pytest.fixture(scope="module")
def slurm() -> Iterator[SmallSlurm]:
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:  # short: sockets' names are
        made = None
        try:
            made = SmallSlurm(Path(folder))
        except NoSlurm as reason:
            pytest.skip(f"no SLURM on this machine: {reason}")
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def variables(slurm, photo_folder) -> dict[str, str]:
    """What a job finds in its environment."""
    return {"PHOTOS": str(photo_folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"}  # fmt: skip


def wait_and_cut(
    slurm: SmallSlurm, job: str, log: Path, name: str, cut: tuple[str, ...] = (), after: float = 0
) -> None:
    """Until the job has ended as it should; signalled once, `after` seconds of running."""
    deadline, ran = time.monotonic() + 300, time.monotonic()
    while (state := slurm.field(job, "JobState")) not in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"):
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        if state == "PENDING":
            ran = time.monotonic()
        if cut and state == "RUNNING" and time.monotonic() - ran > after:
            slurm.run("scancel", *cut, job)
            print(f"{name}: {' '.join(cut)} after {after:.1f} s")
            cut = ()
        time.sleep(0.2)
    assert state == "COMPLETED", (state, log.read_text()[-3000:])
    print(f"{name}: {state}, requeued {slurm.field(job, 'Restarts')} times", flush=True)


def final(folder: Path) -> dict:
    return load_checkpoint(next(folder.glob("model_final_checkpoint*.torch")))


needs_jobs = pytest.mark.skipif(JOBS == 0, reason="PIRL_SLURM_JOBS says how many jobs to run: minutes each")


@pytest.mark.slow
@needs_jobs
@pytest.mark.timeout(0)
def test_the_readmes_job_cut_at_random_times_requeues_itself_and_ends_bit_equal(slurm, variables, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(readmes_job())

    def finished(name: str, seed: int | None) -> dict:
        folder, log = tmp_path / name, tmp_path / f"{name}.log"
        job = slurm.submit(script, log, RUN_FOLDER=str(folder), **variables)
        draw = random.Random(seed)
        after = draw.uniform(0, 20)
        signal = draw.choice([("--signal=USR1",), ("--signal=USR1", "--full"), ("--signal=TERM",)])
        wait_and_cut(slurm, job, log, name, () if seed is None else signal, after)
        return final(folder)

    alone = finished("alone", None)
    for seed in range(JOBS):
        assert same(alone, finished(f"run{seed}", seed))


@pytest.mark.slow
@needs_jobs
@pytest.mark.timeout(0)
def test_a_job_that_submitit_submits_is_put_back_into_the_queue_and_ends_bit_equal(slurm, variables, tmp_path):
    run = RUN.replace("$PHOTOS", variables["PHOTOS"]).split()

    def finished(name: str, *cut: str) -> dict:
        folder, jobs = tmp_path / name, tmp_path / f"{name}_jobs"
        submitted = subprocess.run(
            [sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/pirl/jigsaw_small_images_cpu",
             *(word.replace("$RUN_FOLDER", str(folder)) for word in run), "config.SLURM.USE_SLURM=true",
             "config.SLURM.PARTITION=all", "config.SLURM.MEM_GB=1", "config.SLURM.NUM_CPU_PER_PROC=1",
             f"config.SLURM.LOG_FOLDER={jobs}"],
            env={**slurm.environment, **variables}, capture_output=True, text=True, timeout=200, cwd=tmp_path,
        )  # fmt: skip
        assert submitted.returncode == 0, submitted.stderr[-3000:]
        job = re.search(r"SUBMITTED: (\d+)", submitted.stdout).group(1)
        wait_and_cut(slurm, job, jobs / f"{job}_0_log.err", name, cut, 18)
        return final(folder)

    alone = finished("alone")
    # As at the end of a job's time: to its steps, or to all of its processes.
    for number, cut in enumerate([("--signal=USR2",), ("--signal=USR2", "--full")]):
        assert same(alone, finished(f"cut{number}", *cut))
