"""`pirl pretrain`: what is picked for photos and a machine; the launcher takes it, and it trains."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from classy_vision.optim.param_scheduler import build_param_scheduler

from pirl_plugin.experiments.recipe import Machine, Photos, epochs_for, geometry_for, pretrain, recipe_for
from pirl_plugin.experiments.schedules import SCHEDULE
from pirl_plugin.launch.launcher import compose
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CPU, GPUS = Machine("cpu", 2), Machine("gpu", 64, 4, True)


@pytest.mark.parametrize(
    ("side", "on_cpu", "on_gpu"),
    [
        (8, 32, 32),
        (32, 32, 32),
        (40, 32, 32),
        (64, 64, 64),
        (90, 96, 96),
        (178, 96, 96),
        (200, 96, 224),
        (2000, 96, 224),
    ],
)
def test_views_have_hardly_more_pixels_than_the_photos(side, on_cpu, on_gpu):
    assert (geometry_for(side, "cpu").view, geometry_for(side, "gpu").view) == (on_cpu, on_gpu)


@pytest.mark.parametrize(("count", "epochs"), [(32, 100), (292, 100), (1543, 21), (10_000, 12), (100_000, 12)])
def test_small_sets_get_more_epochs_so_that_there_are_about_as_many_steps(count, epochs):
    assert epochs_for(count, 32, "cpu") == epochs


def overrides(recipe):
    return dict(one.split("=", 1) for one in recipe.overrides)


@pytest.mark.parametrize("machine", [CPU, GPUS, Machine("gpu", 8, 1)])
@pytest.mark.parametrize(("count", "side"), [(32, 300), (292, 64), (1543, 32), (70_000, 500)])
def test_the_launcher_takes_every_recipe(count, side, machine, tmp_path):
    recipe = recipe_for(Photos(tmp_path / "my photos", count, side), machine, tmp_path / "run")
    config = compose(list(recipe.overrides), check=False)
    (transform,) = config.DATA.TRAIN.TRANSFORMS
    batch = config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * config.DISTRIBUTED.NUM_PROC_PER_NODE
    assert count // batch >= 4
    assert list(config.DATA.TRAIN.DATA_PATHS) == [str(tmp_path / "my photos")]
    rate = 0.015 * batch / 32
    rates = rates_of(config)
    assert [rates(where) for where in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx(
        [rate / 100, 0.505 * rate, rate, 0.505 * rate, rate / 100], rel=1e-3
    )
    assert all(head["batch_norm"] for _, head in config.MODEL.HEAD.PARAMS)
    assert 3 * transform["patch_size"] < transform["patch_crop_size"] < 1.4 * transform["image_crop_size"]
    assert config.LOSS.pirl_loss.negatives == ("all" if count <= 65_536 else "per_image")
    gpu = machine.kind == "gpu"
    device, backend = config.MACHINE.DEVICE, config.DISTRIBUTED.BACKEND
    assert (device, backend) == (("gpu", "nccl") if gpu else ("cpu", "gloo"))
    assert max(1, machine.gpus) >= config.DISTRIBUTED.NUM_PROC_PER_NODE
    assert (config.TRAINER.PIRL_TRAIN_STEP.precision == "bfloat16") == machine.bfloat16
    for choice in recipe.choices:
        assert choice.chosen in str(recipe) and choice.why in str(recipe)


def rates_of(config) -> Callable[[float], float]:
    """The learning rate where a share of the training is done."""
    return build_param_scheduler(config.OPTIMIZER.param_schedulers.lr)


def test_with_the_papers_heads_only_the_heads_and_their_rate_are_others(tmp_path):
    recipes = [
        recipe_for(Photos(tmp_path, 5000, 32), CPU, tmp_path / "run", heads=heads) for heads in ("batch_norm", "paper")
    ]
    configs = [compose(list(recipe.overrides), check=False) for recipe in recipes]
    assert [head.get("batch_norm", False) for _, head in configs[1].MODEL.HEAD.PARAMS] == [False, False]
    assert [head["branch"] for _, head in configs[1].MODEL.HEAD.PARAMS] == ["image", "jigsaw"]
    assert [max(map(rates_of(config), (0, 0.1))) for config in configs] == pytest.approx([0.015, 0.06])
    assert rates_of(configs[1])(0) == 0.06  # as it was tried: without a rise
    assert "0.06 for a batch of 32" in str(recipes[1]) and "as in the paper" in str(recipes[1])
    differ = {one.split("=")[0] for one in set(recipes[0].overrides) ^ set(recipes[1].overrides)}
    assert {name for name in differ if not name.startswith(SCHEDULE)} == {"config.MODEL.HEAD.PARAMS"}
    with pytest.raises(ConfigError, match=r"--heads is 'papers' .did you mean paper"):
        recipe_for(Photos(tmp_path, 5000, 32), CPU, tmp_path / "run", heads="papers")


def test_what_is_asked_for_wins(photo_folder, tmp_path, capsys):
    others = ("config.LOSS.pirl_loss.negatives=per_image", "config.LOSS.pirl_loss.num_negatives=20")
    pretrain(photo_folder, tmp_path / "run", epochs=3, seed=5, others=others, dry_run=True)
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert command[:3] == ["pirl", "train", "config=pretrain/pirl/jigsaw_small_images_cpu"]
    config = compose(command[2:])
    assert (config.OPTIMIZER.num_epochs, config.SEED_VALUE) == (3, 5)
    loss = config.LOSS.pirl_loss
    assert (loss.negatives, loss.num_negatives) == ("per_image", 20)
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_is_asked_for_replaces_the_whole_of_the_recipes(photo_folder, tmp_path, capsys):
    pretrain(photo_folder, tmp_path / "run", others=(f"{SCHEDULE}.start_value=0.04",), dry_run=True)
    printed = capsys.readouterr().out
    assert "of the steps" not in printed
    config = compose(shlex.split(printed.strip().splitlines()[-1])[2:])
    assert rates_of(config)(0) == 0.04 and config.OPTIMIZER.param_schedulers.lr.name == "cosine"


def test_a_rate_that_the_recipes_schedule_does_not_read_is_warned_of(photo_folder, tmp_path, capsys, caplog):
    pretrain(photo_folder, tmp_path / "run", dry_run=True)
    printed = capsys.readouterr().out
    assert "a rise for 10% of the steps, then a cosine to 1%" in printed
    command = shlex.split(printed.strip().splitlines()[-1])[2:]
    compose(command)
    assert "has no effect" not in caplog.text
    compose([*command, f"{SCHEDULE}.start_value=0.04"])
    assert f"{SCHEDULE}.start_value=0.04 has no effect: {SCHEDULE}.name is composite" in caplog.text


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path, make_photo):
    for number in range(31):
        make_photo(number, 40, 40).save(tmp_path / f"{number}.jpg")
    with pytest.raises(ConfigError, match=r"has 31 images; .* at least 32"):
        Photos.of(tmp_path)
    make_photo(31, 40, 60).save(tmp_path / "31.jpg")
    assert (Photos.of(tmp_path).count, Photos.of(tmp_path).side) == (32, 40)
    for path in tmp_path.glob("*.jpg"):
        path.write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"None of 32 images .* can be read"):
        Photos.of(tmp_path)
    with pytest.raises(ConfigError, match="--epochs is 1; it must be a whole number at least 2"):
        pretrain(tmp_path, epochs=1)


@pytest.mark.parametrize(
    ("given", "folder"), [("photos.v2", "photos.v2"), ("photos.v2/..", None), ("2024.06", "2024.06")]
)
def test_the_run_is_named_after_the_folder(given, folder, photo_folder, tmp_path, capsys, monkeypatch):
    for name in ("photos.v2", "2024.06"):
        shutil.copytree(photo_folder, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    pretrain(Path(given), dry_run=True)
    expected = tmp_path / "runs" / (folder or tmp_path.name)
    assert f"config.CHECKPOINT.DIR={expected} " in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--seed is 4294967296; it must be a whole number between 0 and 4294967295"):
        pretrain(Path(given), seed=2**32, dry_run=True)


def test_a_folder_becomes_a_network_and_a_figure_beside_the_untrained_one(photo_folder, tmp_path):
    command = [sys.executable, "-m", "pirl_plugin.commands", "pretrain", photo_folder, "--epochs", "2"]
    done = subprocess.run(
        [*command, "--output", tmp_path / "run"], capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "photos         48" in done.stdout and "views          32 pixels, patches of 12" in done.stdout
    assert re.search(r"kNN beside untrained  [\d.]+%, untrained [\d.]+% \(8 images", done.stdout)
    assert (tmp_path / "run" / "model_final_checkpoint_phase1.torch").exists()
