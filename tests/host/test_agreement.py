"""Ranks that disagree are refused before the first step, and so is a resume with other images."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pirl_plugin.data.image_files import files_identity
from pirl_plugin.host.agreement import changes, check_same_images, flattened, settings
from pirl_plugin.launch.launcher import compose
from pirl_plugin.validation import ConfigError
from runs import free_port

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "config=pretrain/pirl/jigsaw_small_images_cpu", "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
    "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8", "config.OPTIMIZER.num_epochs=2",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_names_in_their_order_make_the_identity_wherever_the_folder_is():
    files = [f"/data/train/class{n % 3}/{n:03d}.jpg" for n in range(30)]
    first = files_identity(files)
    assert first == files_identity([file.replace("/data/train", "/mnt/x") for file in files])
    assert first == files_identity(np.array([file.encode() for file in files]))
    others = [files[::-1], files[:-1], [*files[:-1], "/data/train/class2/zzz.jpg"],
              [file.replace("/class0/", "/class9/") for file in files]]  # fmt: skip
    assert len({first, *map(files_identity, others)}) == 5
    assert files_identity([]) != files_identity(["a.jpg"])


def test_what_is_a_nodes_own_is_not_compared_and_all_else_is(photo_folder):
    def of(*overrides: str) -> dict[str, str]:
        return settings(compose([*TINY, f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]", *overrides]))

    plain = of("config.CHECKPOINT.DIR=/a")
    assert plain == of("config.CHECKPOINT.DIR=/b", "config.DATA.NUM_DATALOADER_WORKERS=3")
    assert plain["version of torch"] and plain["LOSS.pirl_loss.lambda_"] == "0.5"
    for override in (
        "config.LOSS.pirl_loss.lambda_=0.25",
        "config.SEED_VALUE=1",
        "config.OPTIMIZER.weight_decay=0.001",
    ):
        assert of(override) != plain


def test_lists_of_mappings_are_flattened_to_their_keys():
    config = {"A": [{"name": "x", "b": [1, 2]}, {"c": None}], "D": {"e": 1}}
    assert dict(flattened(config)) == {"A.0.name": "x", "A.0.b": [1, 2], "A.1.c": None, "D.e": 1}


def test_a_resume_says_what_was_changed_and_refuses_other_images():
    assert changes({"LOSS.a": "1", "LOSS.b": "2"}, {"LOSS.a": "1", "LOSS.b": "3"}) == [
        "LOSS.b is 3; the checkpoint's run had 2"
    ]
    assert changes({}, {"LOSS.a": "1"}) == []  # a checkpoint of before
    filled_in = {"LOSS.pirl_loss.num_train_samples": "48", "LOSS.pirl_loss.name": "'pirl_loss'", "LOSS.a": "1"}
    assert changes(filled_in, {"LOSS.pirl_loss.num_train_samples": "-1", "LOSS.a": "1"}) == []  # by VISSL
    now = {"number of images": "4", "names of the images": "x"}
    check_same_images({}, now, accepted=False)
    check_same_images(now, now, accepted=False)
    with pytest.raises(ConfigError, match=r"names of the images was y and is x .*RESUME_WITH_OTHER_IMAGES=True"):
        check_same_images({**now, "names of the images": "y"}, now, accepted=False)
    check_same_images({**now, "names of the images": "y"}, now, accepted=True)


def two_nodes(folder: Path, *overrides_of_nodes: list[str]) -> list[tuple[int, str]]:
    """Exit code and output of two launchers of one rank each, as two nodes."""
    port = free_port()
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "pirl_plugin.launch.launcher", *TINY, f"node_id={node}",
             "config.DISTRIBUTED.NUM_NODES=2", f"config.DISTRIBUTED.RUN_ID=localhost:{port}",
             f"config.CHECKPOINT.DIR={folder}/node{node}", *overrides],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, cwd=folder,
        )
        for node, overrides in enumerate(overrides_of_nodes)
    ]  # fmt: skip
    printed = [node.communicate(timeout=500)[0] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, printed, strict=True)]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "what", ["lambda", pytest.param("learning rate", marks=SLOW), pytest.param("names", marks=SLOW)]
)
def test_nodes_that_differ_are_refused_on_both_with_the_first_thing_that_differs(what, photo_folder, tmp_path):
    shutil.copytree(photo_folder, tmp_path / "photos")
    data = f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}/photos]"
    own, match = {
        "learning rate": (
            "config.OPTIMIZER.param_schedulers.lr.start_value=0.05",
            r"lr.start_value is 0.015 .* 0.05 on",
        ),
        "lambda": ("config.LOSS.pirl_loss.lambda_=0.25", r"LOSS.pirl_loss.lambda_ is 0.5 on rank 0 and 0.25 on rank 1"),
        "names": (
            f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}/other]",
            r"differ in their images: train: names of the im",
        ),
    }[what]
    if what == "names":
        shutil.copytree(photo_folder, tmp_path / "other")
        (tmp_path / "other" / "class0" / "000.jpg").rename(tmp_path / "other" / "class0" / "00x.jpg")
    for code, printed in two_nodes(tmp_path, [data], [data, own]):
        assert code == 1 and re.search(match, printed.strip().splitlines()[-1]), printed[-1500:]
    assert not list(tmp_path.rglob("model_*.torch"))


@pytest.mark.slow
def test_nodes_without_a_common_folder_go_on_from_the_first_ones_checkpoint(photo_folder, tmp_path):
    data = [f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]"]
    first = [*data, "config.OPTIMIZER.num_epochs=1"]
    for code, printed in two_nodes(tmp_path, first, first):
        assert code == 0, printed[-1500:]
    (tmp_path / "node0" / "model_final_checkpoint_phase0.torch").rename(tmp_path / "node0" / "model_phase0.torch")
    (tmp_path / "node0" / "checkpoint.torch").unlink()
    assert not list((tmp_path / "node1").glob("model_*.torch"))
    for code, printed in two_nodes(tmp_path, data, data):
        assert code == 0, printed[-1500:]
    assert (tmp_path / "node0" / "model_final_checkpoint_phase1.torch").is_file()


@pytest.fixture
def begun(photo_folder, tmp_path) -> list[str]:
    """The command of a run of which one epoch is done, without its number of epochs."""
    shutil.copytree(photo_folder, tmp_path / "photos")
    places = [f"config.DATA.TRAIN.DATA_PATHS=[{tmp_path}/photos]", f"config.CHECKPOINT.DIR={tmp_path}/run"]
    command = [sys.executable, "-m", "pirl_plugin.launch.launcher", *TINY, *places]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:]
    run = tmp_path / "run"
    (run / "model_final_checkpoint_phase1.torch").rename(run / "model_phase1.torch")
    return command


@pytest.mark.slow
def test_a_resume_with_a_renamed_file_fewer_epochs_or_other_settings(begun, tmp_path):
    def resumed(*overrides: str) -> tuple[int, str]:
        done = subprocess.run([*begun, *overrides], capture_output=True, text=True, env=ENVIRONMENT, timeout=500)
        return done.returncode, done.stdout + done.stderr

    code, printed = resumed("config.OPTIMIZER.num_epochs=2")
    assert code == 1 and "OPTIMIZER.num_epochs is 2, but 2 epochs of the checkpoint" in printed.splitlines()[-1]
    (tmp_path / "photos" / "class0" / "000.jpg").rename(tmp_path / "photos" / "class0" / "00x.jpg")
    code, printed = resumed("config.OPTIMIZER.num_epochs=3")
    assert code == 1 and "The checkpoint has other images: their names of the images was" in printed.splitlines()[-1]
    code, printed = resumed("config.OPTIMIZER.num_epochs=3", "config.CHECKPOINT.RESUME_WITH_OTHER_IMAGES=True",
                            "config.LOSS.pirl_loss.lambda_=0.25")  # fmt: skip
    assert code == 0, printed[-1500:]
    assert "Resumed with another setting: LOSS.pirl_loss.lambda_ is 0.25; the checkpoint's run had 0.5" in printed
    assert "Resumed with another setting: OPTIMIZER.num_epochs is 3; the checkpoint's run had 2" in printed
