"""Commands in one process: what they print is what they wrote, and their options arrive."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.commands.__main__ import main
from pirl_plugin.launch import composition
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.checkpoints import run_config
from pirl_plugin.network.run_networks import build_trunk


def pirl(*arguments: object) -> None:
    """A command that must succeed."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert not end.value.code, end.value.code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Of a small network, with its run's config beside it."""
    folder = tmp_path_factory.mktemp("run")
    overrides = ["config.DATA.TRAIN.DATA_PATHS=[photos]", "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125"]
    overrides += ["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.CHECKPOINT.DIR={folder}"]
    config = composition.compose(overrides, check=False, write_config=True).config
    model = {"trunk": build_trunk(config).state_dict(), "heads": {}}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}}, folder / "checkpoint.torch")
    return folder / "checkpoint.torch"


@pytest.fixture
def with_broken(tmp_path, photo_folder) -> Path:
    """Twelve photos of three classes, and a file that is none."""
    for file in sorted(photo_folder.rglob("*.jpg"))[:36:3]:
        (tmp_path / "photos" / file.parent.name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / file.parent.name / file.name).symlink_to(file)
    (tmp_path / "photos" / "class0" / "000broken.jpg").write_bytes(b"no image")
    return tmp_path / "photos"


def test_a_subset_has_the_share_of_each_class_that_it_says(photo_folder, tmp_path, capsys):
    pirl("class-subset", photo_folder, "--percent", 25, "--seed", 3, "--output", tmp_path / "new" / "quarter")
    images, labels = (np.load(tmp_path / "new" / f"quarter_{what}.npy") for what in ("images", "labels"))
    assert capsys.readouterr().out == (
        f"{tmp_path}/new/quarter_images.npy: 12 images, 3 of each of 4 classes, seed 3\n"
    )
    assert [Path(path).parent.name for path in images] == [f"class{label}" for label in labels]
    assert np.bincount(labels).tolist() == [3] * 4
    pirl("class-subset", photo_folder, "--percent", 25, "--output", tmp_path / "other")
    assert set(np.load(tmp_path / "other_images.npy")) != set(images)


def test_features_are_of_the_layer_and_size_asked_for_and_files_that_cannot_be_read_are_named(
    checkpoint, with_broken, tmp_path, capsys
):
    sizes = {}
    for layer, size in (("flatten", None), ("res4", None), ("res4", 16)):
        given = ["--layer", layer, *(["--size", size] if size else [])]
        pirl("embed", checkpoint, with_broken, "--output", tmp_path / "features.npy", *given, "--batch-size", 5)
        sizes[layer, size] = np.load(tmp_path / "features.npy").shape
        printed = capsys.readouterr().out
        assert f"Not read: {with_broken}/class0/000broken.jpg" in printed
        assert printed.endswith(f"{tmp_path}/features.npy: features of 12 images; 1 could not be read\n")
    assert sizes["flatten", None][1] < sizes["res4", 16][1] < sizes["res4", None][1]
    assert len((tmp_path / "features.txt").read_text().split()) == sizes["flatten", None][0] == 12


def test_an_evaluation_writes_what_it_prints_of_as_many_images_as_asked_for(
    checkpoint, photo_folder, with_broken, tmp_path, capsys
):
    written = tmp_path / "new" / "figures.json"
    for name in ("class1", "class2"):  # the same classes as below
        assert (with_broken / name).is_dir()
    train = tmp_path / "train"
    train.mkdir()
    for folder in with_broken.iterdir():
        (train / folder.name).symlink_to(photo_folder / folder.name)
    pirl("evaluate", checkpoint, "--train", train, "--test", with_broken, "--limit-train", 20, "--limit-test", 9,
         "--size", 24, "--evaluations", "knn", "--json", written)  # fmt: skip
    printed, figures = capsys.readouterr().out, json.loads(written.read_text())
    classes = len(list(train.iterdir()))
    test_images = 9 // classes * classes - 1  # one is broken
    assert f"{20 // classes * classes} training and {test_images} test images" in printed
    assert figures["images"]["train"] == 20 // classes * classes and figures["images"]["test"] == test_images
    assert figures["images"]["size"] == 24 and figures["unreadable"] == [str(with_broken / "class0" / "000broken.jpg")]
    knn = f"kNN (k = {20 // classes * classes})"  # all images vote where there are fewer than 200
    assert list(figures["PIRL"]) == [knn]
    row = next(line for line in printed.splitlines() if line.startswith("PIRL"))
    assert float(row.split()[-1]) == pytest.approx(100 * figures["PIRL"][knn], abs=0.051)


def test_averages_of_at_most_as_many_images_as_asked_for_are_written_beside_the_checkpoint(
    checkpoint, with_broken, tmp_path, capsys
):
    own = tmp_path / "run.torch"
    for file, copy in ((checkpoint, own), (checkpoint.with_name("train_config.yaml"), tmp_path / "train_config.yaml")):
        copy.write_bytes(file.read_bytes())
    pirl("recompute-batchnorm", own, with_broken)
    printed = capsys.readouterr().out
    assert f"Not read: {with_broken}/class0/000broken.jpg (" in printed
    assert printed.endswith(f"{tmp_path}/run_batchnorm.torch: averages of 12 images\n")
    assert (tmp_path / "run_batchnorm.torch").is_file()
    pirl("recompute-batchnorm", own, with_broken, "--most", 2, "--output", tmp_path / "new" / "two.torch")
    assert re.search(r"new/two.torch: averages of [12] images\n$", capsys.readouterr().out)
    assert run_config(tmp_path / "new" / "two.torch") == run_config(own)  # so that it can be evaluated
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train_config.yaml").write_text("SEED_VALUE: 1\n")
    with pytest.raises(SystemExit, match=r"other/train_config.yaml is of another run than .*; give an --output"):
        main(["recompute-batchnorm", str(own), str(with_broken), "--output", f"{tmp_path}/other/two.torch"])
    for most in (1, 0, -3):
        with pytest.raises(SystemExit, match=f"Error: --most is {most}; it must be"):
            main(["recompute-batchnorm", str(own), str(with_broken), f"--most={most}"])


def test_a_picture_has_the_tasks_columns_and_resolution_asked_for(photo_folder, tmp_path, capsys):
    photo, sizes = next(photo_folder.rglob("*.jpg")), {}
    for columns, dpi in ((2, 50), (3, 50), (2, 100)):
        given = ["--tasks", "rotation_transform", "--columns", columns, "--dpi", dpi]
        pirl("show-pretext", photo, "--output", tmp_path / "new" / "a.png", *given)
        assert capsys.readouterr().out == f"{tmp_path}/new/a.png: rotation_transform\n"
        sizes[columns, dpi] = Image.open(tmp_path / "new" / "a.png").size
    assert sizes[3, 50][0] > sizes[2, 50][0]
    assert all(abs(large - 2 * small) <= 2 for large, small in zip(sizes[2, 100], sizes[2, 50], strict=True))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    for wrong, sentence in (
        ([tmp_path / "broken.jpg"], "broken.jpg cannot be read as an image"),
        ([tmp_path / "none.jpg"], "none.jpg cannot be read as an image"),
        ([photo, "--output", tmp_path / "a.doc"], "doc"),
        ([photo, "--tasks", "rotate"], "'rotate'"),
    ):
        with pytest.raises(SystemExit, match=f"Error: .*{sentence}"):
            main(["show-pretext", *map(str, wrong)])


def test_a_sample_is_a_list_of_the_count_asked_for(photo_folder, tmp_path, capsys):
    pirl("sample-images", photo_folder, "--count", 5, "--seed", 2, "--output", tmp_path / "new" / "five.txt")
    assert capsys.readouterr().out == f"{tmp_path}/new/five.txt: 5 of the images of {photo_folder}, seed 2\n"
    first = (tmp_path / "new" / "five.txt").read_text().split()
    assert len(set(first)) == 5 and all(Path(path).is_file() for path in first)
    pirl("sample-images", photo_folder, "--count", 5, "--output", tmp_path / "other.txt")
    assert set((tmp_path / "other.txt").read_text().split()) != set(first)
    with pytest.raises(SystemExit, match=r"--output is .*five.csv; it must end in .txt"):
        main(["sample-images", str(photo_folder), "--count", "5", "--output", str(tmp_path / "five.csv")])


def test_pretraining_and_finetuning_print_the_launchers_command_with_what_was_asked_for(
    checkpoint, photo_folder, held_out_folder, tmp_path, capsys
):
    own = ["--seed", 9, "--epochs", 3, "--dry-run", "--set", "config.LOG_FREQUENCY=7"]
    pirl("pretrain", photo_folder, "--output", tmp_path / "run", *own)
    pretraining = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    pirl("pretrain", photo_folder, "--heads", "paper", *own)
    heads = compose(shlex.split(capsys.readouterr().out.strip().splitlines()[-1])[2:]).MODEL.HEAD.PARAMS
    assert not any(head.get("batch_norm") for _, head in heads)
    pirl("finetune", checkpoint, "--train", photo_folder, "--test", held_out_folder, "--output", tmp_path / "run", *own)
    finetuning = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    for command in (pretraining, finetuning):
        config = compose(command[2:])
        assert (config.SEED_VALUE, config.OPTIMIZER.num_epochs, config.LOG_FREQUENCY) == (9, 3, 7)
        assert [config.CHECKPOINT.DIR, *config.DATA.TRAIN.DATA_PATHS] == [str(tmp_path / "run"), str(photo_folder)]
    weights = config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    assert weights == str(checkpoint)
    pirl("finetune", checkpoint, "--train", photo_folder, "--test", held_out_folder, "--from-scratch", *own)
    config = compose(shlex.split(capsys.readouterr().out)[2:])
    assert not config.MODEL.WEIGHTS_INIT.PARAMS_FILE
    assert config.CHECKPOINT.DIR.endswith(f"/runs/scratch_{checkpoint.parent.name}")
    assert not (tmp_path / "run").exists()


def test_an_export_is_described_or_written(checkpoint, tmp_path, capsys):
    pirl("export", checkpoint)
    assert "ResNet-18" in capsys.readouterr().out
    written = tmp_path / "new" / "weights.safetensors"
    pirl("export", checkpoint, "--format", "safetensors", "--output", written)
    assert written.is_file() and str(written) in capsys.readouterr().out


def test_curves_are_drawn_of_all_runs_named(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "progress.csv").write_text("iteration,epoch,loss,learning_rate\n1,1,3.5,0.1\n2,1,3.0,0.1\n")
    pirl("curves", tmp_path / "a", tmp_path / "b", "--output", tmp_path / "new" / "curves.png")
    assert str(tmp_path / "new" / "curves.png") in capsys.readouterr().out
    assert (tmp_path / "new" / "curves.png").stat().st_size > 5000
