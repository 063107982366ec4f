"""Quick measures of a representation on features: weighted kNN, linear probe, instance retrieval."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from pirl_plugin.evaluation.logistic import logistic_accuracy, warn_not_converged
from pirl_plugin.evaluation.search import nearest_neighbors
from pirl_plugin.network.devices import choose_device
from pirl_plugin.registry import Registry
from pirl_plugin.validation import ConfigError, check_number

# (train features [N, D], labels [N], test features [Q, D], labels [Q]) -> a figure in [0, 1], higher is better.
Evaluation = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], float]
Function = TypeVar("Function", bound=Callable[..., float])
EVALUATIONS: Registry[Evaluation] = Registry("evaluation")
VOTERS_AT_ONCE = 4096  # test images; with 1,000 classes, 33 MB of votes


def register_evaluation(name: str) -> Callable[[Function], Function]:
    """Register a function of features and labels under `name`, which `pirl evaluate --evaluations` then accepts."""

    def register(function: Function) -> Function:
        EVALUATIONS.register(name, function)
        return function

    return register


def unit(features: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Rows [N, D] scaled to norm 1, in `dtype`."""
    features = features.astype(dtype)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def usual_neighbors(images: int, classes: int) -> int:
    """k for a kNN among this many images: 200, but at most half a class."""
    return max(1, min(200, images // (2 * classes)))


@register_evaluation("knn")
def weighted_knn(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    k: int = 200,
    temperature: float = 0.07,
    device: str | torch.device | None = None,
) -> float:
    """Top-1 accuracy in [0, 1] of NPID's kNN: each of the k neighbours votes exp(cosine / temperature).

    Args:
        train_features, test_features: [N, D], [Q, D]; any real dtype.
        train_labels, test_labels: integers [N], [Q] from 0.
        k: neighbours; all training images if there are fewer.
        device: where to search for them; None for the GPU if there is one.

    Raises:
        ConfigError: for labels [N, classes].
    """
    check_number(temperature, "the kNN temperature", 0, above=True)
    if np.ndim(train_labels) != 1:
        raise ConfigError(f"The images have {train_labels.shape[1]} labels each, as in VOC07; kNN takes one: use SVMs.")
    k = min(k, len(train_features))
    similarities, rows = nearest_neighbors(test_features, train_features, k, device=device)
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    classes, right = int(train_labels.max()) + 1, 0
    for start in range(0, len(rows), VOTERS_AT_ONCE):
        mine = slice(start, start + VOTERS_AT_ONCE)
        votes = np.zeros((len(rows[mine]), classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], train_labels[rows[mine]]), weights[mine])
        right += int((votes.argmax(1) == test_labels[mine]).sum())
    return right / len(rows)


@register_evaluation("linear")
def linear_probe(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    regularisation: float = 1.0,
    max_iterations: int = 300,
    device: str | torch.device | None = None,
) -> float:
    """Top-1 accuracy in [0, 1] of logistic regression on standardised frozen features.

    Args:
        train_features, test_features: [N, D], [Q, D]; any real dtype.
        train_labels, test_labels: integers [N], [Q] from 0.
        regularisation: inverse strength of the L2 penalty (scikit-learn's C).
        device: None for the GPU if there is one; on the CPU scikit-learn solves the same problem.

    Raises:
        ConfigError: if all training images are of one class.
    """
    if len(np.unique(train_labels)) < 2:
        raise ConfigError("All images to train on are of one class; a linear classifier needs two that can be read.")
    where = device if isinstance(device, torch.device) else choose_device(device)
    tolerance = 1e-3
    if where.type != "cpu":
        data = (train_features, train_labels, test_features, test_labels)
        return logistic_accuracy(*data, regularisation, max_iterations, tolerance, where)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # here, so that kNN needs no scikit-learn and starts sooner
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=regularisation, max_iter=max_iterations, tol=tolerance)
    )
    with warnings.catch_warnings():  # scikit-learn's is six lines of links; ours follows
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(train_features, train_labels)
    if classifier[-1].n_iter_.max() >= max_iterations:
        warn_not_converged(max_iterations)
    return float(classifier.score(test_features, test_labels))


def instance_retrieval(first: np.ndarray, second: np.ndarray) -> float:
    """Share in [0, 1] of images whose nearest feature among `second` [N, D] belongs to the same image.

    first, second: features of two different crops of the same N images, in the same order.
    """
    _, rows = nearest_neighbors(first, second, 1)
    return float((rows[:, 0] == np.arange(len(first))).mean())
