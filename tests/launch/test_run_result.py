"""The closing lines of a run, from files of the kind that VISSL and the hooks write; real runs: test_launcher.py."""

import json
import os
from pathlib import Path

import pytest

from pirl_plugin.launch import composition, run_result
from pirl_plugin.launch.run_result import closing, final_checkpoint


def config_of(folder: Path, name: str = "pretrain/pirl/jigsaw_small_images_cpu", *overrides: str):
    folder.mkdir(exist_ok=True)
    paths = [f"config.CHECKPOINT.DIR={folder}", "config.DATA.TRAIN.DATA_PATHS=[photos]"]
    return composition.compose([f"config={name}", *paths, *overrides], check=False).config


def lines_of(*arguments) -> dict[str, str]:
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in closing(*arguments)}


@pytest.fixture
def finished(tmp_path):
    """A finished run of two epochs, without class folders."""
    config = config_of(tmp_path / "my run", "pretrain/pirl/jigsaw_small_images_cpu",
                       "config.HOOKS.PIRL_MONITOR.compare_images=0")  # fmt: skip
    folder = tmp_path / "my run"
    (folder / "progress.csv").write_text("iteration,epoch,loss\n20,1,0.0\n40,2,3.14159\n")
    (folder / "monitor.csv").write_text("epoch,spread,effective_rank,knn_accuracy\n1,0.5,9,\n2,0.9321,17.66,0.4567\n")
    (folder / "model_final_checkpoint_phase1.torch").touch()
    return config, folder


def test_a_finished_pretraining_names_its_last_figures_its_file_and_what_to_do_with_it(finished):
    config, folder = finished
    config.HOOKS.PIRL_MONITOR.knn_test = "held_out"
    final = folder / "model_final_checkpoint_phase1.torch"
    assert lines_of(config, "train", 12.34) == {
        "took": "12.3 minutes",
        "trained": "2 epochs, 40 iterations, loss 3.1416",
        "memory bank": "spread 0.932, effective rank 17.7",
        "kNN": "45.7% of held_out",
        "checkpoint": str(final),
        "features": f"pirl embed '{final}' PHOTOS --output features.npy",
        "evaluate": f"pirl evaluate '{final}' --train DIR --test DIR",
        "weights": f"pirl export '{final}' --format safetensors --output weights.safetensors",
    }
    assert "took" not in lines_of(config, "train", None)


def test_a_run_that_did_not_end_names_no_checkpoint(finished):
    config, folder = finished
    (folder / "model_final_checkpoint_phase1.torch").rename(folder / "model_phase0.torch")
    assert set(lines_of(config, "train", 1.0)) == {"took", "trained", "memory bank", "kNN"}
    assert final_checkpoint(folder) is None


@pytest.mark.parametrize(("trained", "untrained", "warned"), [(0.4, 0.5, True), (0.5, 0.5, False), (0.6, 0.5, False)])
def test_features_worse_than_untrained_ones_are_warned_of(finished, monkeypatch, trained, untrained, warned):
    config, _ = finished
    config.HOOKS.PIRL_MONITOR.compare_images = 100
    found = {"PIRL": trained, "untrained": untrained, "images": 100.0}
    monkeypatch.setattr(run_result, "load_checkpoint", lambda path: {})
    monkeypatch.setattr(run_result, "knn_beside_untrained", lambda config, checkpoint, path, most: found)
    sentence = lines_of(config, "train", 1.0)["kNN beside untrained"]
    assert sentence.startswith(f"{100 * trained:.1f}%, untrained {100 * untrained:.1f}% (100 images of the training")
    assert ("Warning: the features are worse" in sentence) == warned


def test_a_comparison_that_fails_is_named_and_the_rest_is_said(finished):
    config, _ = finished  # whose checkpoint is an empty file
    config.HOOKS.PIRL_MONITOR.compare_images = 100
    lines = lines_of(config, "train", 1.0)
    assert lines["kNN beside untrained"].startswith("not measured: ") and "weights" in lines
    config.DATA.TRAIN.DATA_PATHS = ["a", "b"]  # has no classes of its own
    assert "kNN beside untrained" not in lines_of(config, "train", 1.0)


def test_an_evaluation_names_each_accuracy_at_its_end_and_its_best_even_after_a_kill(tmp_path):
    config = config_of(tmp_path / "linear", "benchmark/linear/small_images_cpu")
    rows = [{"test_accuracy_list_meter": {"top_1": {"res4": first, "res5": first + 1}, "top_5": {"res5": 90.0}},
             "train_accuracy_list_meter": {"top_1": {"res5": 99.0}}, "iteration": 5}
            for first in (40.0, 60.0, 50.0)]  # fmt: skip
    text = "\n".join(map(json.dumps, rows)) + '\n{"test_accuracy_list_meter": {"top_1": {"res4": 7'
    (tmp_path / "linear" / "metrics.json").write_text(text)
    (tmp_path / "linear" / "unreadable_test_rank0.txt").write_text("a.jpg\n")
    lines = lines_of(config, "train", None)
    assert lines == {
        "res4 top_1": "50.00 at the end, 60.00 at best",
        "res5 top_1": "51.00 at the end, 61.00 at best",
        "top_5": "90.00 at the end, 90.00 at best",
        "not read": f"1 images of test; named in {tmp_path}/linear/unreadable_*rank*.txt",
    }


def test_an_extraction_names_the_folder_of_its_features(tmp_path):
    config = config_of(tmp_path / "run", "benchmark/nearest_neighbor/small_images_cpu")
    config.EXTRACT_FEATURES.OUTPUT_DIR = ""
    assert closing(config, "extract_features", 2.0) == ["took      2.0 minutes", f"features  {tmp_path}/run"]
    config.EXTRACT_FEATURES.OUTPUT_DIR = "elsewhere"
    assert closing(config, "extract_features", None) == ["features  elsewhere"]


def test_of_several_final_checkpoints_the_newest_counts(tmp_path):
    for phase, time in ((19, 100), (9, 200)):
        path = tmp_path / f"model_final_checkpoint_phase{phase}.torch"
        path.touch()
        os.utime(path, (time, time))
    assert final_checkpoint(tmp_path).name == "model_final_checkpoint_phase9.torch"
