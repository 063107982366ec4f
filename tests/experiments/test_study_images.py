"""The images of a study, as folders of links."""

import shutil
import tarfile

import numpy as np
import pytest

from pirl_plugin.data.image_files import list_images
from pirl_plugin.experiments.study_evaluation import few_label_accuracy
from pirl_plugin.experiments.study_images import lay_out_images, some_labels
from pirl_plugin.validation import ConfigError


def test_images_are_linked_as_many_of_each_class_and_never_mixed_with_others(photo_folder, tmp_path):
    assert lay_out_images(photo_folder, tmp_path / "data", 20) == 20
    assert {len(list(folder.iterdir())) for folder in (tmp_path / "data").iterdir()} == {5}
    assert lay_out_images(photo_folder, tmp_path / "data", 20) == 20  # again
    with pytest.raises(ConfigError, match="has 20 images, not the requested 8"):
        lay_out_images(photo_folder, tmp_path / "data", 8)
    other = tmp_path / "other"
    shutil.copytree(photo_folder, other)
    with pytest.raises(ConfigError, match="give another --output for other images"):
        lay_out_images(other, tmp_path / "data", 20)


def test_images_that_cannot_be_read_are_left_out_by_name_and_others_taken_in_their_place(
    photo_folder, tmp_path, capsys
):
    photos = tmp_path / "photos"
    shutil.copytree(photo_folder, photos)
    first, second, *_ = sorted(photos.iterdir())
    broken = sorted(first.iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    (second / "a" / "b").mkdir(parents=True)
    for folder in ("a", "a/b"):  # of one name
        shutil.copy(sorted(second.glob("*.*"))[0], second / folder / "same.png")
    assert lay_out_images(photos, tmp_path / "data", 20) == 20
    assert f"1 image could not be read and was left out: {broken}" in capsys.readouterr().out
    linked = [path.name for path in (tmp_path / "data" / first.name).iterdir()]
    assert len(linked) == 5 and broken.name not in linked
    assert lay_out_images(photos, tmp_path / "data", 20) == 20
    everything = sum(len(list_images(folder)) for folder in (first, second))
    shutil.copytree(first, tmp_path / "two" / first.name)
    shutil.copytree(second, tmp_path / "two" / second.name)
    assert lay_out_images(tmp_path / "two", tmp_path / "nested") == everything - 1
    assert {"a%2Fsame.png", "a%2Fb%2Fsame.png"} < {path.name for path in (tmp_path / "nested" / second.name).iterdir()}
    for file in (tmp_path / "two" / first.name).iterdir():
        file.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"None of the .* images of .*{first.name} can be read"):
        lay_out_images(tmp_path / "two", tmp_path / "none")


def test_a_study_of_an_archive_is_refused(photo_folder, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for folder in photo_folder.iterdir():
            archive.add(folder, folder.name)
    with pytest.raises(ConfigError, match=r"photos.tar is not a folder of image files; a study needs one"):
        lay_out_images(tmp_path / "photos.tar", tmp_path / "data")


def test_few_labels_are_drawn_of_every_class_alike():
    labels = np.repeat(np.arange(10), 50)
    chosen = some_labels(labels, 0.1, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [5] * 10 and len(set(chosen)) == 50
    assert len(some_labels(labels, 0.001, seed=0)) == 10
    assert not np.array_equal(chosen, some_labels(labels, 0.1, seed=1))
    features = np.eye(10)[labels] + 0.01 * np.random.default_rng(0).normal(size=(500, 10))
    assert few_label_accuracy(features, labels, features, labels, 0.1) == 1.0
