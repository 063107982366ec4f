"""Quick evaluation and the analyses of real files, with broken ones among them, and a signal that was planted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl_plugin.commands.__main__ import main as pirl
from pirl_plugin.evaluation.analyses import ANALYSES
from pirl_plugin.evaluation.quick import evaluate_checkpoint, labelled_images
from pirl_plugin.launch import composition
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.checkpoints import trunk_state
from pirl_plugin.network.features import center_view, embed
from pirl_plugin.network.heads import PIRLHead
from pirl_plugin.network.run_networks import build_trunk
from pirl_plugin.validation import ConfigError

SMALL = "config=pretrain/pirl/jigsaw_small_images_cpu"


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> dict[str, Path]:
    """Folders train and test of different photos; the colour is the class."""
    folders = {}
    for split, seed, count in (("train", 0, 20), ("test", 1, 6)):
        folders[split] = tmp_path_factory.mktemp(split)
        rng = np.random.default_rng(seed)
        for label, colour in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
            (folders[split] / f"class{label}").mkdir()
            for number in range(count):
                pixels = rng.integers(0, 120, (36, 36, 3)) + np.array(colour) // 2
                Image.fromarray(pixels.astype(np.uint8)).save(folders[split] / f"class{label}" / f"{number:02d}.png")
    return folders


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, coloured) -> Path:
    """Of a network whose first convolution is 0: it sees nothing, where the untrained one sees colours."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [SMALL, f"config.DATA.TRAIN.DATA_PATHS=[{coloured['train']}]", "config.SEED_VALUE=3"]
    config = composition.compose([*overrides, f"config.CHECKPOINT.DIR={folder}"], write_config=True).config
    trunk, heads = build_trunk(config, seed=8), torch.nn.ModuleList()
    heads.extend(PIRLHead(**arguments) for _, arguments in config.MODEL.HEAD.PARAMS)
    torch.nn.init.zeros_(trunk._feature_blocks["conv1"].weight)
    model = {"trunk": trunk.state_dict(), "heads": heads.state_dict()}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}}, folder / "checkpoint.torch")
    return folder / "checkpoint.torch"


def with_broken(folder: Path, copy: Path, names: list[str]) -> Path:
    copy.mkdir()
    for file in sorted(folder.rglob("*.png")):
        (copy / file.parent.name).mkdir(exist_ok=True)
        (copy / file.parent.name / file.name).write_bytes(file.read_bytes())
    for name in names:
        (copy / name).write_bytes(b"no image")
    return copy


def test_the_blind_network_is_the_trained_one_and_the_seeing_one_the_untrained(checkpoint, coloured):
    accuracies = evaluate_checkpoint(checkpoint, coloured["train"], coloured["test"]).accuracies
    assert list(accuracies) == ["untrained", "PIRL"]
    for measure in ("kNN (k = 60)", "linear"):
        assert accuracies["PIRL"][measure] == pytest.approx(1 / 3)
        assert accuracies["untrained"][measure] > 0.9


def test_averages_recomputed_on_the_training_images_are_a_third_row(coloured, tmp_path, capsys):
    """Of a network that sees, with averages so wrong that no difference is left of its features."""
    config = composition.compose(
        [SMALL, f"config.DATA.TRAIN.DATA_PATHS=[{coloured['train']}]", f"config.CHECKPOINT.DIR={tmp_path}"],
        write_config=True,
    ).config
    trunk = build_trunk(config, seed=8)
    for norm in [module for module in trunk.modules() if isinstance(module, torch.nn.BatchNorm2d)]:
        norm.running_mean.fill_(1e4)
    torch.save({"classy_state_dict": {"base_model": {"model": {"trunk": trunk.state_dict(), "heads": {}}}}},
               tmp_path / "checkpoint.torch")  # fmt: skip
    before = (tmp_path / "checkpoint.torch").read_bytes()
    command = ["evaluate", tmp_path / "checkpoint.torch", "--train", coloured["train"], "--test", coloured["test"]]
    with pytest.raises(SystemExit):
        pirl([*map(str, command), "--recompute-batchnorm", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    for measure in ("kNN (k = 60)", "linear"):
        assert found["PIRL"][measure] == pytest.approx(1 / 3) and found["PIRL, recomputed"][measure] > 0.9, measure
    rows = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert rows[:6] == ["held-out accuracy, %", "untrained", "PIRL", "difference", "PIRL, recomputed", "difference"]
    assert (tmp_path / "checkpoint.torch").read_bytes() == before


def test_the_images_that_were_learned_are_refused_as_test_images(checkpoint, coloured, tmp_path):
    (tmp_path / "link").symlink_to(coloured["train"])
    with pytest.raises(ConfigError, match=r"--train and --test are both .*train.*; measure on other images"):
        evaluate_checkpoint(checkpoint, coloured["train"], tmp_path / "link")


def test_the_table_says_how_many_neighbours_vote(checkpoint, coloured):
    accuracies = evaluate_checkpoint(checkpoint, coloured["train"], coloured["test"], limit_train=9).accuracies
    assert "kNN (k = 9)" in accuracies["PIRL"]


def test_classifiers_learn_from_the_training_images_and_are_measured_on_the_others(checkpoint, coloured, tmp_path):
    turned = tmp_path / "turned"  # the test images' classes are all wrong: what learned from them would be right
    for label in range(3):
        (turned / f"class{(label + 1) % 3}").mkdir(parents=True)
        for file in (coloured["test"] / f"class{label}").iterdir():
            (turned / f"class{(label + 1) % 3}" / file.name).write_bytes(file.read_bytes())
    accuracies = evaluate_checkpoint(checkpoint, coloured["train"], turned).accuracies["untrained"]
    assert all(value < 0.1 for value in accuracies.values())


def test_broken_files_are_left_out_named_and_counted(checkpoint, coloured, tmp_path):
    train = with_broken(coloured["train"], tmp_path / "train", ["class0/zz.png", "class1/03.png"])
    test = with_broken(coloured["test"], tmp_path / "test", ["class2/00.png"])
    comparison = evaluate_checkpoint(checkpoint, train, test)
    assert comparison.images == (59, 17) and comparison.accuracies["untrained"]["linear"] > 0.9
    assert sorted(comparison.unreadable.reasons) == [
        str(test / "class2/00.png"), str(train / "class0/zz.png"), str(train / "class1/03.png")
    ]  # fmt: skip
    assert "3 images could not be read and were left out:" in str(comparison)
    with pytest.raises(SystemExit):
        pirl(
            ["evaluate", str(checkpoint), "--train", str(train), "--test", str(test), "--json", f"{tmp_path}/e/f.json"]
        )
    written = json.loads((tmp_path / "e" / "f.json").read_text())
    assert len(written["unreadable"]) == 3 and written["images"]["train"] == 59


@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_leaves_broken_files_out_and_gives_what_it_gives_without_them(
    name, checkpoint, coloured, tmp_path, capsys
):
    broken = with_broken(coloured["train"], tmp_path / "broken", ["class0/zz.png", "class2/zz.png"])
    results = []
    for folder in (broken, coloured["train"]):
        images = ["--train", folder, "--test", coloured["test"]] if name == "layers" else ["--images", folder]
        output = tmp_path / f"{folder.name}_{name}"
        statistics = ["--statistics", "running"] if name == "invariance" else []
        command = ["analysis", name, checkpoint, *images, "--output", output, *statistics]
        command += ["--queries", 4] if name == "neighbors" else []
        with pytest.raises(SystemExit) as end:
            pirl(list(map(str, command)))
        assert end.value.code is None
        results.append(json.loads(Path(f"{output}.json").read_text()))
    with_them, without = results
    assert sorted(map(Path, with_them.pop("unreadable"))) == [broken / "class0/zz.png", broken / "class2/zz.png"]
    assert without.pop("unreadable") == [] and "2 images could not be read and were left out" in capsys.readouterr().out
    if name == "spread":
        assert with_them == without
    elif name == "layers":
        assert with_them["models"] == without["models"]
    elif name == "invariance":
        (result,) = with_them["models"].values()
        assert sum(result["histogram"]) == 60
    else:
        assert len(with_them["queries"]) == 4 and not any("zz" in file for file in with_them["queries"])


def test_none_that_can_be_read_is_refused(checkpoint, coloured, tmp_path):
    names = [str(file.relative_to(coloured["test"])) for file in coloured["test"].rglob("*.png")]
    test = with_broken(coloured["test"], tmp_path / "test", names)
    with pytest.raises(ConfigError, match="None of the 18 images can be read; the first"):
        evaluate_checkpoint(checkpoint, coloured["train"], test)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--neighbors", 60], "--neighbors is 60; it must be a whole number between 1 and 59"),
        (["--queries", 61], "--queries is 61; it must be a whole number between 1 and 60"),
        (["--size", 5000], "--size is 5000; it must be a whole number between 8 and 4096"),
        (["--size", 4], "--size is 4; it must be a whole number between 8 and 4096"),
        (["--names", "one", "two"], "--names has 2 names for 1 checkpoints; give each one"),
    ],
)
def test_what_an_analysis_cannot_do_is_refused(given, sentence, checkpoint, coloured, tmp_path):
    command = ["analysis", "neighbors", checkpoint, "--images", coloured["train"], "--output", tmp_path / "a", *given]
    with pytest.raises(SystemExit) as end:
        pirl(list(map(str, command)))
    assert sentence in end.value.code and not list(tmp_path.iterdir())


def test_the_same_checkpoint_is_analysed_once(checkpoint, coloured, tmp_path):
    command = ["analysis", "spread", checkpoint, checkpoint, "--images", coloured["test"], "--output", tmp_path / "a"]
    with pytest.raises(SystemExit) as end:
        pirl(list(map(str, command)))
    assert end.value.code == f"Error: The checkpoints have {checkpoint} twice; give it once."


def test_an_evaluation_that_could_not_be_written_is_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "file").touch()
    command = ["evaluate", "no.torch", "--train", "no", "--test", "no", "--json"]
    for place, why in ((tmp_path, "which is a folder"), (tmp_path / "file/a.json", "which cannot be written")):
        with pytest.raises(SystemExit) as end:
            pirl([*command, str(place)])
        assert f"--json is {place}, {why}" in end.value.code


def test_a_limit_takes_as_many_of_each_class(coloured):
    files, labels = labelled_images(coloured["train"], limit=10)
    assert np.bincount(labels).tolist() == [3, 3, 3] and len(files) == 9
    for few in (2, 0, -5):
        with pytest.raises(ConfigError, match=f"the limit of images, with 3 classes, is {few}; it must be .* least 3"):
            labelled_images(coloured["train"], limit=few)


def test_a_network_that_diverged_has_no_figures(checkpoint, coloured, tmp_path):
    shutil.copytree(checkpoint.parent, tmp_path / "run")
    contents = torch.load(checkpoint)
    trunk_state(contents)["_feature_blocks.bn1.running_var"][0] = float("nan")
    torch.save(contents, tmp_path / "run" / "checkpoint.torch")
    for name in ("knn", "linear"):
        with pytest.raises(ConfigError, match=r"has numbers in _feature_blocks.bn1.running_var that are"):
            evaluate_checkpoint(
                tmp_path / "run" / "checkpoint.torch", coloured["train"], coloured["test"], evaluations=[name]
            )


def test_what_is_no_checkpoint_and_limits_that_measure_nothing_are_refused(checkpoint, coloured, tmp_path, capsys):
    for command, told in (
        (
            ["evaluate", tmp_path / "none.torch", "--train", coloured["train"], "--test", coloured["test"]],
            "none.torch is not",
        ),
        (["analysis", "spread", checkpoint, "--images", coloured["test"], "--limit", 1], "the limit of images is 1"),
        (["analysis", "spread", checkpoint, "--images", coloured["test"], "--size", 1], "--size is 1; it must be"),
    ):
        with pytest.raises(SystemExit, match=told):
            pirl([*map(str, command), *(["--output", str(tmp_path / "x")] if "spread" in command else [])])


def test_one_readable_class_is_too_few_to_learn_from(checkpoint, coloured, tmp_path):
    names = [str(file.relative_to(coloured["train"])) for file in coloured["train"].rglob("*.png")]
    train = with_broken(coloured["train"], tmp_path / "train", [name for name in names if "class0" not in name])
    with pytest.raises(ConfigError, match="All images to train on are of one class; a linear classifier needs two"):
        evaluate_checkpoint(checkpoint, train, coloured["test"])


def test_features_belong_to_their_files_in_their_order(coloured):
    files, _ = labelled_images(coloured["train"])
    trunk = build_trunk(compose([SMALL], check=False))
    whole = embed(trunk, files, center_view(32), batch_size=7)
    for place in (0, 6, 7, 33, 59):
        np.testing.assert_allclose(whole[place], embed(trunk, [files[place]], center_view(32))[0], rtol=1e-4, atol=1e-5)
