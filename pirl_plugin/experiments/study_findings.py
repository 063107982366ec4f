"""Checks which of the paper's findings a study's results confirm, compared with their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

LEVEL = "trunk, batch statistics"  # the level at which distances of different models are compared
HELD, NOT_HELD, NOISE, UNKNOWN = "held", "not held", "within the noise", "not known: no seeds to tell the noise from"
MARGIN = 0.02  # accuracy by which "at least as good" may be worse
COMPARED = {
    "linear": "linear",
    "knn": "kNN",
    "linear_recomputed": "linear, averages recomputed",
    "knn_recomputed": "kNN, averages recomputed",
    "finetuned_10percent": "10% of the labels, fine-tuned",
}
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings, and whether it held.

    Attributes:
        verdict: HELD, NOT_HELD, NOISE if the difference is below twice its standard error, or UNKNOWN.
        evidence: the numbers, as text.
    """

    claim: str
    verdict: str
    evidence: str


def by_name(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The results of each run, seed by seed."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(content["runs"], key=lambda one: (one["name"], one["seed"])):
        runs.setdefault(result["name"], []).append(result)
    return runs


def of_seeds(runs: Runs, name: str, measure: str) -> list[float]:
    """A figure of each seed of a run; empty if it was not run or not measured."""
    return [float(result[measure]) for result in runs.get(name, []) if measure in result]


def pooled_deviation(samples: Sequence[Sequence[float]]) -> float:
    """The standard deviation between seeds, pooled over the samples that have several; NaN if none has."""
    variances = [np.var(sample, ddof=1) for sample in samples if len(sample) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else math.nan


def noise(runs: Runs, measure: str) -> float:
    """`pooled_deviation` of a figure over all runs."""
    return pooled_deviation([of_seeds(runs, name, measure) for name in runs])


def standard_error(deviation: float, first: Sequence[float], second: Sequence[float]) -> float:
    """The standard error of the difference of two means over seeds."""
    return deviation * math.sqrt(1 / len(first) + 1 / len(second))


def verdict(difference: float, error: float) -> str:
    """The verdict on a difference that should be above 0."""
    if math.isnan(error):
        return UNKNOWN
    if abs(difference) <= 2 * error:
        return NOISE
    return HELD if difference > 0 else NOT_HELD


def compare(runs: Runs, claim: str, better: str, worse: str, equal: bool = False) -> list[Finding]:
    """Whether one run's accuracies are above another's, each of COMPARED that both have.

    Args:
        equal: whether the claim is >=, which also holds if being worse by more than MARGIN is excluded.
    """
    findings = []
    for measure, title in COMPARED.items():
        first, second = of_seeds(runs, better, measure), of_seeds(runs, worse, measure)
        if not first or not second:
            continue
        difference = float(np.mean(first) - np.mean(second))
        error = standard_error(noise(runs, measure), first, second)
        outcome = verdict(difference, error)
        if equal and outcome == NOISE and difference - 2 * error > -MARGIN:
            outcome = HELD
        evidence = (
            f"{title} {100 * np.mean(first):.1f} and {100 * np.mean(second):.1f}, {100 * difference:+.1f} (standard "
            f"error {100 * error:.1f})"
        )
        findings.append(Finding(claim, outcome, evidence))
    return findings


def best_at(runs: Runs, claim: str, line: Mapping[str, str], wanted: str) -> list[Finding]:
    """Whether the linear accuracy at the value `wanted` of a sweep is above the best of the others."""
    if wanted not in line or len(line) < 2 or any(name not in runs for name in line.values()):
        return []
    means = {value: float(np.mean(of_seeds(runs, name, "linear"))) for value, name in line.items()}
    rival = max((value for value in means if value != wanted), key=means.__getitem__)
    samples = [of_seeds(runs, line[value], "linear") for value in (wanted, rival)]
    error = standard_error(noise(runs, "linear"), *samples)
    evidence = ", ".join(f"{value}: {100 * mean:.1f}" for value, mean in means.items())
    shown = f"linear {evidence} (standard error of a difference {100 * error:.1f})"
    return [Finding(claim, verdict(means[wanted] - means[rival], error), shown)]


def rising(runs: Runs, claim: str, line: Mapping[str, str]) -> list[Finding]:
    """Whether the linear accuracy rises along a sweep: the last above the first, and a positive rank correlation."""
    names = list(line.values())
    if len(names) < 2 or any(name not in runs for name in names):
        return []
    means = [float(np.mean(of_seeds(runs, name, "linear"))) for name in names]
    # Spearman's correlation is undefined if all are equal: then nothing rises.
    correlation = 0.0 if len(set(means)) == 1 else float(spearmanr(range(len(means)), means).statistic)
    samples = [of_seeds(runs, name, "linear") for name in (names[0], names[-1])]
    outcome = verdict(means[-1] - means[0], standard_error(noise(runs, "linear"), *samples))
    if outcome == HELD and correlation <= 0:
        outcome = NOT_HELD
    evidence = ", ".join(f"{value}: {100 * mean:.1f}" for value, mean in zip(line, means, strict=True))
    return [Finding(claim, outcome, f"linear {evidence}; rank correlation {correlation:+.1f}")]


def best_layer(runs: Runs, claim: str, name: str, wanted: str) -> list[Finding]:
    """Whether the layer `wanted` has a better linear accuracy than all others."""
    seeds = [result["layers"] for result in runs.get(name, []) if "layers" in result]
    if not seeds:
        return []
    layers = {layer: [one[layer] for one in seeds] for layer in seeds[0]}
    means = {layer: float(np.mean(values)) for layer, values in layers.items()}
    rival = max((layer for layer in means if layer != wanted), key=means.__getitem__)
    error = standard_error(pooled_deviation(list(layers.values())), layers[wanted], layers[rival])
    evidence = ", ".join(f"{layer} {100 * mean:.1f}" for layer, mean in means.items())
    return [Finding(claim, verdict(means[wanted] - means[rival], error), evidence)]


def nearer(runs: Runs, claim: str, name: str, other: str) -> list[Finding]:
    """Whether distances between images and their transformations are smaller and vary less than another model's."""
    findings = []
    for key, label in (("relative", "mean, relative to other images'"), ("mean", "mean"), ("variance", "variance")):
        first, second = ([one["invariance"][LEVEL][key] for one in runs.get(n, [])] for n in (name, other))
        if not first or not second:
            continue
        error = standard_error(pooled_deviation([first, second]), first, second)
        difference = float(np.mean(second) - np.mean(first))
        evidence = f"{np.mean(first):.3f} and {np.mean(second):.3f} (standard error {error:.3f})"
        findings.append(Finding(f"{claim}: {label}", verdict(difference, error), evidence))
    return findings


def findings(content: Mapping[str, Any]) -> list[Finding]:
    """The paper's findings, as far as their runs were done, by the run names of the shipped study."""
    runs, sweeps = by_name(content), content["sweeps"]

    def line(sweep: str, series: str) -> dict[str, str]:
        return sweeps.get(sweep, {}).get("series", {}).get(series, {})

    return [
        *compare(runs, "PIRL (jigsaw) > NPID++", "pirl_jigsaw", "npid_plus_plus"),
        *compare(runs, "PIRL (jigsaw) > Jigsaw", "pirl_jigsaw", "jigsaw"),
        *compare(runs, "PIRL (rotation) > Rotation", "pirl_rotation", "rotation"),
        *compare(runs, "NPID++ > Jigsaw", "npid_plus_plus", "jigsaw"),
        *compare(runs, "NPID++ > Rotation", "npid_plus_plus", "rotation"),
        *compare(runs, "Jigsaw > random", "jigsaw", "random"),
        *compare(runs, "Rotation > random", "rotation", "random"),
        *compare(runs, "supervised > PIRL (jigsaw)", "supervised", "pirl_jigsaw"),
        *compare(runs, "PIRL (rotation + jigsaw) >= PIRL (jigsaw)", "pirl_rotation_jigsaw", "pirl_jigsaw", equal=True),
        *best_at(runs, "lambda = 0.5 is best (Figure 6)", line("lambda", "PIRL"), "0.5"),
        *rising(runs, "more permutations are better for PIRL (Figure 7)", line("permutations", "PIRL")),
        *rising(runs, "more permutations are better for Jigsaw (Figure 7)", line("permutations", "Jigsaw")),
        *rising(runs, "more negatives are better (Figure 8)", line("negatives", "PIRL")),
        *nearer(runs, "PIRL's distances are smaller and narrower than Jigsaw's (Figure 4)", "pirl_jigsaw", "jigsaw"),
        *best_layer(runs, "res5 is PIRL's best layer (Figure 5)", "pirl_jigsaw", "res5"),
        *best_layer(runs, "res4 is Jigsaw's best layer (Figure 5)", "jigsaw", "res4"),
    ]
