"""`pirl finetune`: network and images are those of the checkpoint; it learns from --train, is measured on --test."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.experiments.finetune import finetune
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.export import export
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
COLORS = {"blue": (40, 60, 200), "green": (40, 190, 70), "red": (200, 50, 40)}


def make_images(folder: Path, count: int, seed: int, wrong: bool = False) -> Path:
    """Noisy images of three colours, a folder each; `wrong`: every image lies in the folder of another colour."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(COLORS):
        (folder / name).mkdir(parents=True)
        shown = list(COLORS.values())[(number + wrong) % 3]
        for place in range(count):
            pixels = np.clip(np.array(shown) + random.normal(0, 40, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    trunk = ResNetTrunk(18, width_multiplier=0.125, stem="small")
    torch.save(trunk.state_dict(), folder / "trunk.pth")
    export(folder / "trunk.pth", "vissl", folder / "checkpoint.torch")
    return folder / "checkpoint.torch"


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("photos")
    return make_images(folder / "train", 12, 0), make_images(folder / "test", 8, 1)


def test_network_sizes_and_classes_are_those_of_checkpoint_and_folders(checkpoint, photos, tmp_path, capsys):
    train, test = photos
    finetune(checkpoint, train, test, tmp_path / "run", epochs=3, seed=4, dry_run=True)
    command = shlex.split(capsys.readouterr().out)
    assert command[:2] == ["pirl", "train"]
    config = compose(command[2:])
    resnet = config.MODEL.TRUNK.RESNETS
    assert (resnet.DEPTH, resnet.WIDTH_MULTIPLIER, resnet.STEM) == (18, 0.125, "small")
    assert list(config.MODEL.HEAD.PARAMS[0][1]["dims"]) == [64, 3]
    assert [config.DATA.TRAIN.TRANSFORMS[0]["size"], config.DATA.TEST.TRANSFORMS[1]["size"]] == [32, 32]
    assert (config.OPTIMIZER.num_epochs, config.SEED_VALUE) == (3, 4)
    assert str(checkpoint) == config.MODEL.WEIGHTS_INIT.PARAMS_FILE


def test_from_scratch_starts_without_weights_and_what_is_asked_for_wins(checkpoint, photos, tmp_path, capsys):
    others = ["config.OPTIMIZER.weight_decay=0.1"]
    finetune(checkpoint, *photos, tmp_path / "run", from_scratch=True, others=others, dry_run=True)
    config = compose(shlex.split(capsys.readouterr().out)[2:])
    assert not config.MODEL.WEIGHTS_INIT.PARAMS_FILE and config.OPTIMIZER.weight_decay == 0.1


def test_folders_of_different_classes_are_refused(checkpoint, photos, tmp_path):
    make_images(tmp_path / "other", 1, 2)
    (tmp_path / "other" / "red").rename(tmp_path / "other" / "yellow")
    with pytest.raises(ConfigError, match="must have the same class folders; only one has red, yellow"):
        finetune(checkpoint, photos[0], tmp_path / "other", dry_run=True)


@pytest.mark.slow
def test_it_learns_from_the_training_images_and_is_measured_on_the_test_images(checkpoint, photos, tmp_path):
    train, test = photos
    accuracies = []
    for name, measured in (("right", test), ("wrong", make_images(tmp_path / "wrong_test", 8, 3, wrong=True))):
        done = subprocess.run(
            [sys.executable, "-m", "pirl_plugin.commands", "finetune", checkpoint, "--train", train, "--test", measured,
             "--output", tmp_path / name, "--epochs", "6", "--set", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=6"],
            capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        accuracies.append(float(re.findall(r"^top_1 +([\d.]+) at the end", done.stdout, re.MULTILINE)[-1]))
    assert accuracies[0] > 90 and accuracies[1] < 10
