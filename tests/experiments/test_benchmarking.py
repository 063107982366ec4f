"""`pirl benchmark`: what is run, what is not run again, what is refused, and the table."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pirl_plugin.detection.training import config_files
from pirl_plugin.experiments.benchmarking import Run, freeze_weights, gather, plan, read_settings, submit
from pirl_plugin.experiments.benchmarks import BENCHMARKS
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.network.weights import read_trunk_weights
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def save_trunk(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    trunk = ResNetTrunk(18, 0.25, "small")
    model = {"trunk": trunk.state_dict(), "heads": {}}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}, "loss": {"bank": torch.zeros(10**6)}}, path)
    return path


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_config(name):
    benchmark = BENCHMARKS[name]
    if benchmark.tool == "train-detector":
        assert benchmark.config in config_files()
    else:
        assert compose([f"config={benchmark.config}"], check=False).MODEL.TRUNK.NAME in ("resnet", "pirl_resnet")


def test_all_runs_are_of_the_same_weights(tmp_path):
    checkpoint = save_trunk(tmp_path / "a.torch")
    frozen = freeze_weights(checkpoint, tmp_path / "out")
    assert frozen.stat().st_size < checkpoint.stat().st_size  # the trunk alone
    assert torch.equal(read_trunk_weights(frozen)["conv1.weight"], read_trunk_weights(checkpoint)["conv1.weight"])
    assert freeze_weights(checkpoint, tmp_path / "out") == frozen
    with pytest.raises(ConfigError, match=r"has results of other weights than .*b\.torch; give another --output"):
        freeze_weights(save_trunk(tmp_path / "b.torch", seed=1), tmp_path / "out")


def test_settings_are_overrides_by_benchmark(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("vissl: [config.A=1]\nsvm_voc07: [config.B=2]\ndetection: [SOLVER.IMS_PER_BATCH, 4]\n")
    runs = plan(["svm_voc07", "detection_voc07", "knn_imagenet"], tmp_path / "out", read_settings(path))
    assert [run.overrides for run in runs] == [
        ("config.A=1", "config.B=2"),
        ("SOLVER.IMS_PER_BATCH", "4"),
        ("config.A=1",),
    ]
    assert runs[0].command()[2:4] == ["pirl_plugin.commands", "train-svm"] and runs[0].command()[-1] == "config.B=2"
    for text, match in (
        ("svm_voc7: [a]", r"no key 'svm_voc7' \(did you mean svm_voc07\?\)"),
        ("svm_voc07: config.A=1", "svm_voc07 in .* is 'config.A=1'; it must be a list"),
        ("- a", "must map benchmarks to lists"),
        ("a: [", "is not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            read_settings(path)
    with pytest.raises(ConfigError, match=r"--run is 'svm'.*it must be one of"):
        plan(["svm"], tmp_path / "out", {})


def test_a_failure_is_told_and_tried_again_and_other_overrides_are_refused(tmp_path):
    freeze_weights(save_trunk(tmp_path / "a.torch"), tmp_path / "out")
    wrong = Run("knn_small_images", tmp_path / "out", ("config.DATA.TRAIN.DATA_PATHS=[/no/such/folder]",))
    result = wrong.run()
    assert "there is no such folder" in result["failed"]
    table, rows = gather(tmp_path / "out")
    assert "| small images, weighted kNN, top-1 | | failed | |" in table and rows[0]["failed"] == result["failed"]
    again = Run("knn_small_images", tmp_path / "out", ("config.DATA.TRAIN.DATA_PATHS=[/nor/this]",)).run()
    assert "/nor/this" in again["failed"]
    done = {**result, "figures": {"res5avg": 50.0}}
    del done["failed"]
    (wrong.folder / "result.json").write_text(json.dumps(done))
    assert wrong.run() == done  # not run again
    with pytest.raises(ConfigError, match=r"was made with other overrides \(config\.DATA.*; delete it"):
        plan(["knn_small_images"], tmp_path / "out", {})


def test_the_table_has_the_papers_figures_beside_ours(tmp_path):
    folder = tmp_path / "detection_voc07"
    folder.mkdir()
    figures = {"AP": 1.25, "AP50": 2.5, "AP75": 3.0}
    result = {"name": "detection_voc07", "overrides": ["SOLVER.MAX_ITER", "2"], "minutes": 1, "figures": figures}
    (folder / "result.json").write_text(json.dumps(result))
    table, _ = gather(tmp_path)
    assert "| detection, VOC07 | AP | 1.2 | 44.7 |\n|  | AP50 | 2.5 | 73.4 |" in table
    assert "detection_voc07 was run with SOLVER.MAX_ITER 2" in table
    assert (tmp_path / "results.md").read_text() == table
    assert json.loads((tmp_path / "results.json").read_text())[0]["paper"]["AP75"] == 47.0


@pytest.mark.slow
def test_an_interrupted_benchmark_goes_on_and_a_job_of_submitit_runs_one(photo_folder, tmp_path, monkeypatch):
    checkpoint = save_trunk(tmp_path / "a.torch")
    data = [f"config.DATA.{split}.DATA_PATHS=[{photo_folder}]" for split in ("TRAIN", "TEST")]
    four_classes = ["config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16", "config.METERS.accuracy_list_meter.topk_values=[1]"]
    own = {"vissl": data, "linear_small_images": [*four_classes, "config.CHECKPOINT.CHECKPOINT_FREQUENCY=1"]}
    (tmp_path / "settings.yaml").write_text(json.dumps(own))
    command = [sys.executable, ROOT / "extra_scripts" / "benchmark.py", checkpoint, "--output", tmp_path / "out"]
    command += ["--settings", tmp_path / "settings.yaml", "--run", "linear_small_images", "knn_small_images"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, cwd=tmp_path)
    run, deadline = tmp_path / "out" / "linear_small_images" / "run", time.monotonic() + 120
    while not (run / "model_phase1.torch").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) != 0
    epochs_before = len(list(run.glob("model_phase*.torch")))
    assert epochs_before < 28 and "not finished" in gather(tmp_path / "out")[0]

    second = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-2000:]
    assert "[1/2] linear_small_images: resumed" in second.stdout
    log = (tmp_path / "out" / "linear_small_images" / "log.txt").read_text()
    assert "Resuming from checkpoint" in log or "Loaded checkpoint" in log, log[-2000:]
    assert "| small images, linear, top-1 | conv1 |" in second.stdout
    third = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert third.stdout.count("done before") == 2

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs = plan(["knn_small_images"], tmp_path / "other", read_settings(tmp_path / "settings.yaml"))
    freeze_weights(checkpoint, tmp_path / "other")
    (job,) = submit(runs, "local", timeout_min=5)
    assert set(job.result()["figures"]) == {"res5avg"}
    assert "weighted kNN" in gather(tmp_path / "other")[0]
