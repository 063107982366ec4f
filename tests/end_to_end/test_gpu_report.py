"""The command for the day there is a GPU, tried on a CPU: on a bare machine, in pieces, cut and gone on with."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.launch.launcher import compose
from pirl_plugin.validation import ConfigError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

# A machine with torch, what torch needs, and what `--wheels` calls needed: nothing else can be imported.
BARE = """
import sys
from importlib.metadata import packages_distributions
sys.path.insert(0, {benchmarks!r})
import gpu_report
there = gpu_report.needed_by("torch", set()) | set(gpu_report.CORE)
others = {{
    module for module, names in packages_distributions().items()
    if not any(name.lower().replace("_", "-") in there for name in names)
}} - {{"pirl_plugin", "hydra_plugins", "_distutils_hack", "pkg_resources", "setuptools"}}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in others:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
find_spec = gpu_report.importlib.util.find_spec
gpu_report.importlib.util.find_spec = lambda name: None if name in others else find_spec(name)
sys.argv = ["gpu_report.py", *{arguments!r}]
sys.exit(gpu_report.main())
"""


def small_photos(folder: Path, seed: int, count: int = 12) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        bright = 60 + 120 * (number % 2)
        pixels = (rng.integers(0, 60, (32, 32, 3)) + bright).astype(np.uint8)
        path = folder / ("dark", "light")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("small")
    return small_photos(place / "train", 0, 24), small_photos(place / "test", 1)


def on_a_bare_machine(*arguments: object) -> subprocess.CompletedProcess:
    code = BARE.format(benchmarks=str(BENCHMARKS), arguments=[str(argument) for argument in arguments])
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def test_the_report_is_made_in_pieces_with_nothing_but_torch_and_the_wheels(folders, tmp_path):
    command = ("--tiny", "--output", tmp_path / "report", "--cifar10", *folders)
    none = on_a_bare_machine(*command, "--minutes", 0)
    assert none.returncode == 3 and "Not finished" in none.stdout, none.stdout + none.stderr
    assert "| kernels | still to be measured | |" in (tmp_path / "report" / "report.md").read_text()
    whole = on_a_bare_machine(*command)
    assert whole.returncode == 0, whole.stdout[-3000:] + whole.stderr[-3000:]
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert set(found) == {
        "machine", "kernels", "bandwidth", "steps", "memory", "files", "objective", "training_step", "cifar10",
    }  # fmt: skip
    assert len(found["kernels"]) == 12
    for errors in found["kernels"].values():
        assert 0 < errors["loss"] < 1e-5 and 0 < errors["gradient"] < 1e-3
    assert found["objective"] == found["training_step"] == "VISSL is not installed here"
    assert 0 < found["steps"]["float32"]["loss_share"] < 1 and found["cifar10"]["epochs_done"] == 2
    table = (tmp_path / "report" / "report.md").read_text()
    assert "| CIFAR-10: epochs done | 2 of 2 |" in table and "VISSL is not installed here" in table
    again = on_a_bare_machine(*command)
    assert again.returncode == 0 and again.stdout.count("==") == 2  # cifar10 alone is looked at
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == found


def load(name: str):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look there
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_recipe_cut_and_gone_on_with_is_the_recipe_left_alone(folders, tmp_path, monkeypatch):
    cifar10 = load("cifar10")
    train, test = (cifar10.read_labelled(folder, torch.device("cpu")) for folder in folders)
    assert train.images.shape == (24, 3, 32, 32) and sorted(set(train.labels)) == [0, 1]
    recipe = cifar10.Recipe(epochs=3, batch=8, width=0.125, bfloat16=False, knn_every=2)

    def run(name: str):
        return cifar10.Run(recipe, train, test, tmp_path / name, torch.device("cpu"))

    whole = run("whole")
    assert whole.go_on(10)
    first = run("cut")
    clock = itertools.count(0, 30)  # half a minute between two looks: a second epoch would not fit
    monkeypatch.setattr(cifar10.time, "time", lambda: float(next(clock)))
    assert not first.go_on(2.6) and first.epoch == 1
    monkeypatch.undo()
    second = run("cut")
    assert second.epoch == 1 and second.go_on(10)
    for (name, one), other in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, 0, 0, equal_nan=True) if isinstance(one, torch.Tensor) else one == other, name
    lines = [{key: value for key, value in line.items() if key != "seconds"} for line in whole.history]
    assert lines == second.history and [line["epoch"] for line in lines if "knn" in line] == [0, 2, 3]
    assert whole.model.optimizer.param_groups[0]["lr"] < 0.06 * 8 / 128
    with pytest.raises(SystemExit, match="has another recipe"):
        cifar10.Run(cifar10.Recipe(epochs=4), train, test, tmp_path / "cut", torch.device("cpu"))


def test_the_recipe_is_that_of_the_yaml_config():
    cifar10 = load("cifar10")
    config = compose(["config=pretrain/pirl/jigsaw_cifar10_1gpu"], check=False)
    wanted = dict(config.DATA.TRAIN.TRANSFORMS[0])
    task = cifar10.JigsawPatchTransform(**cifar10.TRANSFORM, normalize_on="device")
    for key in (
        "image_crop_size",
        "patch_crop_size",
        "grid_size",
        "patch_size",
        "num_permutations",
        "permutation_seed",
    ):
        assert getattr(task, key) == wanted[key]
    for key in ("image_crop_scale", "patch_crop_scale"):
        assert list(getattr(task, key)) == wanted[key]
    for key, value in wanted["photometric"].items():
        assert getattr(task.photometric, key) == value, key
    loss, recipe = config.LOSS.pirl_loss, cifar10.Recipe()
    assert (loss.temperature, loss.negatives) == (cifar10.TEMPERATURE, "all") and loss.memory_bank.fill_first
    assert config.OPTIMIZER.weight_decay == cifar10.WEIGHT_DECAY and config.OPTIMIZER.num_epochs == recipe.epochs
    rate = config.OPTIMIZER.param_schedulers.lr
    assert (rate.start_value, rate.end_value) == (cifar10.RATE_OF_128, cifar10.RATE_OF_128 * cifar10.LAST_RATE)
    assert recipe.depth == config.MODEL.TRUNK.RESNETS.DEPTH and recipe.batch == config.DATA.TRAIN.BATCHSIZE_PER_REPLICA


def test_arrays_serve_as_well_as_folders(folders, tmp_path):
    cifar10 = load("cifar10")
    train = cifar10.read_labelled(folders[0], torch.device("cpu"))
    np.savez(tmp_path / "train.npz", images=train.images.permute(0, 2, 3, 1).numpy(), labels=train.labels)
    again = cifar10.read_labelled(tmp_path / "train.npz", torch.device("cpu"))
    assert torch.equal(train.images, again.images) and (train.labels == again.labels).all()
    np.savez(tmp_path / "pickled.npz", images=np.array([{}], dtype=object), labels=train.labels)
    with pytest.raises((ValueError, ConfigError), match="allow_pickle"):
        cifar10.read_labelled(tmp_path / "pickled.npz", torch.device("cpu"))


def test_the_wheels_of_a_bare_machine_are_pinned_and_what_it_has_is_left_out():
    gpu_report = load("gpu_report")
    pins = gpu_report.pins()
    assert {*gpu_report.CORE, *gpu_report.FOR_SPEED, *gpu_report.FOR_VISSL} <= set(pins)
    with_torch = gpu_report.needed_by("torch", set())
    assert {"torch", "sympy", "mpmath", "typing-extensions"} <= with_torch
    assert not with_torch & {"simplejpeg", "vissl", "torchvision"}
