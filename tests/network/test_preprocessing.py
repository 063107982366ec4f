"""What images a network wants: from the run that trained it to everything that embeds images with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torchvision.transforms import v2

from pirl_plugin.commands.__main__ import main as pirl
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.detection.training import check_weights_fit, detection_config
from pirl_plugin.evaluation.quick import evaluate_checkpoint
from pirl_plugin.launch.initial_weights import check_initial_weights
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.export import SUFFIXES, export
from pirl_plugin.network.preprocessing import Preprocessing
from pirl_plugin.network.weights import Architecture, Trunk, load_trunk
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MEAN, STD, SIZE = [0.5, 0.4, 0.3], [0.25, 0.26, 0.27], 72
OWN = {"size": SIZE, "mean": MEAN, "std": STD}


@pytest.fixture(scope="module")
def run(tmp_path_factory, photo_folder) -> Path:
    """The checkpoint of a real run on images of 72 pixels with levels of its own, of a plain ResNet-18."""
    folder = tmp_path_factory.mktemp("run72")
    done = subprocess.run(
        [
            sys.executable, "-m", "pirl_plugin.launch.launcher", "config=pretrain/pirl/jigsaw_small_images_cpu",
            f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", f"config.CHECKPOINT.DIR={folder}",
            "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=16", "config.OPTIMIZER.num_epochs=1",
            "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=1", "config.MODEL.TRUNK.RESNETS.STEM=imagenet",
            f"config.DATA.TRAIN.TRANSFORMS.0.image_crop_size={SIZE}",
            f"config.DATA.TRAIN.TRANSFORMS.0.mean={MEAN}", f"config.DATA.TRAIN.TRANSFORMS.0.std={STD}",
        ],
        capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / "model_final_checkpoint_phase0.torch"


def as_trained(file: str) -> torch.Tensor:
    """The view of the run above, written out."""
    side = round(SIZE * 256 / 224)
    steps = [v2.Resize(side, antialias=True), v2.CenterCrop(SIZE), v2.PILToTensor(), v2.ToDtype(torch.float32, True)]
    return v2.Compose([*steps, v2.Normalize(MEAN, STD)])(load_rgb(file))


def command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        pirl(list(map(str, arguments)))
    assert end.value.code is None


def test_a_runs_checkpoint_says_what_its_network_was_trained_on(run, photo_folder):
    trunk = load_trunk(run)
    assert trunk.preprocessing.record() == OWN and trunk.preprocessing.known
    file = list_images(photo_folder)[0]
    torch.testing.assert_close(trunk.view()(load_rgb(file)), as_trained(file))
    assert trunk.view(40)(load_rgb(file)).shape == (3, 40, 40)


@pytest.mark.parametrize("form", SUFFIXES)
def test_every_export_says_it_too_and_is_read_back(form, run, tmp_path):
    output = tmp_path / f"w{SUFFIXES[form]}"
    assert "as in its training" in export(run, form, output)
    notes = json.loads(output.with_name(output.name + ".json").read_text())
    assert notes["images"] == OWN
    if form == "detectron2":
        assert notes["MODEL.PIXEL_MEAN"] == [127.5, 102.0, 76.5]
        return
    assert (notes["mean"], notes["std"], notes["crop"], notes["resize"]) == (MEAN, STD, SIZE, 82)
    if form in ("safetensors", "vissl"):  # in the file itself
        output.with_name(output.name + ".json").unlink()
    assert load_trunk(output).preprocessing.record() == OWN


def test_embedding_analyses_and_evaluation_prepare_images_so(run, photo_folder, held_out_folder, tmp_path, capsys):
    command("embed", run, photo_folder, "--output", tmp_path / "f.npy")
    files = list_images(photo_folder)
    with torch.inference_mode():
        expected = load_trunk(run)(torch.stack([as_trained(file) for file in files])).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "f.npy"), expected, rtol=1e-3, atol=1e-4)
    command("analysis", "spread", run, "--images", photo_folder, "--output", tmp_path / "spread")
    command(
        "analysis", "layers", run, "--train", photo_folder, "--test", held_out_folder, "--output", tmp_path / "layers"
    )
    unit = expected.astype(np.float64) / np.linalg.norm(expected.astype(np.float64), axis=1, keepdims=True)
    (figures,) = json.loads((tmp_path / "spread.json").read_text())["models"].values()
    assert figures["spread"] == pytest.approx(1 - float(np.square(unit.mean(0)).sum()), abs=1e-4)
    comparison = evaluate_checkpoint(run, photo_folder, held_out_folder)
    assert comparison.preprocessing.record() == OWN and f"images of {SIZE} pixels" in str(comparison)
    assert evaluate_checkpoint(run, photo_folder, held_out_folder, 32).preprocessing.size == 32
    assert (
        capsys.readouterr().out.count(f"images of {SIZE} pixels (shorter side to 82), mean and std 0.5, 0.4, 0.3") == 3
    )


def test_a_detector_is_held_to_the_levels_of_the_training_and_all_that_differs_is_named(run):
    with pytest.raises(ConfigError) as caught:
        check_weights_fit(detection_config("voc07_pirl", []), run)
    text = str(caught.value)
    assert "MODEL.PIXEL_MEAN is [123.675, 116.28, 103.53], but the weights need [127.5, 102.0, 76.5]" in text
    fix = text.split("Add to the command: ")[1].split(" ")
    assert "MODEL.RESNETS.DEPTH" in fix and "MODEL.RESNETS.RES2_OUT_CHANNELS" in fix
    check_weights_fit(detection_config("voc07_pirl", fix), run)


def test_an_evaluation_that_would_normalise_otherwise_is_refused(run, photo_folder):
    data = [f"config.DATA.{split}.DATA_PATHS=[{photo_folder}]" for split in ("TRAIN", "TEST")]
    overrides = ["config=benchmark/linear/small_images_cpu", *data, f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={run}"]
    overrides += ["config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=1", "config.MODEL.TRUNK.RESNETS.STEM=imagenet"]
    with pytest.raises(
        ConfigError, match=r"DATA.TRAIN.TRANSFORMS.3.mean is \[0.485.*, but the weights of .* \[0.5, 0.4"
    ):
        check_initial_weights(compose(overrides))
    right = [f"config.DATA.{split}.TRANSFORMS.3.{key}={value}" for split in ("TRAIN", "TEST")
             for key, value in (("mean", MEAN), ("std", STD))]  # fmt: skip
    check_initial_weights(compose([*overrides, *right]))


def test_a_run_of_before_is_known_by_its_config_and_a_foreign_file_is_said_to_be_unknown(run, tmp_path):
    content = torch.load(run, weights_only=True)
    del content["classy_state_dict"]["pirl_plugin"]["images"]
    torch.save(content, tmp_path / "old.torch")
    assert not load_trunk(tmp_path / "old.torch").preprocessing.known
    (tmp_path / "train_config.yaml").write_text((run.parent / "train_config.yaml").read_text())
    assert load_trunk(tmp_path / "old.torch").preprocessing.record() == OWN
    torch.save(Trunk(Architecture(18)).network.state_dict(), tmp_path / "foreign.pth")
    wanted = load_trunk(tmp_path / "foreign.pth").preprocessing
    assert str(wanted) == (
        "images of 224 pixels (shorter side to 256), mean and std 0.485, 0.456, 0.406, 0.229, 0.224, 0.225 (unknown: "
        "ImageNet's are assumed)"
    )
    export(tmp_path / "foreign.pth", "safetensors", tmp_path / "w.safetensors")
    assert not load_trunk(tmp_path / "w.safetensors").preprocessing.known


@pytest.mark.parametrize(
    ("name", "expected"),
    [("supervised/small_images_cpu", 32), ("jigsaw/covariant_2000", 224)],
)
def test_what_vissls_own_transforms_make_is_understood(name, expected):
    config = yaml.safe_load((ROOT / "configs" / "config" / "pretrain" / f"{name}.yaml").read_text())["config"]
    wanted = Preprocessing.of_transforms(config["DATA"]["TRAIN"]["TRANSFORMS"], 224)
    assert wanted.known and wanted.size == expected and list(wanted.mean) == [0.485, 0.456, 0.406]


@pytest.mark.parametrize("record", [{"size": 0}, {"mean": [0.5]}, {"std": [0, 1, 1]}, {"mean": "grey"}, {"size": "x"}])
def test_a_record_that_cannot_be_right_is_refused(record):
    with pytest.raises(ConfigError, match=r"w.torch says that its network expects"):
        Preprocessing.from_record({**OWN, **record}, "w.torch")
