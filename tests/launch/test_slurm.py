"""What SLURM says of a node, and what submitit is asked for; sbatch itself is a stand-in that keeps the script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pirl_plugin.launch.slurm import node_id
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
STEP = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}


def test_the_node_is_slurms_unless_it_is_given():
    assert node_id(0, [], {}) == 0
    assert node_id(0, ["config=x"], STEP) == 1
    assert node_id(0, ["config=x", "node_id=0"], STEP) == 0


def test_several_tasks_on_a_node_are_refused_unless_each_is_told_who_it_is():
    two_on_one = {**STEP, "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1"}
    with pytest.raises(ConfigError, match=r"SLURM started 2 tasks on 1 node\(s\).*--ntasks-per-node=1"):
        node_id(0, [], two_on_one)
    assert node_id(1, ["node_id=1"], two_on_one) == 1


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_submitted_job_is_requeued_until_it_is_done_and_asks_for_gpus_only_where_it_uses_them(tmp_path, device):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, says in (("sbatch", "Submitted batch job 12"), ("srun", ""), ("scontrol", "")):
        (programs / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (programs / name).chmod(0o755)
    code = f"""
from pirl_plugin.launch import composition, launcher
config = composition.compose(["config=pretrain/pirl/jigsaw_small_images_cpu", "config.MACHINE.DEVICE={device}",
    "config.SLURM.USE_SLURM=true", "config.SLURM.PARTITION=long", "config.SLURM.LOG_FOLDER={tmp_path}/jobs",
    "config.CHECKPOINT.DIR={tmp_path}/run"], check=False).config
job = launcher.launch_on_slurm(config, "train")
from submitit.core.utils import DelayedSubmission
print("requeued", DelayedSubmission.load(job.paths.submitted_pickle)._timeout_countdown)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split("requeued ")[1]) >= 1000
    (script,) = (tmp_path / "jobs").glob("*_submission.sh")
    written = script.read_text()
    assert "#SBATCH --signal=USR2@120" in written and "#SBATCH --partition=long" in written
    assert ("gpus-per-node" in written or "gres" in written) == (device == "gpu")
