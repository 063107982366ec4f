import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from vissl.utils.extract_features_utils import ExtractedFeaturesLoader

from pirl_plugin.commands.__main__ import main
from pirl_plugin.evaluation.extracted_features import collect
from pirl_plugin.evaluation.joined_features import join, join_folders
from pirl_plugin.evaluation.measures import weighted_knn
from pirl_plugin.validation import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def write(folder, split, layer, features, targets, parts=2):
    """As VISSL's extraction does: in several chunks, in any order of the images."""
    folder.mkdir(exist_ok=True)
    order = np.random.default_rng(0).permutation(len(features))
    for number, chosen in enumerate(np.array_split(order, parts)):
        for kind, values in (("features", features), ("targets", targets.reshape(-1, 1)), ("inds", np.arange(1000))):
            np.save(folder / f"rank0_chunk{number}_{split}_{layer}_{kind}.npy", values[chosen])


@pytest.fixture
def two_networks(tmp_path):
    """Two networks that see two bits of the class each; folders of their features."""
    random = np.random.default_rng(1)
    folders, classes = [], {}
    for split, count in (("train", 200), ("test", 100)):
        classes[split] = random.integers(16, size=count)
    for number in range(2):
        folders.append(tmp_path / f"network{number}")
        for split, labels in classes.items():
            seen = labels % 4 if number else labels // 4
            features = np.eye(4, dtype=np.float32)[seen] * (1 + 99 * number) + random.normal(0, 0.1, (len(labels), 4))
            write(folders[-1], split, "res5avg", features.astype(np.float32), labels)
    return folders, classes


def test_joining_is_concatenation_of_unit_vectors():
    first, second = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[5.0], [2.0]])
    assert np.allclose(join([first, second]), [[0.6, 0.8, 1.0], [0, 0, 1.0]])
    assert np.allclose(join([first, second], normalise=False), [[3, 4, 5], [0, 0, 2]])


def test_images_keep_their_place_and_label(two_networks, tmp_path):
    folders, classes = two_networks
    sizes = join_folders(folders, tmp_path / "both")
    assert sizes == {("test", "res5avg"): (100, 8), ("train", "res5avg"): (200, 8)}
    for split, labels in classes.items():
        features, targets, _ = collect(tmp_path / "both", split, "res5avg")
        assert np.array_equal(targets, labels)
        assert np.array_equal(features[:, :4].argmax(1), labels // 4) and np.array_equal(
            features[:, 4:].argmax(1), labels % 4
        )


def test_several_labels_of_an_image_stay_with_it_and_are_read_by_vissls_svms(two_networks, tmp_path, capsys):
    folders, classes = two_networks
    several = {
        split: np.eye(16, dtype=np.int64)[labels] - np.roll(np.eye(16, dtype=np.int64), 1, 1)[labels]
        for split, labels in classes.items()
    }  # 1 yes, 0 no, -1 unclear, as in VOC07
    for folder in folders:
        for path in folder.glob("*_targets.npy"):
            np.save(
                path,
                several["train" if "_train_" in path.name else "test"][np.load(str(path).replace("targets", "inds"))],
            )
    command = ["join-features", *map(str, folders), "--output", str(tmp_path / "both")]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code is None and capsys.readouterr().out.count("no kNN, which takes one label per image") == 3
    for split, labels in several.items():
        features, targets, _ = collect(tmp_path / "both", split, "res5avg")
        assert np.array_equal(targets, labels) and np.array_equal(features[:, :4].argmax(1), classes[split] // 4)
        read = ExtractedFeaturesLoader.load_features(str(tmp_path / "both"), split, "res5avg", flatten_features=True)
        assert np.array_equal(read["targets"], labels)
    with pytest.raises(ConfigError, match="have 16 labels each, as in VOC07; kNN takes one"):
        weighted_knn(features, targets, features, targets)


def test_the_script_shows_that_two_networks_know_more_than_one(two_networks, tmp_path):
    folders, _ = two_networks
    command = [sys.executable, ROOT / "extra_scripts" / "join_features.py", *folders]
    done = subprocess.run([*command, "--output", tmp_path / "both", "--neighbors", "5"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, both = (float(line.split()[-1].rstrip("%")) for line in done.stdout.splitlines()[-3:])
    assert both == 100 and max(first, second) < 60


def test_features_that_do_not_fit_are_refused(two_networks, tmp_path):
    folders, classes = two_networks
    with pytest.raises(ConfigError, match="network1 holds features already"):
        join_folders(folders, folders[1])
    with pytest.raises(ConfigError, match="at least two"):
        join_folders(folders[:1], tmp_path / "x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no extracted features"):
        join_folders([folders[0], tmp_path / "empty"], tmp_path / "x")
    write(tmp_path / "other", "train", "res4", np.ones((3, 2), np.float32), np.arange(3))
    with pytest.raises(ConfigError, match="no split and layer in common"):
        join_folders([folders[0], tmp_path / "other"], tmp_path / "x")
    for split in classes:
        write(tmp_path / "third", split, "res5avg", np.ones((60, 2), np.float32), np.arange(60))
    with pytest.raises(ConfigError, match=r"have 100 and 60 images of the split test"):
        join_folders([folders[0], tmp_path / "third"], tmp_path / "x")
