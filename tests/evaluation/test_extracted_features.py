import numpy as np
import pytest

from pirl_plugin.evaluation.extracted_features import collect, layers_and_splits
from pirl_plugin.validation import ConfigError


def write(folder, rank, chunk, split, layer, indices, seed):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(len(indices), 3, 2)).astype(np.float32)
    for part, values in (("features", features), ("targets", rng.integers(0, 9, (len(indices), 1))), ("inds", indices)):
        np.save(folder / f"rank{rank}_chunk{chunk}_{split}_{layer}_{part}.npy", np.asarray(values))
    return features


def test_it_reads_what_vissls_own_loader_reads(tmp_path):
    from vissl.utils.extract_features_utils import ExtractedFeaturesLoader

    write(tmp_path, 0, 0, "train", "res5", [4, 0, 2], 1)
    write(tmp_path, 0, 1, "train", "res5", [9], 2)
    write(tmp_path, 1, 0, "train", "res5", [1, 3, 5], 3)
    write(tmp_path, 10, 0, "train", "res5avg", [0], 4)
    assert layers_and_splits(tmp_path) == {("train", "res5"), ("train", "res5avg")}
    features, targets, indices = collect(tmp_path, "train", "res5")
    expected = ExtractedFeaturesLoader.load_features(str(tmp_path), "train", "res5", flatten_features=True)
    assert np.array_equal(features, expected["features"]) and features.shape == (7, 6)
    assert np.array_equal(targets, expected["targets"].reshape(-1))
    assert np.array_equal(indices, expected["inds"]) and indices.tolist() == [0, 1, 2, 3, 4, 5, 9]


def test_an_image_that_two_ranks_read_is_taken_once(tmp_path):
    first = write(tmp_path, 0, 0, "test", "res5", [0, 1], 1)
    write(tmp_path, 1, 0, "test", "res5", [1, 2], 2)
    features, _, indices = collect(tmp_path, "test", "res5")
    assert indices.tolist() == [0, 1, 2] and np.array_equal(features[1], first[1].reshape(-1))


def test_a_folder_without_such_features_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no features of the split train and layer res5"):
        collect(tmp_path, "train", "res5")
