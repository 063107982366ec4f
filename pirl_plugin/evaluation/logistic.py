"""Logistic regression on a GPU: solves the problem for which measures.py uses scikit-learn on the CPU."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def warn_not_converged(max_iterations: int) -> None:
    """Say that a linear classifier was stopped short of its best."""
    logging.warning(
        f"The linear classifier had not converged after {max_iterations} steps; its accuracy is that of those steps."
    )


def fit_logistic(
    features: Tensor, labels: Tensor, regularisation: float = 1.0, max_iterations: int = 300, tolerance: float = 1e-3
) -> Tensor:
    """Weights and biases [D + 1, classes] that minimise C sum_i CE_i + ||W||^2 / 2 by L-BFGS; biases are not penalised.

    Args:
        features: float [N, D], standardised, on any device.
        labels: int64 [N] from 0.
        regularisation: C, as in scikit-learn's LogisticRegression.
        tolerance: for the largest entry of the gradient of the objective / (C N).
    """
    classes = int(labels.max()) + 1
    weights = features.new_zeros(features.shape[1] + 1, classes, requires_grad=True)
    penalty = 0.5 / (regularisation * len(features))
    solver = torch.optim.LBFGS(
        [weights], max_iter=max_iterations, tolerance_grad=tolerance, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        scores = torch.addmm(weights[-1], features, weights[:-1])
        value = cross_entropy(scores, labels) + penalty * weights[:-1].square().sum()
        value.backward()
        return value

    solver.step(objective)
    objective()
    if weights.grad is not None and weights.grad.abs().max() > tolerance:
        warn_not_converged(max_iterations)
    return weights.detach()


def logistic_accuracy(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    regularisation: float,
    max_iterations: int,
    tolerance: float,
    device: torch.device,
) -> float:
    """Top-1 accuracy in [0, 1] of `fit_logistic` on features standardised by the training's mean and deviation."""
    features = torch.from_numpy(np.asarray(train, dtype=np.float32)).to(device)
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    deviation[deviation == 0] = 1
    labels = torch.from_numpy(np.asarray(train_labels, dtype=np.int64)).to(device)
    weights = fit_logistic((features - mean) / deviation, labels, regularisation, max_iterations, tolerance)
    seen = (torch.from_numpy(np.asarray(test, dtype=np.float32)).to(device) - mean) / deviation
    predicted = torch.addmm(weights[-1], seen, weights[:-1]).argmax(1)
    return float((predicted.cpu().numpy() == test_labels).mean())
