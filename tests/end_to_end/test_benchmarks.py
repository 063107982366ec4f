"""The benchmark configs: the paper's settings, and each run end to end on small real photos with a real ResNet-50."""

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

from pirl_plugin.data.image_files import list_images
from pirl_plugin.data.subsets import class_balanced_subset
from pirl_plugin.experiments.benchmarks import BENCHMARKS
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.export import preprocessing_notes
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.network.weights import Architecture, read_trunk_weights
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ["conv1", "res2", "res3", "res4", "res5"]
CPU = [
    "config.MACHINE.DEVICE=cpu",
    "config.DISTRIBUTED.BACKEND=gloo",
    "config.DISTRIBUTED.NUM_NODES=1",
    "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
    "config.DATA.NUM_DATALOADER_WORKERS=0",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=4",
    "config.DATA.TEST.BATCHSIZE_PER_REPLICA=4",
]


@pytest.mark.parametrize(
    ("name", "epochs", "milestones", "classes"),
    [("imagenet", 28, [9, 19], 1000), ("places205", 14, [5, 9], 205), ("inaturalist18", 84, [28, 56], 8142)],
)
def test_linear_evaluation_has_the_papers_schedule(name, epochs, milestones, classes):
    config = compose([f"config=benchmark/linear/{name}"], check=False)
    optimizer, schedule = config.OPTIMIZER, config.OPTIMIZER.param_schedulers.lr
    assert (optimizer.num_epochs, optimizer.momentum, optimizer.weight_decay) == (epochs, 0.9, 5e-4)
    assert not optimizer.nesterov and schedule["milestones"] == milestones
    assert schedule["values"] == pytest.approx([0.01, 0.001, 0.0001])
    assert config.DATA.TRAIN.BATCHSIZE_PER_REPLICA * config.DISTRIBUTED.NUM_PROC_PER_NODE == 256
    settings = config.MODEL.FEATURE_EVAL_SETTINGS
    assert settings.EVAL_MODE_ON and settings.FREEZE_TRUNK_ONLY
    assert [layer for layer, _ in settings.LINEAR_EVAL_FEAT_POOL_OPS_MAP] == LAYERS
    dims = [head[1]["dims"] for head in config.MODEL.HEAD.PARAMS]
    assert [out for _, out in dims] == [classes] * 5 and all(8000 < size < 9500 for size, _ in dims)
    assert config.METERS.accuracy_list_meter.num_meters == 5


@pytest.mark.parametrize("percent", [1, 10])
def test_semi_supervised_learning_has_vissls_settings(percent):
    config = compose([f"config=benchmark/semi_supervised/imagenet_{percent}percent"], check=False)
    schedule = config.OPTIMIZER.param_schedulers.lr
    assert (config.OPTIMIZER.num_epochs, config.OPTIMIZER.weight_decay) == (70, 0)
    assert schedule["values"] == pytest.approx([0.01, 0.001]) and schedule["milestones"] == [30]
    assert not config.MODEL.FEATURE_EVAL_SETTINGS.EVAL_MODE_ON  # all of the network learns


def test_svms_have_vissls_settings():
    svm = compose(["config=benchmark/svm/voc07"], check=False).SVM
    assert svm.costs.costs_list == [0.01, 0.1, 1.0, 2, 5, 10, 15, 20, 50, 100, 1000]
    assert (svm.loss, svm.cross_val_folds, svm.normalize) == ("squared_hinge", 3, True)
    low_shot = compose(["config=benchmark/svm/voc07_low_shot"], check=False).SVM.low_shot
    assert low_shot.k_values == [1, 2, 4, 8, 16, 32, 64, 96] and low_shot.sample_inds == [1, 2, 3, 4, 5]


CONFIGS = ["linear/imagenet", "linear/places205", "linear/inaturalist18", "svm/voc07"]
CONFIGS += ["semi_supervised/imagenet_1percent", "semi_supervised/imagenet_10percent"]


@pytest.mark.parametrize("name", CONFIGS)
def test_images_are_prepared_as_the_exports_say_and_as_in_pretraining(name):
    wanted = preprocessing_notes(Architecture(50), "torchvision", Preprocessing(224))
    pretraining = compose(["config=pretrain/pirl/jigsaw_8node"], check=False).DATA.TRAIN.TRANSFORMS[0]
    data = compose([f"config=benchmark/{name}"], check=False).DATA
    for split in ("TRAIN", "TEST"):
        normalise = data[split].TRANSFORMS[-1]
        assert normalise["name"] == "Normalize"
        for key in ("mean", "std"):
            assert normalise[key] == wanted[key] == pretraining[key]


def test_a_subset_has_as_many_images_of_each_class_and_grows_with_the_percentage(photo_folder):
    paths, labels = class_balanced_subset(photo_folder, 25, seed=3)
    assert np.bincount(labels).tolist() == [3, 3, 3, 3]
    assert all(f"class{label}" in path for path, label in zip(paths, labels, strict=True))
    assert (paths, labels) == class_balanced_subset(photo_folder, 25, seed=3)
    assert set(paths) < set(class_balanced_subset(photo_folder, 50, seed=3)[0])
    assert paths != class_balanced_subset(photo_folder, 25, seed=4)[0]
    with pytest.raises(ConfigError, match="0 sub-folders"):
        class_balanced_subset(photo_folder / "class0", 10)
    with pytest.raises(ConfigError, match="must be a number at least"):
        class_balanced_subset(photo_folder, 101)


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory) -> Path:
    return save_resnet50(tmp_path_factory.mktemp("resnet50") / "pretrained.torch")


def save_resnet50(path: Path, width_multiplier: float = 1.0) -> Path:
    """A ResNet-50 of this plugin with BatchNorm statistics of its own, in a checkpoint as VISSL writes it."""
    torch.manual_seed(0)
    trunk = ResNetTrunk(50, width_multiplier)
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    torch.save({"classy_state_dict": {"base_model": {"model": {"trunk": trunk.state_dict(), "heads": {}}}}}, path)
    return path


@pytest.fixture
def few_photos(photo_folder, tmp_path) -> Path:
    """Two photos of each of four classes."""
    for path in first_of_each_class(photo_folder, 2):
        target = tmp_path / "photos" / Path(path).parent.name
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "photos"


def first_of_each_class(folder: Path, count: int) -> list[str]:
    return [path for number in range(4) for path in list_images(folder / f"class{number}")[:count]]


def launch(folder: Path, module: str, *overrides: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *CPU, f"config.CHECKPOINT.DIR={folder}/run", *overrides],
        cwd=folder, capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width_multiplier"), [("imagenet", 1), ("imagenet_wide", 2)])
def test_linear_evaluation_trains_five_layers_and_leaves_the_trunk_bit_by_bit(
    name, width_multiplier, few_photos, tmp_path
):
    resnet50 = save_resnet50(tmp_path / "pretrained.torch", width_multiplier)
    with_a_broken_one = shutil.copytree(few_photos, tmp_path / "test")
    (with_a_broken_one / "class2" / "broken.jpg").write_bytes(b"no image")
    printed = launch(
        tmp_path,
        "pirl_plugin.launch.launcher",
        f"config=benchmark/linear/{name}",
        f"config.DATA.TRAIN.DATA_PATHS=[{few_photos}]",
        f"config.DATA.TEST.DATA_PATHS=[{with_a_broken_one}]",
        f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={resnet50}",
        "config.MODEL.SYNC_BN_CONFIG.CONVERT_BN_TO_SYNC_BN=False",
        "config.OPTIMIZER.num_epochs=2",
        "config.OPTIMIZER.param_schedulers.lr.values=[0.01,0.001]",
        "config.OPTIMIZER.param_schedulers.lr.milestones=[1]",
    )
    assert "test: 1 of 9 images could not be read and were left out" in printed
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    tested = next(line["test_accuracy_list_meter"] for line in metrics if "test_accuracy_list_meter" in line)
    assert list(tested["top_1"]) == LAYERS and all(0 <= value <= 100 for value in tested["top_5"].values())
    figures = BENCHMARKS["linear_imagenet"].read(tmp_path / "run")
    assert list(figures) == [*LAYERS, "best layer"] and figures["best layer"] == max(figures.values())
    final = tmp_path / "run" / "model_final_checkpoint_phase1.torch"
    before, after = read_trunk_weights(resnet50), read_trunk_weights(final)
    assert set(before) == set(after)
    for key in before:  # weights, BatchNorm's affine parameters and statistics
        if "num_batches_tracked" not in key:
            assert torch.equal(before[key], after[key]), key


@pytest.mark.slow
def test_nearest_neighbours_are_found_on_a_resnet50(resnet50, few_photos, tmp_path):
    data = [f"config.DATA.{split}.DATA_PATHS=[{few_photos}]" for split in ("TRAIN", "TEST")]
    weights = f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={resnet50}"
    tool = tmp_path / "tool.py"
    tool.write_text(
        "import sys\nfrom pirl_plugin.commands.__main__ import main\n"
        "if __name__ == '__main__':\n    main(['nearest-neighbors', *sys.argv[1:]])\n"
    )
    printed = launch(tmp_path, "tool", "config=benchmark/nearest_neighbor/imagenet", *data, weights)
    # Each image is among the training images too: its own vote, cosine 1, is the heaviest.
    assert "res5avg: weighted kNN top-1" in printed
    assert BENCHMARKS["knn_imagenet"].read(tmp_path / "run")["res5avg"] >= 25


@pytest.mark.slow
def test_semi_supervised_learning_runs_on_a_drawn_subset_and_changes_the_trunk(resnet50, few_photos, tmp_path):
    script = [sys.executable, ROOT / "extra_scripts" / "class_subset.py", few_photos]
    done = subprocess.run(
        [*script, "--percent", "100", "--output", tmp_path / "imagenet_1percent"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "8 images, 2 of each of 4 classes" in done.stdout, done.stderr
    launch(
        tmp_path,
        "pirl_plugin.launch.launcher",
        "config=benchmark/semi_supervised/imagenet_1percent",
        f"config.DATA.TEST.DATA_PATHS=[{few_photos}]",
        f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={resnet50}",
        "config.OPTIMIZER.num_epochs=2",
        "config.OPTIMIZER.param_schedulers.lr.values=[0.01,0.001]",
        "config.OPTIMIZER.param_schedulers.lr.milestones=[1]",
    )
    before, after = (
        read_trunk_weights(resnet50),
        read_trunk_weights(tmp_path / "run" / "model_final_checkpoint_phase1.torch"),
    )
    assert list(BENCHMARKS["semi_supervised_1percent"].read(tmp_path / "run")) == ["top-1", "top-5"]
    first = next(key for key in before if key.endswith("layer1.0.conv1.weight"))
    assert not torch.equal(before[first], after[first])
    assert (before[first] - after[first]).abs().max() < 0.1  # it started from the given weights


@pytest.mark.slow
def test_svms_and_low_shot_svms_run_on_five_layers(resnet50, photo_folder, tmp_path):
    files = first_of_each_class(photo_folder, 3)
    np.save(tmp_path / "files.npy", np.array(files))
    labels = np.array([[int(f"class{c}" in file) for c in range(4)] for file in files])
    np.save(tmp_path / "labels.npy", labels)
    data = [
        f"config.DATA.{split}.{key}=[{tmp_path}/{file}.npy]"
        for split in ("TRAIN", "TEST")
        for key, file in (("DATA_PATHS", "files"), ("LABEL_PATHS", "labels"))
    ]
    weights = f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={resnet50}"
    tool = tmp_path / "tool.py"
    for function, config, overrides in (
        ("train_svm", "svm/voc07", ["config.SVM.costs.costs_list=[1.0]"]),
        (
            "train_svm_low_shot",
            "svm/voc07_low_shot",
            [
                "config.SVM.costs.costs_list=[1.0]",
                "config.SVM.low_shot.k_values=[1,2]",
                "config.SVM.low_shot.sample_inds=[1,2]",
            ],
        ),
    ):
        tool.write_text(
            f"import sys\nfrom pirl_plugin.launch.tools import {function}\n"
            f"if __name__ == '__main__':\n    {function}(sys.argv[1:])\n"
        )
        printed = launch(tmp_path, "tool", f"config=benchmark/{config}", *data, weights, *overrides)
        for layer in LAYERS:
            found = re.findall(rf"^{layer}(?:, k=\d+)?: mean AP ([\d.]+)%", printed, re.MULTILINE)
            assert len(found) == (1 if function == "train_svm" else 2), printed[-2000:]
            assert all(20 < float(value) <= 100 for value in found)
        figures = BENCHMARKS["svm_voc07" if function == "train_svm" else "low_shot_voc07"].read(tmp_path / "run")
        metrics = {*LAYERS, "best layer"} if function == "train_svm" else {"k=1, best layer", "k=2, best layer"}
        assert set(figures) == metrics and all(20 < value <= 100 for value in figures.values())
        shutil.rmtree(tmp_path / "run")
