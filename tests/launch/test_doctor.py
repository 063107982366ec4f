"""What the doctor says of this machine, and what a run says of itself before it begins."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pirl_plugin.commands.__main__ import main
from pirl_plugin.experiments.recipe import pretrain
from pirl_plugin.launch import doctor
from pirl_plugin.launch.composition import config_names
from pirl_plugin.launch.launcher import compose
from pirl_plugin.launch.run_summary import summarise
from pirl_plugin.network import devices

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def report() -> list[str]:
    done = subprocess.run(
        [sys.executable, ROOT / "extra_scripts" / "doctor.py"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=500,
    )  # fmt: skip
    faults = [line for line in done.stdout.splitlines() if line.strip().startswith("!") and "/dev/shm" not in line]
    assert not faults and done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_doctor_names_versions_and_which_classy_vision_is_used(report):
    import classy_vision

    assert f"  torch {torch.__version__.partition('+')[0]}" in [line.partition("+")[0] for line in report]
    assert f"  classy_vision in use: {classy_vision.__version__}, in {Path(classy_vision.__file__).parent}" in report
    assert any(line.strip().startswith("VISSL's wheel lists the same files") for line in report)


def test_the_doctor_says_what_each_optional_part_lacks(report, monkeypatch):
    listed = report[report.index("Optional packages") :]
    assert sum(any(part.module in line for line in listed) for part in doctor.OPTIONAL) == len(doctor.OPTIONAL)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else find(name))
    (line,) = [line for line in doctor.optional_parts() if "cv2" in line]
    assert line == "no cv2, so no quick augmentation in the loader's workers: pip install opencv-python-headless"


@pytest.mark.parametrize("missing", ["fvcore", "sklearn", "vissl", "yaml"])
def test_the_doctor_says_what_is_missing_where_the_plugin_cannot_even_be_imported(missing):
    code = f"""
import sys, importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] == "{missing}" else find(name, *rest)
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "{missing}":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
sys.argv = ["doctor.py"]
import runpy
runpy.run_path({str(ROOT / "extra_scripts" / "doctor.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert "! the plugin cannot be imported: " in done.stdout
    assert f"! {missing} is not installed" in done.stdout or missing == "yaml"


def test_the_doctor_says_what_gpus_pytorch_can_use_and_why_not(monkeypatch):
    assert list(doctor.gpus())[-1].startswith("no GPU that PyTorch can use (it is built for ")
    cards = [SimpleNamespace(name="A", total_memory=16 * 2**30, major=7),
             SimpleNamespace(name="B", total_memory=80 * 2**30, major=8)]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: cards[number])
    monkeypatch.setattr(devices, "unusable_gpus", lambda: ["GPU 0 is too old"])
    assert list(doctor.gpus()) == [
        "! GPU 0 is too old", "GPU 0: A, 16 GiB, without bfloat16", "GPU 1: B, 80 GiB, with bfloat16",
    ]  # fmt: skip


@pytest.mark.parametrize(("gib", "warned"), [(1.4, True), (2.1, False)])
def test_the_doctor_warns_of_little_shared_memory(monkeypatch, gib, warned):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=int(gib * 2**30)))
    faults = [line for line in doctor.environment() if line.startswith("! /dev/shm")]
    assert faults == ["! /dev/shm, which loader workers use for batches, has 1.4 GiB: enlarge it, or use 0 workers"] * (
        warned and Path("/dev/shm").is_dir()
    )


def test_the_doctor_says_how_much_there_is_to_compute_with():
    first, second = list(doctor.environment())[:2]
    assert first.startswith(f"Python {sys.version_info.major}.{sys.version_info.minor}.")
    cores, memory = re.fullmatch(r"(\d+) CPU cores, (\d+) GiB of memory", second).groups()
    kilobytes = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]
    assert int(cores) == os.cpu_count() and abs(int(memory) - int(kilobytes) / 2**20) <= 0.6
    named = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    assert not named or doctor.processor() == named[0].split(": ", 1)[1]


def test_a_broken_package_is_said_to_be_broken(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("raise OSError('no libcudart.so')")
    (tmp_path / "plain_package.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._version("broken_package") == "that cannot be imported (OSError: no libcudart.so)"
    assert doctor._version("plain_package") == "of unknown version" and doctor._version("no_package") is None
    assert doctor._version("PIL").count(".") >= 1


def test_vissls_own_copy_of_classy_vision_is_named_with_what_is_tested(monkeypatch):
    import classy_vision

    monkeypatch.setattr(classy_vision, "__version__", "0.7.0.dev")
    monkeypatch.setattr(doctor, "_distribution", lambda name: name == "vissl")
    used, copy = doctor.classy_vision()
    assert "classy_vision in use: 0.7.0.dev" in used and "the copy in VISSL's wheel, which works; tested is" in copy
    monkeypatch.setattr(doctor, "_distribution", lambda name: name == "classy-vision")
    assert len(list(doctor.classy_vision())) == 2
    monkeypatch.setattr(classy_vision, "__version__", "0.7.0")
    assert len(list(doctor.classy_vision())) == 1


def test_without_configs_the_doctor_stops_after_the_packages_and_ends_with_1_where_something_is_wrong(
    monkeypatch, capsys
):
    lines = list(doctor.examine(configs=False))
    assert lines[0] == "Environment" and "Optional packages" in lines
    assert not any("pretrain/" in line for line in lines) and len(lines) > len(doctor.REQUIRED) + len(doctor.OPTIONAL)
    for found, code in (([" ! a fault"], 1), (["all is well!"], 0)):
        monkeypatch.setattr(doctor, "examine", lambda configs, found=found: iter([*found, str(configs)]))
        with pytest.raises(SystemExit) as end:
            main(["doctor", "--no-configs"])
        assert (end.value.code or 0) == code and capsys.readouterr().out.splitlines() == [*found, "False"]


def test_the_doctor_judges_every_config_that_can_be_run(report):
    judged = {line.split(":")[0].strip() for line in report if line.strip().startswith(("pretrain/", "benchmark/"))}
    parts = {name for name in config_names() if doctor.is_part(name)}
    assert parts == {"pretrain/pirl/analysis", *(f"pretrain/pirl/nodes/{n}node" for n in (1, 4, 8))}
    assert judged == set(config_names()) - parts


def test_a_verdict_is_that_of_the_launcher(monkeypatch):
    assert str(doctor.verdict("pretrain/pirl/jigsaw_small_images_cpu")) == "can run (give DATA.TRAIN.DATA_PATHS)"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    eight = doctor.verdict("pretrain/pirl/jigsaw_8node")
    assert eight.lacks[:2] == ("8 nodes", "8 GPUs per node, found 2")
    assert "NCCL" in eight.lacks or torch.distributed.is_nccl_available()
    assert not doctor.verdict("pretrain/pirl/jigsaw_1gpu").lacks
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert doctor.verdict("pretrain/pirl/jigsaw_8node").lacks == ("8 nodes", "8 GPUs per node, found 2", "NCCL")
    linear = doctor.verdict("benchmark/linear/small_images_cpu")
    assert linear.give == ("DATA.TRAIN.DATA_PATHS", "DATA.TEST.DATA_PATHS", "MODEL.WEIGHTS_INIT.PARAMS_FILE")


def test_a_run_says_what_it_is_going_to_do(photo_folder):
    config = compose(["config=pretrain/pirl/jigsaw_8node", "config.LOSS.pirl_loss.temperature=0.1"], check=False)
    said = dict(line.split("  ", 1) for line in summarise(config, "model_phase3.torch"))
    said = {key: value.strip() for key, value in said.items()}
    assert said["batch"] == "1024 = 64 ranks (8 nodes) x 16, on gpu with nccl, seed 0"
    assert said["loss"].startswith("pirl_loss, nce, negatives per_image N = 32000, tau 0.1, lambda 0.5, memory_bank")
    assert said["schedule"] == (
        "sgd for 800 epochs, learning rate 0.12 to 0.00012 (cosine, by epoch), weight decay 0.0001"
    )  # what VISSL's scaling makes of it
    assert said["network"] == "resnet of depth 50, heads image, jigsaw"
    assert said["checkpoints"].endswith("resumes from model_phase3.torch")


def test_a_schedule_of_parts_is_summed_up_with_its_parts(photo_folder, capsys):
    pretrain(photo_folder, photo_folder.parent / "run", dry_run=True)
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])[2:]
    (schedule,) = [line for line in summarise(compose(command, check=False)) if line.startswith("schedule")]
    parts = (
        "5.625e-05 to 0.005625 in 10% of the steps (linear), then 0.005625 to 5.625e-05 in 90% of the steps (cosine)"
    )
    assert f"learning rate {parts} (composite, by step)" in schedule


@pytest.mark.parametrize(
    ("epochs", "told"), [(12, "alone"), (1, "alone, so nothing is trained: give config.OPTIMIZER.num_epochs=2 or more")]
)
def test_what_an_epoch_that_fills_the_bank_leaves_to_train_is_said(epochs, told):
    config = compose(["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.OPTIMIZER.num_epochs={epochs}"], False)
    (schedule,) = [line for line in summarise(config) if line.startswith("schedule")]
    assert schedule.endswith(f"; the first epoch fills the memory bank {told}")


@pytest.mark.parametrize(
    "left_out",
    [
        "~config.LOSS.pirl_loss.temperature", "~config.LOSS.pirl_loss.lambda_", "~config.LOSS.pirl_loss.memory_bank",
        "~config.TRAINER.PIRL_TRAIN_STEP", "~config.TRAINER.PIRL_TRAIN_STEP.compile",
    ],
)  # fmt: skip
def test_what_is_left_out_of_a_config_is_summed_up_at_its_default(left_out):
    name = "config=pretrain/pirl/jigsaw_8node"
    assert summarise(compose([name, left_out], check=False)) == summarise(compose([name], check=False))


TRAIN_NOTHING = ("benchmark/svm", "benchmark/nearest")


@pytest.mark.parametrize(
    "name", [name for name in config_names() if not doctor.is_part(name) and not name.startswith(TRAIN_NOTHING)]
)
def test_every_config_that_trains_can_be_summed_up(name):
    lines = summarise(compose([f"config={name}"], check=False))
    assert len(lines) >= 8 and all("{" not in line and "AttrDict" not in line for line in lines)
