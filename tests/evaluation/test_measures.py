import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from pirl_plugin.evaluation.measures import instance_retrieval, linear_probe, nearest_neighbors, weighted_knn


def clusters(seed, num=300, classes=4, spread=0.7):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, 12))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=num)
    return centres[labels] + spread * rng.normal(size=(num, 12)), labels


@pytest.mark.parametrize("k", [1, 20, 300])
def test_weighted_knn_agrees_with_scikit_learns(k):
    train, train_labels = clusters(1)
    test, test_labels = clusters(2, spread=1.5)
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(train, train_labels)
    expected = reference.score(test, test_labels)
    assert weighted_knn(train, train_labels, test, test_labels, k=k) == pytest.approx(expected, abs=0.004)


def test_knn_with_fewer_images_than_k_uses_them_all():
    train, labels = clusters(1, num=10)
    assert weighted_knn(train, labels, train, labels, k=200) > 0.5


def test_neighbours_come_in_falling_order():
    features, _ = clusters(3)
    similarities, rows = nearest_neighbors(features[:7], features, 5, chunk=3)
    assert (rows[:, 0] == np.arange(7)).all()
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_a_linear_probe_separates_what_is_linear():
    train, train_labels = clusters(1)
    test, test_labels = clusters(2)
    assert linear_probe(train, train_labels, test, test_labels) > 0.9
    shuffled = np.random.default_rng(0).permutation(train_labels)
    assert linear_probe(train, shuffled, test, test_labels) < 0.5


def test_instance_retrieval_is_the_share_of_images_found_again():
    features, _ = clusters(1, num=50)
    assert instance_retrieval(features, 3 * features) == 1.0
    assert instance_retrieval(features, features[::-1]) == 0.0
