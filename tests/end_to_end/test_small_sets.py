"""benchmarks/small_sets.py: sets whose halves share no image, and recipes that the launcher takes."""

import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

from pirl_plugin.experiments.recipe import pretrain
from pirl_plugin.launch.launcher import compose

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from small_sets import RECIPES, SETS, digits


def test_digits_to_train_on_and_to_measure_on_are_others(tmp_path):
    pytest.importorskip("sklearn", reason="its digits")
    digits(tmp_path, None, 300)
    train, test = ({path.name for path in (tmp_path / split).rglob("*.png")} for split in ("train", "test"))
    assert (len(train), len(test), train & test) == (300, 597, set())
    assert {path.name for path in (tmp_path / "test").iterdir()} == set("0123456789")
    assert Image.open(next((tmp_path / "train").rglob("*.png"))).size == (32, 32)


def test_photos_are_of_the_classes_asked_for_and_grey_where_they_shall_be(tmp_path, make_photo):
    for split in ("train", "test"):
        for name in ("airplane", "automobile", "cat", "ship", "truck"):
            for number in range(200 if split == "train" else 3):
                (tmp_path / "cifar" / split / name).mkdir(parents=True, exist_ok=True)
                make_photo(number, 32, 32).save(tmp_path / "cifar" / split / name / f"{number}.jpg")
    SETS["grey vehicles"][1](tmp_path / "set", tmp_path / "cifar")
    counts = {path.name: len(list(path.iterdir())) for path in (tmp_path / "set" / "train").iterdir()}
    assert counts == dict.fromkeys(("airplane", "automobile", "ship", "truck"), 150)
    assert Image.open(next((tmp_path / "set").rglob("*.png"))).mode == "L"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_launcher_takes_every_recipe(recipe, photo_folder, tmp_path, capsys):
    pretrain(photo_folder, tmp_path / "run", others=tuple(RECIPES[recipe]), dry_run=True)
    config = compose(shlex.split(capsys.readouterr().out.strip().splitlines()[-1])[2:])
    normalised = ("recipe", "recipe, no warm-up", "recipe's heads at 0.06, 12 epochs", "small_images config")
    papers = recipe not in normalised
    assert all(head.get("batch_norm", False) != papers for _, head in config.MODEL.HEAD.PARAMS)
    own = dict.fromkeys(("recipe", "recipe, no warm-up"), config.OPTIMIZER.num_epochs)
    assert config.OPTIMIZER.num_epochs == {"48 epochs": 48, "batch 128": 48, **own}.get(recipe, 12)
    schedule = config.OPTIMIZER.param_schedulers.lr
    if recipe == "recipe":
        assert schedule.name == "composite" and schedule.schedulers[1]["start_value"] == 0.005625  # of a batch of 12
        return
    at_the_recipes_rate = ("paper's heads at the recipe's rate", "recipe, no warm-up", "small_images config")
    rates = {"rate 0.004": 0.004, **dict.fromkeys(at_the_recipes_rate, 0.015)}
    assert (schedule.name, schedule.start_value) == ("cosine", rates.get(recipe, 0.06))
