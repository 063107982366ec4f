"""Quick measures of a representation on features: weighted kNN, linear probe, instance retrieval."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pirl_plugin.registry import Registry
from pirl_plugin.validation import check_integer, check_number

# (train features [N, D], labels [N], test features [Q, D], labels [Q]) -> a figure in [0, 1], the higher the better.
Evaluation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]
Function = TypeVar("Function", bound=Callable[..., float])
EVALUATIONS: Registry[Evaluation] = Registry("evaluation")


def register_evaluation(name: str) -> Callable[[Function], Function]:
    """Register a function of features and labels under `name`, which `pirl evaluate --evaluations` then takes."""

    def register(function: Function) -> Function:
        EVALUATIONS.register(name, function)
        return function

    return register


def unit(features: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Rows [N, D] brought to norm 1, in `dtype`."""
    features = features.astype(dtype)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def nearest_neighbors(
    queries: np.ndarray, bank: np.ndarray, k: int, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar rows of `bank` [N, D] to each of `queries` [Q, D], by cosine similarity.

    Returns:
        similarities float32 [Q, k], falling, and row numbers int64 [Q, k]. k is at most N.
    """
    check_integer(k, "the number of neighbours k", 1, len(bank))
    queries, bank = unit(queries), unit(bank)
    similarities, rows = [], []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ bank.T
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        values = np.take_along_axis(scores, best, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        similarities.append(np.take_along_axis(values, order, 1))
        rows.append(np.take_along_axis(best, order, 1))
    return np.concatenate(similarities), np.concatenate(rows)


@register_evaluation("knn")
def weighted_knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    k: int = 200,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy in [0, 1] of NPID's kNN: each of the k neighbours votes exp(cosine / temperature).

    Args:
        train_features, test_features: [N, D], [Q, D]; any real dtype.
        train_labels, test_labels: integers [N], [Q] from 0.
        k: neighbours; where there are fewer training images, all of them.
    """
    check_number(temperature, "the kNN temperature", 0, above=True)
    similarities, rows = nearest_neighbors(test_features, train_features, min(k, len(train_features)))
    votes = np.zeros((len(test_features), int(train_labels.max()) + 1))
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    np.add.at(votes, (np.arange(len(rows))[:, None], train_labels[rows]), weights)
    return float((votes.argmax(1) == test_labels).mean())


@register_evaluation("linear")
def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    regularisation: float = 1.0,
    max_iterations: int = 300,
) -> float:
    """Top-1 accuracy in [0, 1] of logistic regression on standardised frozen features.

    regularisation: inverse strength of the L2 penalty (scikit-learn's C).
    """
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=regularisation, max_iter=max_iterations, tol=1e-3)
    )
    classifier.fit(train_features, train_labels)
    return float(classifier.score(test_features, test_labels))


def instance_retrieval(first: np.ndarray, second: np.ndarray) -> float:
    """Share in [0, 1] of images whose nearest feature among `second` [N, D] is that of the same image.

    first, second: features of two different crops of the same N images, in the same order.
    """
    _, rows = nearest_neighbors(first, second, 1)
    return float((rows[:, 0] == np.arange(len(first))).mean())
