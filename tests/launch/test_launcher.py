"""Real runs of VISSL's trainer through the launcher, in processes of their own, on small real JPEGs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pirl_plugin.data.image_files import list_images
from pirl_plugin.experiments.finetune import finetuning
from pirl_plugin.experiments.recipe import Machine
from pirl_plugin.experiments.study_runs import run_launcher
from pirl_plugin.launch.composition import write
from pirl_plugin.launch.earlier_run import check_same_files
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.weights import Architecture
from pirl_plugin.objective.memory_bank import initial_rows
from pirl_plugin.validation import ConfigError
from runs import free_port

ROOT = Path(__file__).resolve().parents[2]
SECRET = "planted-s3cret"  # in the environment of every run here
TINY = [
    "config=pretrain/pirl/jigsaw_small_images_cpu",
    "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.LOSS.pirl_loss.negatives=per_image",
    "config.LOSS.pirl_loss.num_negatives=16",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8",
    "config.LOSS.pirl_loss.memory_bank.fill_first=False",
    "config.OPTIMIZER.num_epochs=2",
]


def launch(folder: Path, *overrides: str) -> subprocess.CompletedProcess:
    """Run the launcher from a folder that has nothing to do with the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "pirl_plugin.launch.launcher", *TINY, *overrides],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "WANDB_API_KEY": SECRET,
            "MY_SETTING": SECRET,
        },
    )


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, photo_folder):
    """Two gloo ranks with a data-loader worker each, two epochs."""
    folder = tmp_path_factory.mktemp("two_ranks")
    result = launch(
        folder,
        f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        "config.DISTRIBUTED.NUM_PROC_PER_NODE=2",
        "config.DATA.NUM_DATALOADER_WORKERS=1",
        f"config.CHECKPOINT.DIR={folder}/run",
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result, folder / "run"


def test_two_ranks_hold_the_same_bank_after_every_epoch(two_ranks):
    result, _ = two_ranks
    checksums = re.findall(r"Memory bank identical on 2 rank\(s\), checksum (-?\d+)", result.stdout)
    assert len(checksums) >= 2 and len(set(checksums)) == 2  # it changed between the epochs


def test_a_secret_of_the_environment_is_in_no_output_and_no_file(two_ranks):
    result, folder = two_ranks
    assert "WANDB_API_KEY" in result.stdout and SECRET not in result.stdout + result.stderr
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_the_banks_rows_have_norm_one_and_all_were_updated(two_ranks):

    _, folder = two_ranks
    first, last = load(folder / "model_phase0.torch"), load(folder / "model_final_checkpoint_phase1.torch")
    for checkpoint in (first, last):
        rows = checkpoint["loss"]["memory_bank.rows"]
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
        changed = (rows != initial_rows(48, 128, seed=0)).any(dim=1)
        assert changed.all()
    assert not torch.equal(first["loss"]["memory_bank.rows"], last["loss"]["memory_bank.rows"])


def test_a_run_that_was_killed_before_its_last_test_is_tested_and_only_then_finished(photo_folder, tmp_path):
    for file in photo_folder.rglob("*.jpg"):
        split = (
            tmp_path / ("test" if sorted(file.parent.iterdir()).index(file) % 3 == 0 else "train") / file.parent.name
        )
        split.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, split)
    transforms = compose(["config=pretrain/pirl/jigsaw_small_images_cpu"], check=False).DATA.TRAIN.TRANSFORMS
    overrides = finetuning(
        Architecture(18, 0.125, "small"), Preprocessing.of_transforms(transforms, 32), None,
        tmp_path / "train", tmp_path / "test", tmp_path / "run", 2, 0, Machine("cpu", 2),
    )  # fmt: skip
    overrides += ["config.TEST_EVERY_NUM_EPOCH=2", "config.CHECKPOINT.CHECKPOINT_FREQUENCY=2"]
    metrics = tmp_path / "run" / "metrics.json"

    def rows() -> list[dict]:
        return [json.loads(line) for line in metrics.read_text().splitlines()]

    assert run_launcher(overrides, tmp_path / "first.txt") == 0
    whole = rows()
    tests = [row["train_phase_idx"] for row in whole if "test_accuracy_list_meter" in row]
    assert tests == [0, 1] and "test_accuracy_list_meter" in whole[-1]
    metrics.write_text("".join(f"{json.dumps(row)}\n" for row in whole[:-1]))
    assert (tmp_path / "run" / "model_final_checkpoint_phase1.torch").is_file()
    assert run_launcher(overrides, tmp_path / "second.txt") == 0
    assert rows() == whole and "Finished before" not in (tmp_path / "second.txt").read_text()
    assert run_launcher(overrides, tmp_path / "third.txt") == 0
    assert rows() == whole and "Finished before" in (tmp_path / "third.txt").read_text()


def test_a_finished_run_says_so_and_does_nothing(two_ranks, photo_folder):
    _, folder = two_ranks
    before = (folder / "model_final_checkpoint_phase1.torch").stat().st_mtime
    result = launch(folder.parent, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", f"config.CHECKPOINT.DIR={folder}")
    assert result.returncode == 0 and "Finished before; nothing was run" in result.stdout
    assert (folder / "model_final_checkpoint_phase1.torch").stat().st_mtime == before


def test_broken_photos_are_counted_named_and_kept_out_of_the_bank(tmp_path, photo_folder):
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    bad = [photos / "class0" / "000.jpg", photos / "class2" / "006.jpg"]
    whole = bad[0].read_bytes()
    bad[0].write_bytes(whole[: len(whole) // 2])
    bad[1].write_bytes(b"")
    result = launch(tmp_path, f"config.DATA.TRAIN.DATA_PATHS=[{photos}]", f"config.CHECKPOINT.DIR={tmp_path}/run")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("2 of 48 images could not be read in this epoch") == 2
    assert set(re.findall(r"Not read: (\S+)", result.stdout)) == {str(path) for path in bad}

    rows = load(tmp_path / "run" / "model_final_checkpoint_phase1.torch")["loss"]["memory_bank.rows"]
    unchanged = (rows == initial_rows(48, 128, seed=0)).all(dim=1).nonzero().squeeze(1).tolist()
    assert [list_images(photos)[i] for i in unchanged] == [str(path) for path in bad]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["config.OPTIMIZER.num_epoch=1"], "did you mean num_epochs?"),
        (["config.LOSS.pirl_loss.num_negatives=48"], "the data set has 48 images, which leaves at most 47 negatives"),
        (
            ["config.LOSS.pirl_loss.num_negatives=48", "config.DISTRIBUTED.NUM_PROC_PER_NODE=2"],
            "the data set has 48 images, which leaves at most 47 negatives",
        ),
        (["config.DATA.TRAIN.DATA_PATHS=[]"], "give config.DATA.TRAIN.DATA_PATHS=[<folder>]"),
    ],
)
def test_mistakes_end_in_one_sentence_and_no_traceback_of_the_launcher(tmp_path, photo_folder, overrides, message):
    result = launch(
        tmp_path,
        f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        f"config.CHECKPOINT.DIR={tmp_path}/run",
        *overrides,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and message in last, result.stderr[-2000:]


@pytest.mark.slow
def test_a_sharded_bank_trains_on_two_ranks_and_resumes_on_one(tmp_path, photo_folder):
    run = tmp_path / "run"
    common = [
        f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        f"config.CHECKPOINT.DIR={run}",
        "config.LOSS.pirl_loss.memory_bank.name=sharded_memory_bank",
        "config.LOSS.pirl_loss.memory_bank.dtype=bfloat16",
        "config.HOOKS.TENSORBOARD_SETUP.USE_TENSORBOARD=true",
        f"config.HOOKS.TENSORBOARD_SETUP.LOG_DIR={run}",
        "config.LOG_FREQUENCY=1",
    ]
    result = launch(tmp_path, *common, "config.DISTRIBUTED.NUM_PROC_PER_NODE=2")
    assert result.returncode == 0, result.stderr[-3000:]
    shards = sorted(path.name for path in run.glob("*.safetensors"))
    assert shards == [f"model_phase{p}_bank{r}of2.safetensors" for p in (0, 1) for r in (0, 1)]
    checkpoint = load(run / "model_final_checkpoint_phase1.torch")["loss"]
    assert "memory_bank.rows" not in checkpoint
    bank = [load_file(run / name) for name in checkpoint["memory_bank._extra_state"]["shards"]]
    assert all(part["updated"].all() and part["rows"].dtype == torch.bfloat16 for part in bank)
    scalars = EventAccumulator(str(run / "tb_logs" if (run / "tb_logs").is_dir() else run)).Reload().Tags()["scalars"]
    assert {"Loss/image/positive_similarity", "Loss/pretext/negatives_above_positive"} <= set(scalars)

    # As if it had been cut off in the second epoch.
    (run / "model_final_checkpoint_phase1.torch").unlink()
    (run / "checkpoint.torch").unlink()
    (run / "checkpoint.torch").symlink_to(run / "model_phase0.torch")
    result = launch(tmp_path, *common)
    assert result.returncode == 0, result.stderr[-3000:]
    assert load(run / "model_final_checkpoint_phase1.torch")["loss"]["_extra_state"]["steps"] > 3
    assert (run / "model_phase1_bank0of1.safetensors").is_file()


@pytest.mark.slow
def test_a_sweep_runs_every_value_in_its_own_folder(tmp_path, photo_folder):
    result = launch(
        tmp_path,
        f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
        f"config.CHECKPOINT.DIR={tmp_path}/sweep",
        "config.OPTIMIZER.num_epochs=1",
        "config.LOSS.pirl_loss.lambda_=0,1",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    finals = sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "sweep").rglob("model_final*"))
    assert finals == [f"sweep/lambda-{v}/model_final_checkpoint_phase0.torch" for v in (0, 1)]


@pytest.mark.slow
def test_a_job_of_submitit_finds_the_plugin_in_its_ranks_and_spawned_workers(tmp_path, photo_folder):
    # The job is pickled here and run by submitit's own local executor, where __main__ is not the launcher.
    code = f"""
import submitit
from pirl_plugin.launch import composition
from pirl_plugin.launch import launcher
whole = composition.compose({[*TINY, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"]!r} + [
    "config.CHECKPOINT.DIR={tmp_path}/run", "config.DATA.NUM_DATALOADER_WORKERS=1",
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=2", "config.OPTIMIZER.num_epochs=1",
    "config.MULTI_PROCESSING_METHOD=spawn", "config.SLURM.PORT_ID={free_port()}"])
executor = submitit.LocalExecutor(folder="{tmp_path}/jobs")
executor.update_parameters(timeout_min=5)
job = executor.submit(launcher.SlurmJob("train", whole.config))
job.result()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run" / "model_final_checkpoint_phase0.torch").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_of_submitit_that_is_preempted_writes_a_checkpoint_and_goes_on_from_it(tmp_path, photo_folder, processes):
    code = f"""
import os, pathlib, signal, submitit, time
from pirl_plugin.launch import composition
from pirl_plugin.launch import launcher
whole = composition.compose({[*TINY, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"]!r} + [
    "config.CHECKPOINT.DIR={tmp_path}/run", "config.DISTRIBUTED.NUM_PROC_PER_NODE={processes}",
    "config.OPTIMIZER.num_epochs=20", "config.LOG_FREQUENCY=1", "config.CHECKPOINT.KEEP_LAST=null",
    "config.DATA.NUM_DATALOADER_WORKERS=1",
    "config.SLURM.PORT_ID={free_port()}"])
executor = submitit.LocalExecutor(folder="{tmp_path}/jobs")
executor.update_parameters(timeout_min=5)
job = executor.submit(launcher.SlurmJob("train", whole.config))
progress = pathlib.Path("{tmp_path}/run/progress.csv")
while not progress.is_file() or progress.read_text().count(chr(10)) < 4:
    assert not job.done(), job.stderr()
    time.sleep(0.01)
def children(pid):
    return [int(one) for one in pathlib.Path(f"/proc/{{pid}}/task/{{pid}}/children").read_text().split()]
task = children(job.job_id)[0]
everyone = [task]
for pid in everyone:  # grows
    everyone += children(pid)
assert len(everyone) >= 3
for pid in everyone:  # as SLURM does, where it signals all processes of a job: ranks, servers and workers, too
    os.kill(pid, signal.SIGUSR2)
job.result()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=500, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (written,) = (tmp_path / "run").glob("model_iteration*.torch")
    jobs = "".join(path.read_text() for path in (tmp_path / "jobs").glob("*_log.*"))
    printed = (tmp_path / "run" / "log.txt").read_text() + jobs
    assert "Stopped after iteration" in printed and f"Resume from file: {written}" in printed and "Requeued job" in jobs
    assert (tmp_path / "run" / "model_final_checkpoint_phase19.torch").is_file()


def run_tool(folder: Path, function: str, run: Path, data: dict[str, str], *overrides: str) -> str:
    """Run an entry point of pirl_plugin.launch.tools on the checkpoint of `run`; returns what it printed."""
    script = f"import sys\nfrom pirl_plugin.launch.tools import {function}\n"
    (folder / "tool.py").write_text(script + f"if __name__ == '__main__':\n    {function}(sys.argv[1:])\n")
    result = subprocess.run(
        [
            sys.executable,
            str(folder / "tool.py"),
            "config=benchmark/nearest_neighbor/small_images_cpu",
            *(f"config.DATA.{split}.{key}=[{value}]" for split in ("TRAIN", "TEST") for key, value in data.items()),
            "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
            f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={run}/model_final_checkpoint_phase1.torch",
            f"config.CHECKPOINT.DIR={folder}/features",
            *overrides,
        ],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_extraction_and_nearest_neighbours_run_on_a_cpu_and_leave_out_what_is_broken(two_ranks, tmp_path, photo_folder):
    _, run = two_ranks
    shutil.copytree(photo_folder, tmp_path / "photos")
    broken = list_images(tmp_path / "photos")[::9]  # of several classes: as grey images, nearest to each other
    for file in broken:
        Path(file).write_bytes(b"no image")
    data = {"DATA_PATHS": f"{tmp_path}/photos"}
    printed = run_tool(tmp_path, "nearest_neighbors", run, data, "config.NEAREST_NEIGHBOR.TOPK=1")
    found = re.search(r"weighted kNN top-1 ([\d.]+)%", printed)
    assert float(found.group(1)) == 100  # the nearest neighbour of an image is itself
    for split in ("train", "test"):
        assert f"{len(broken)} images of {split} could not be read and were left out" in printed
        assert list_images(tmp_path / "features" / f"unreadable_{split}_rank0.txt") == broken
        (indices,) = (tmp_path / "features").glob(f"rank0_chunk0_{split}_res5avg_inds.npy")
        assert len(np.load(indices)) == 48 - len(broken)


@pytest.mark.slow
def test_svms_are_trained_on_a_cpu_and_their_mean_ap_is_printed(two_ranks, tmp_path, photo_folder):
    _, run = two_ranks
    files = list_images(photo_folder)
    np.save(tmp_path / "files.npy", np.array(files))
    np.save(tmp_path / "labels.npy", np.array([[int(f"class{c}" in file) for c in range(4)] for file in files]))
    data = {
        "DATA_SOURCES": "disk_filelist",
        "LABEL_SOURCES": "disk_filelist",
        "DATA_PATHS": f"{tmp_path}/files.npy",
        "LABEL_PATHS": f"{tmp_path}/labels.npy",
    }
    printed = run_tool(tmp_path, "train_svm", run, data, "config.SVM.costs.costs_list=[0.1,1.0]")
    found = re.search(r"res5avg: mean AP ([\d.]+)%", printed)
    assert float(found.group(1)) > 30  # four classes of twelve images each, tested on what they were trained on


def test_the_log_is_short_what_is_long_is_in_a_file_and_the_end_says_how_to_go_on(two_ranks):
    result, run = two_ranks
    lines = result.stdout.splitlines()
    assert len(lines) < 150
    details = (run / "details.txt").read_text()
    assert "'KEEP_LAST': 3" in details and "_feature_blocks" in details and "PyTorch built with" in details
    assert sum("lines in" in line and "details.txt" in line for line in lines) == 3
    closing = {line.split("  ")[0].strip(): line for line in lines[-10:]}
    final = str(run / "model_final_checkpoint_phase1.torch")
    assert closing["checkpoint"].endswith(final) and "2 epochs, 6 iterations, loss " in closing["trained"]
    assert f"pirl embed {final} PHOTOS --output features.npy" in closing["features"]
    assert "effective rank" in closing["memory bank"]
    assert re.search(r"[\d.]+%, untrained [\d.]+% \(8 images of the training", closing["kNN beside untrained"])


def test_a_finished_run_with_other_settings_and_an_evaluation_of_other_weights_are_refused(
    two_ranks, tmp_path, photo_folder
):
    _, run = two_ranks
    shutil.copytree(photo_folder, tmp_path / "other")
    before = (run / "train_config.yaml").read_text()
    for asked, told in (
        (["config.LOSS.pirl_loss.lambda_=0.25"], "LOSS.pirl_loss.lambda_ is 0.25; the run had 0.5"),
        (["config.SEED_VALUE=3", "config.OPTIMIZER.num_epochs=5"], "OPTIMIZER.num_epochs is 5; the run had 2, SEED"),
        ([f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path / 'other'}]"], "DATA.TRAIN.DATA_PATHS is "),
    ):
        again = launch(
            tmp_path, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", f"config.CHECKPOINT.DIR={run}", *asked
        )
        assert again.returncode == 1 and "Finished before" not in again.stdout
        assert "where a run is finished that had other settings: " in again.stderr and told in again.stderr
        assert again.stderr.strip().endswith("; give it another folder.") and "Traceback" not in again.stderr
    assert (run / "train_config.yaml").read_text() == before
    evaluation = tmp_path / "evaluation"
    key, given = "MODEL.WEIGHTS_INIT.PARAMS_FILE", f"config.CHECKPOINT.DIR={evaluation}"
    other, own = (
        compose(["config=benchmark/linear/small_images_cpu", given, f"config.{key}={weights}"], check=False)
        for weights in ("/other.torch", run / "model_final_checkpoint_phase1.torch")
    )
    write(other)
    (evaluation / "model_phase0.torch").touch()
    with pytest.raises(ConfigError, match=rf"{key} is .*phase1.torch; the run had /other.torch"):
        check_same_files(own)
