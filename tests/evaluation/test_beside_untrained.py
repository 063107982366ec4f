"""kNN beside the untrained network's: which images vote, which are measured, and when there is nothing to say."""

import numpy as np
import pytest

from pirl_plugin.evaluation.beside_untrained import FEWEST_OF_A_CLASS, labelled_split


@pytest.fixture
def folder(tmp_path):
    for name, count in (("a", 40), ("b", 20)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number:02}.jpg").touch()
    return tmp_path


def test_every_fifth_image_of_a_class_is_measured_on_and_none_does_both(folder):
    (voters, own), (measured, wanted) = labelled_split(folder, 1000)
    assert (np.bincount(own).tolist(), np.bincount(wanted).tolist()) == ([32, 16], [8, 4])
    assert not set(voters) & set(measured) and len(set(voters + measured)) == 60
    assert [f"/{'ab'[label]}/" in name for name, label in zip(voters + measured, [*own, *wanted], strict=True)] == [
        True
    ] * 60


def test_no_more_images_than_asked_for_as_many_of_one_class_as_of_another(folder):
    (_, own), (_, wanted) = labelled_split(folder, 30)
    assert (np.bincount(own).tolist(), np.bincount(wanted).tolist()) == ([12, 12], [3, 3])


def test_where_a_vote_would_say_little_there_is_none(folder, tmp_path_factory):
    assert labelled_split(folder, 2 * FEWEST_OF_A_CLASS - 1) is None
    for number in range(9):
        (folder / "b" / f"{number:02}.jpg").unlink()
    assert labelled_split(folder, 1000) is not None  # eleven are left
    (folder / "b" / "10.jpg").unlink()
    (folder / "b" / "11.jpg").unlink()
    assert labelled_split(folder, 1000) is None
    assert labelled_split(folder / "a", 1000) is None and labelled_split(folder / "list.txt", 1000) is None
