"""`pirl benchmark`: what is run, what is not run again, what is refused, and the table."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pirl_plugin.commands.__main__ import main
from pirl_plugin.detection.training import config_files
from pirl_plugin.experiments import benchmarking
from pirl_plugin.experiments.benchmarking import Run, freeze_weights, gather, last_line, plan, read_settings, submit
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


def test_the_papers_figures_are_those_of_its_tables():
    best = {name: benchmark.paper.get("best layer") for name, benchmark in BENCHMARKS.items()}
    assert (best["linear_imagenet"], best["linear_places205"]) == (63.6, 49.8)  # Table 2, ResNet-50
    assert (best["linear_inaturalist18"], best["svm_voc07"], best["linear_imagenet_wide"]) == (34.1, 81.1, 67.4)
    assert [BENCHMARKS[f"semi_supervised_{share}percent"].paper["top-5"] for share in (1, 10)] == [
        57.2,
        83.8,
    ]  # Table 3
    assert BENCHMARKS["detection_voc0712"].paper == {"AP": 54.0, "AP50": 80.7, "AP75": 59.7}  # Table 1
    layers = {
        "conv1": (6.2, 8.9),
        "res2": (30.0, 29.0),
        "res3": (40.1, 35.8),
        "res4": (56.6, 45.3),
        "res5": (63.6, 49.8),
    }
    for layer, figures in layers.items():  # Table 6
        assert tuple(BENCHMARKS[f"linear_{name}"].paper[layer] for name in ("imagenet", "places205")) == figures


def test_figures_are_read_from_what_the_tools_write(tmp_path):
    lines = [{"iteration": 1, "train_accuracy_list_meter": {}}]
    lines += [{"test_accuracy_list_meter": {f"top_{k}": {"res4": k + add, "res5": k + 2 * add} for k in (1, 5)}}
              for add in (10, 20)]  # fmt: skip
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert BENCHMARKS["linear_imagenet"].read(tmp_path) == {"res4": 21, "res5": 41, "best layer": 41}
    assert BENCHMARKS["semi_supervised_1percent"].read(tmp_path) == {"top-1": 21, "top-5": 25}
    for layer, precision in (("res4", [0.25, 0.5]), ("res5", [0.5, 1.0])):
        (tmp_path / layer).mkdir()
        np.save(tmp_path / layer / "test_ap.npy", precision)
    assert BENCHMARKS["svm_voc07"].read(tmp_path) == {"res4": 37.5, "res5": 75, "best layer": 75}
    low_shot = {layer: {"k=1": {"mean": mean}, "k=4": {"mean": 2 * mean}} for layer, mean in (("res4", 9), ("res5", 7))}
    (tmp_path / "low_shot.json").write_text(json.dumps(low_shot))
    assert BENCHMARKS["low_shot_voc07"].read(tmp_path) == {"k=1, best layer": 9, "k=4, best layer": 18}
    (tmp_path / "nearest_neighbors.json").write_text('{"res5": 0.5}')
    assert BENCHMARKS["knn_imagenet"].read(tmp_path) == {"res5": 50}
    found = [{f"bbox/{metric}": value for metric in ("AP", "AP50", "AP75")} for value in (1.0, 2.0)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, [*found, {"total_loss": 1.0}])) + "\n")
    assert BENCHMARKS["detection_voc07"].read(tmp_path) == {"AP": 2, "AP50": 2, "AP75": 2}


def in_place_of_the_tool(monkeypatch, code: str) -> None:
    """Code that runs in place of a benchmark's tool, with the folder of its results as RUN."""
    begin = "import os, pathlib, sys, time\nRUN = pathlib.Path(sys.argv[1])\nRUN.mkdir(exist_ok=True)\n"
    command = lambda run: [sys.executable, "-u", "-c", begin + code, str(run.folder / "run")]  # noqa: E731
    monkeypatch.setattr(Run, "command", command)


SUCCEEDS = """
print("half", flush=True)
time.sleep(1.2)
(RUN / "nearest_neighbors.json").write_text('{"res5avg": 0.4321}')
print("all of it\\n\\n")
"""


def test_a_benchmark_says_how_far_it_is_and_ends_with_its_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmarking, "SAY_EVERY", 0.5)
    in_place_of_the_tool(monkeypatch, SUCCEEDS)
    run = Run("knn_small_images", tmp_path, ("config.A=1",))
    result = run.run("[1/2] ")
    assert result["figures"] == {"res5avg": pytest.approx(43.21)} and result["overrides"] == ["config.A=1"]
    assert run.result() == result and 0.01 < result["minutes"] < 1
    said = capsys.readouterr().out.splitlines()
    log = tmp_path / "knn_small_images" / "log.txt"
    assert said[0] == f"[1/2] knn_small_images: started, log in {log}"
    assert any(re.fullmatch(r"\[1/2\] knn_small_images: 0\.\d min; half", line) for line in said)
    assert re.fullmatch(r"\[1/2\] knn_small_images: done in 0\.\d min", said[-1]) and last_line(log) == "all of it"
    assert run.run() == result and capsys.readouterr().out == "knn_small_images: done before\n"


def test_a_benchmark_that_did_not_end_is_resumed_and_one_that_failed_with_other_overrides_begins_anew(
    monkeypatch, tmp_path, capsys
):
    in_place_of_the_tool(monkeypatch, "print('no such layer')\n(RUN / 'half').touch()\nsys.exit(1)\n")
    run = Run("knn_small_images", tmp_path, ())
    result = run.run()
    assert result["failed"] == "no such layer" and "figures" not in result
    log = tmp_path / "knn_small_images" / "log.txt"
    assert f"knn_small_images: failed: no such layer (see {log})" in capsys.readouterr().out
    in_place_of_the_tool(monkeypatch, SUCCEEDS + "(RUN / 'was').touch() if (RUN / 'half').exists() else None\n")
    assert "figures" in run.run() and "knn_small_images: resumed" in capsys.readouterr().out
    assert (run.folder / "run" / "was").exists()
    (run.folder / "result.json").write_text(json.dumps({**result, "overrides": ["config.A=1"]}))
    (run.folder / "run" / "was").unlink()
    assert "figures" in run.run() and not (run.folder / "run" / "was").exists()
    assert len(list(run.folder.glob("failed_*/half"))) == 1


def test_a_benchmark_without_a_result_failed(monkeypatch, tmp_path):
    in_place_of_the_tool(monkeypatch, "print('done')\n")
    assert "nearest_neighbors.json" in Run("knn_small_images", tmp_path, ()).run()["failed"]


def test_an_interrupted_benchmark_takes_its_process_with_it(monkeypatch, tmp_path):
    in_place_of_the_tool(monkeypatch, "(RUN / str(os.getpid())).touch()\ntime.sleep(60)\n")

    def interrupt(process, seconds):
        while not list((tmp_path / "knn_small_images" / "run").glob("*")):
            time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmarking, "_exit_code", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Run("knn_small_images", tmp_path, ()).run()
    (file,) = (tmp_path / "knn_small_images" / "run").glob("*")
    deadline = time.monotonic() + 10
    while Path(f"/proc/{file.name}/stat").exists() and ") Z" not in Path(f"/proc/{file.name}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_detector_is_trained_on_the_gpus_there_are_and_tools_of_vissl_are_told_their_folder(monkeypatch, tmp_path):
    for gpus, given in ((0, "1"), (4, "4")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        command = Run("detection_voc07", tmp_path, ("SOLVER.MAX_ITER", "2")).command()
        assert command[3:] == ["train-detector", "--config-file", "voc07_pirl", "--weights",
                               str(tmp_path / "weights.torch"), "--resume", "--num-gpus", given, "OUTPUT_DIR",
                               str(tmp_path / "detection_voc07" / "run"), "SOLVER.MAX_ITER", "2"]  # fmt: skip
    config = compose(Run("linear_small_images", tmp_path, ("config.SEED_VALUE=7",)).command()[4:], check=False)
    given = [config.MODEL.WEIGHTS_INIT.PARAMS_FILE, config.CHECKPOINT.DIR, config.SEED_VALUE]
    assert given == [str(tmp_path / "weights.torch"), str(tmp_path / "linear_small_images" / "run"), 7]


def pirl(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert isinstance(end.value.code, int | None), end.value.code
    return end.value.code or 0


def test_the_command_runs_gathers_and_lists(monkeypatch, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    checkpoint, output = save_trunk(tmp_path / "a.torch"), tmp_path / "out"
    try:
        assert pirl("benchmark", "--list") == 0
        listed = capsys.readouterr().out.splitlines()
        assert len(listed) == len(BENCHMARKS) and listed[0].split(maxsplit=1)[0] == next(iter(BENCHMARKS))
        in_place_of_the_tool(monkeypatch, SUCCEEDS)
        assert pirl("benchmark", checkpoint, "--output", output, "--run", "knn_small_images") == 0
        assert "[1/1] knn_small_images: done in" in capsys.readouterr().out
        assert read_trunk_weights(output / "weights.torch").keys() == read_trunk_weights(checkpoint).keys()
        in_place_of_the_tool(monkeypatch, "sys.exit('broken')\n")
        assert pirl("benchmark", checkpoint, "--output", output, "--run", "knn_small_images", "knn_imagenet") == 1
        capsys.readouterr()
        assert pirl("benchmark", "--gather", "--output", output) == 0
        table = capsys.readouterr().out
        assert "| small images, weighted kNN, top-1 | res5avg | 43.2 | - |" in table
        assert "| ImageNet, weighted kNN, top-1 | | failed | |" in table
        for given, sentence in (
            ([checkpoint, "--run", "knn_imagenet"], "Give a checkpoint and --output"),
            (["--output", output, "--run", "knn_imagenet"], "Give a checkpoint and --output"),
            ([checkpoint, "--output", output], "Give --gather, or --run with one or more of linear_imagenet"),
        ):
            with pytest.raises(SystemExit, match=f"Error: {sentence}"):
                main(["benchmark", *map(str, given)])
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_on_slurm_each_benchmark_is_a_job_of_the_partition_time_and_gpus_asked_for(monkeypatch, tmp_path, capsys):
    handler, asked = signal.getsignal(signal.SIGTERM), {}

    def submit(runs, cluster, **parameters):  # SLURM's own: tests/end_to_end/cluster
        asked.update(parameters, cluster=cluster, names=[run.name for run in runs])
        return [SimpleNamespace(job_id=40 + number) for number in range(len(runs))]

    monkeypatch.setattr(benchmarking, "submit", submit)
    try:
        given = ["--run", "knn_imagenet", "linear_imagenet", "--slurm", "long", "--hours", 3, "--gpus", 2, "--cpus", 9]
        assert pirl("benchmark", save_trunk(tmp_path / "a.torch"), "--output", tmp_path / "out", *given) == 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert asked == {"cluster": "slurm", "names": ["knn_imagenet", "linear_imagenet"], "slurm_partition": "long",
                     "timeout_min": 180, "gpus_per_node": 2, "cpus_per_task": 9}  # fmt: skip
    assert f"linear_imagenet: job 41, log in {tmp_path}/out/linear_imagenet/log.txt" in capsys.readouterr().out


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
