"""What a tool of VISSL's finds in its folder: nothing of an earlier run that it would take for its own."""

import os
from pathlib import Path

import pytest

from pirl_plugin.launch import tools
from pirl_plugin.validation import ConfigError

OLD = ["rank0_chunk31_train_res5_features.npy", "rank1_chunk0_test_res5_inds.npy", "res5/test_ap.npy"]
SVMS = ["res5/cls3_cost0.5.pickle", "res5/AP_cls3_cost0.5.npy", "res5/crossval_ap.npy", "res5/chosen_cost.npy"]


def composed(folder: Path, photos: Path, weights: Path, *overrides: str):
    given = [f"config.DATA.{split}.DATA_PATHS=[{photos}]" for split in ("TRAIN", "TEST")]
    folders = [f"config.CHECKPOINT.DIR={folder}", f"config.MODEL.WEIGHTS_INIT.PARAMS_FILE={weights}"]
    return tools._compose(["config=benchmark/nearest_neighbor/small_images_cpu", *given, *folders, *overrides])


def left(folder: Path) -> list[str]:
    return [name for name in (*OLD, *SVMS, "res5/kept.npy") if (folder / name).exists()]


def fill(folder: Path) -> None:
    (folder / "res5").mkdir(exist_ok=True)
    for name in (*OLD, *SVMS, "res5/kept.npy"):
        (folder / name).touch()


def test_features_and_results_of_an_earlier_run_go_and_svms_where_anything_differs(photo_folder, tmp_path):
    folder, weights = tmp_path / "out", tmp_path / "w.torch"
    weights.touch()
    composed(folder, photo_folder, weights)
    fill(folder)
    composed(folder, photo_folder, weights)
    assert left(folder) == [*SVMS, "res5/kept.npy"]
    later = (folder / "train_config.yaml").stat().st_mtime + 10
    os.utime(weights, (later, later))  # trained anew
    composed(folder, photo_folder, weights)
    assert left(folder) == ["res5/kept.npy"]
    fill(folder)
    composed(folder, photo_folder, weights, "config.SEED_VALUE=3")
    assert left(folder) == ["res5/kept.npy"]
    fill(folder)
    composed(folder, photo_folder, weights, "config.SEED_VALUE=3", "node_id=1")  # the first node's business
    assert left(folder) == [*OLD, *SVMS, "res5/kept.npy"]


@pytest.mark.parametrize("name", ["model_phase3.torch", "model_final_checkpoint_phase9.torch"])
def test_the_folder_of_a_training_is_refused_and_left_as_it_was(name, photo_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).touch()
    (tmp_path / "run" / "train_config.yaml").write_text("the run's own")
    (tmp_path / "w.torch").touch()
    with pytest.raises(ConfigError, match="the folder of a training; give the features another folder"):
        composed(tmp_path / "run", photo_folder, tmp_path / "w.torch")
    assert (tmp_path / "run" / "train_config.yaml").read_text() == "the run's own"
