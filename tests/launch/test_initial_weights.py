"""A file of weights that would leave the trunk at random, or that VISSL would stumble over, is refused at the start."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pirl_plugin.launch.initial_weights import check_initial_weights
from pirl_plugin.launch.launcher import compose
from pirl_plugin.network.export import export
from pirl_plugin.network.trunks import ResNetTrunk
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """VISSL checkpoints with random trunks."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name, arguments in (("resnet18", (18,)), ("resnet34", (34,)), ("resnet50", (50,)), ("wide", (50, 2))):
        trunk = ResNetTrunk(*arguments)
        files[name] = folder / f"{name}.torch"
        model = {"trunk": trunk.state_dict(), "heads": {}}
        torch.save({"classy_state_dict": {"base_model": {"model": model}}}, files[name])
    return files


def config_of(name: str, path: Path, *overrides: str):
    return compose([f"config={name}", f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={path}", *overrides], check=False)


BENCHMARKS = [
    "benchmark/linear/imagenet",
    "benchmark/linear/places205",
    "benchmark/semi_supervised/imagenet_1percent",
    "benchmark/svm/voc07",
    "pretrain/pirl/jigsaw_8node",
]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_whole_trunk_of_the_configs_network_is_accepted(name, checkpoints):
    check_initial_weights(config_of(name, checkpoints["resnet50"]))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_another_architecture_is_refused(name, checkpoints):
    for other, shapes in (
        ("resnet18", r"layer1\.0\.conv1\.weight is \(64, 64, 3, 3\); .* needs \(64, 64, 1, 1\)"),
        (
            "wide",
            r"conv1\.weight is \(128, 3, 7, 7\); the trunk resnet of depth 50 and width 1 .* needs \(64, 3, 7, 7\)",
        ),
        ("resnet34", r"layer1\.0\.conv1"),
    ):
        with pytest.raises(ConfigError, match=shapes):
            check_initial_weights(config_of(name, checkpoints[other]))


def test_a_trunk_that_is_not_whole_is_refused(checkpoints, tmp_path):
    content = torch.load(checkpoints["resnet50"], weights_only=True)
    trunk = content["classy_state_dict"]["base_model"]["model"]["trunk"]
    del trunk["_feature_blocks.layer4.2.bn3.weight"], trunk["_feature_blocks.layer4.2.bn3.bias"]
    torch.save(content, tmp_path / "part.torch")
    with pytest.raises(ConfigError, match=r"has no trunk\.base_model\..*layer4\.2\.bn3\.weight \(2 missing in all\)"):
        check_initial_weights(config_of("benchmark/linear/imagenet", tmp_path / "part.torch"))


def test_weights_of_a_run_that_diverged_are_refused(checkpoints, tmp_path):
    content = torch.load(checkpoints["resnet50"], weights_only=True)
    content["classy_state_dict"]["base_model"]["model"]["trunk"]["_feature_blocks.conv1.weight"][0] = torch.nan
    torch.save(content, tmp_path / "nan.torch")
    with pytest.raises(ConfigError, match=r"conv1.weight has numbers that are not finite"):
        check_initial_weights(config_of("benchmark/linear/imagenet", tmp_path / "nan.torch"))


def test_files_without_a_trunk_are_refused(checkpoints, tmp_path):
    whole = checkpoints["resnet50"].read_bytes()

    def refused(path: Path, match: str, *overrides: str) -> None:
        with pytest.raises(ConfigError, match=match) as caught:
            check_initial_weights(config_of("benchmark/linear/imagenet", path, *overrides))
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    heads = tmp_path / "heads.torch"
    model = {"trunk": {}, "heads": {"0.clf.0.weight": torch.zeros(2, 2)}}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}}, heads)
    refused(heads, "holds no trunk: it may hold only a head")
    cut = tmp_path / "cut.torch"
    cut.write_bytes(whole[: len(whole) // 2])
    refused(cut, "is not a checkpoint that can be read safely")
    evil = tmp_path / "evil.torch"
    evil.write_bytes(pickle.dumps(subprocess.Popen))
    refused(evil, "is not a checkpoint that can be read safely")
    plain = tmp_path / "plain.pth"
    export(checkpoints["resnet50"], "torchvision", plain)
    refused(plain, r"no 'classy_state_dict' \(STATE_DICT_KEY_NAME\); make one by pirl export .* --format vissl")
    refused(plain, "does not fit: Model provided", "config.MODEL.WEIGHTS_INIT.STATE_DICT_KEY_NAME=''")
    check_initial_weights(  # as VISSL's documentation names other files
        config_of(
            "benchmark/linear/imagenet",
            plain,
            "config.MODEL.WEIGHTS_INIT.STATE_DICT_KEY_NAME=''",
            "config.MODEL.WEIGHTS_INIT.APPEND_PREFIX=trunk.base_model._feature_blocks.",
        )
    )


def test_the_launcher_refuses_them_in_one_sentence(checkpoints, photo_folder, tmp_path):
    done = subprocess.run(
        [
            sys.executable, "-m", "pirl_plugin.launch.launcher", "config=benchmark/linear/imagenet",
            "config.MACHINE.DEVICE=cpu", "config.DISTRIBUTED.NUM_PROC_PER_NODE=1", "config.DISTRIBUTED.BACKEND=gloo",
            f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", f"config.DATA.TEST.DATA_PATHS=[{photo_folder}]",
            f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={checkpoints['resnet18']}", f"config.CHECKPOINT.DIR={tmp_path}/run",
        ],
        capture_output=True, text=True, timeout=500, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert line.startswith("Error: MODEL.WEIGHTS_INIT.PARAMS_FILE is") and "depth 50" in line
