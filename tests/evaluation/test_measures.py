import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from pirl_plugin.evaluation import measures
from pirl_plugin.evaluation.logistic import fit_logistic, logistic_accuracy
from pirl_plugin.evaluation.measures import instance_retrieval, linear_probe, unit, weighted_knn
from pirl_plugin.evaluation.search import nearest_neighbors
from pirl_plugin.validation import ConfigError


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


def all_at_once(queries, bank, k):
    """The reference: every similarity in float64, sorted."""
    scores = unit(queries, np.float64) @ unit(bank, np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@pytest.mark.parametrize(("k", "chunk", "bank_chunk"), [(1, 7, 300), (5, 7, 1), (20, 40, 11), (300, 3, 100)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_neighbours_found_in_pieces_are_those_of_the_whole_bank(k, chunk, bank_chunk, dtype):
    bank, queries = clusters(1)[0].astype(dtype), clusters(2, num=40)[0].astype(dtype)
    similarities, rows = nearest_neighbors(queries, bank, k, chunk, bank_chunk)
    expected, expected_rows = all_at_once(queries, bank, k)
    np.testing.assert_allclose(similarities, expected, atol=1e-6)
    apart = np.abs(np.diff(expected, axis=1)).min(1, initial=1) > 1e-6  # others may stand in either order
    assert apart.mean() > 0.5 and (rows[apart] == expected_rows[apart]).all()
    assert similarities.dtype == np.float32 and rows.dtype == np.int64


def test_a_bank_is_read_from_its_file_and_stays_as_it_was(tmp_path):
    bank, queries = clusters(1)[0].astype(np.float32), clusters(2, num=9)[0]
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    assert (nearest_neighbors(queries, mapped, 3, bank_chunk=50)[1] == all_at_once(queries, bank, 3)[1]).all()
    assert (np.load(tmp_path / "bank.npy") == bank).all()


def test_a_row_of_nan_is_nobodys_neighbour():
    bank, queries = clusters(1, num=30)[0], clusters(2, num=9)[0]
    bank[[0, 17]] = np.nan
    _, rows = nearest_neighbors(queries, bank, 28, bank_chunk=10)
    assert not np.isin(rows, [0, 17]).any() and all(len(set(row)) == 28 for row in rows)


@pytest.mark.parametrize("k", [0, 31])
def test_more_neighbours_than_rows_are_refused(k):
    features = clusters(1, num=30)[0]
    with pytest.raises(ConfigError, match="number of neighbours k"):
        nearest_neighbors(features, features, k)


def test_votes_counted_in_pieces_are_those_counted_at_once(monkeypatch):
    data = (*clusters(1), *clusters(2, spread=1.5))
    at_once = weighted_knn(*data, k=20)
    monkeypatch.setattr(measures, "VOTERS_AT_ONCE", 7)
    assert weighted_knn(*data, k=20) == at_once and 0.3 < at_once < 1


def test_a_linear_probe_separates_what_is_linear():
    train, train_labels = clusters(1)
    test, test_labels = clusters(2)
    assert linear_probe(train, train_labels, test, test_labels) > 0.9
    shuffled = np.random.default_rng(0).permutation(train_labels)
    assert linear_probe(train, shuffled, test, test_labels) < 0.5


@pytest.mark.parametrize("regularisation", [0.01, 1.0, 100.0])
def test_the_gpus_logistic_regression_solves_scikit_learns_problem(regularisation):
    train, labels = clusters(1, spread=2.0)
    reference = LogisticRegression(C=regularisation, max_iter=2000, tol=1e-8).fit(train, labels)
    weights = fit_logistic(torch.tensor(train), torch.tensor(labels), regularisation, 2000, 1e-8)
    np.testing.assert_allclose(weights[:-1].T - weights[:-1].mean(1), reference.coef_, atol=1e-4)
    test, test_labels = clusters(2, spread=2.0)
    scores = torch.addmm(weights[-1], torch.tensor(test), weights[:-1]).softmax(1)
    np.testing.assert_allclose(scores, reference.predict_proba(test), atol=1e-4)
    assert 0.4 < reference.score(test, test_labels) < 0.99  # a problem with something to get wrong


def test_the_linear_probe_of_a_gpu_gives_the_accuracy_of_the_cpus():
    train, test = clusters(1, spread=2.0), clusters(2, spread=2.0)
    train[0][:, 3] = test[0][:, 3] = 7.0  # says nothing, and has no deviation
    on_gpu = logistic_accuracy(*train, *test, 1.0, 300, 1e-3, torch.device("cpu"))  # the same code
    assert on_gpu == pytest.approx(linear_probe(*train, *test, device="cpu"), abs=0.011)


def test_a_linear_classifier_that_was_stopped_too_soon_is_told_in_one_sentence(caplog, recwarn):
    train, test = clusters(1, spread=2.0), clusters(2, spread=2.0)
    linear_probe(*train, *test, device="cpu")
    logistic_accuracy(*train, *test, 1.0, 300, 1e-3, torch.device("cpu"))  # the GPU's
    assert not caplog.messages
    linear_probe(*train, *test, max_iterations=2, device="cpu")
    logistic_accuracy(*train, *test, 1.0, 2, 1e-3, torch.device("cpu"))
    told = "The linear classifier had not converged after 2 steps; its accuracy"
    assert [message.startswith(told) for message in caplog.messages] == [True, True] and not recwarn.list


def test_instance_retrieval_is_the_share_of_images_found_again():
    features, _ = clusters(1, num=50)
    assert instance_retrieval(features, 3 * features) == 1.0
    assert instance_retrieval(features, features[::-1]) == 0.0
