"""Checks which of the paper's findings a study's results confirm, compared with their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr, t

LEVEL = "trunk, batch statistics"  # the level at which distances of different models are compared
HELD, NOT_HELD, NOISE, UNKNOWN = "held", "not held", "within the noise", "not known: no seeds to tell the noise from"
SIGNIFICANCE = 0.05  # how often a difference of equals is taken for one
MARGIN = 0.02  # accuracy by which "at least as good" may be worse
COMPARED = {
    "linear": "linear",
    "knn": "kNN",
    "linear_recomputed": "linear, averages recomputed",
    "knn_recomputed": "kNN, averages recomputed",
    "finetuned_10percent": "10% of the labels, fine-tuned",
}
LAYERED = {"layers": "", "layers_recomputed": ", averages recomputed"}
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Finding:
    """One of the paper's findings, and whether it held.

    Attributes:
        verdict: HELD, NOT_HELD, NOISE if the difference is below `Noise.largest`, or UNKNOWN.
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


@dataclass(frozen=True)
class Noise:
    """The noise of one measurement, from runs that differ only in their seed.

    Attributes:
        deviation: the standard deviation between seeds, pooled over the runs that have several; NaN if none has.
        degrees: of freedom.
    """

    deviation: float
    degrees: int

    @classmethod
    def of(cls, samples: Sequence[Sequence[float]]) -> Noise:
        """Pool the samples, each of which has the same expectation."""
        degrees = sum(len(sample) - 1 for sample in samples if sample)
        squares = sum(float(np.var(sample) * len(sample)) for sample in samples if sample)
        return cls(math.sqrt(squares / degrees) if degrees else math.nan, degrees)

    def error(self, first: Sequence[float], second: Sequence[float]) -> float:
        """The standard error of the difference of two means over seeds."""
        return self.deviation * math.sqrt(1 / len(first) + 1 / len(second))

    def largest(self, error: float, rivals: int = 1) -> float:
        """The largest difference, either way, that is within the noise (Student's t).

        Args:
            error: the standard error of the difference.
            rivals: of how many values the other one is the best; being picked, it is high by chance (Bonferroni).
        """
        return error * float(t.ppf(1 - SIGNIFICANCE / 2 / rivals, self.degrees))


def noise(runs: Runs, measure: str) -> Noise:
    """The noise of a figure over all runs."""
    return Noise.of([of_seeds(runs, name, measure) for name in runs])


def verdict(difference: float, noise: Noise, error: float, rivals: int = 1) -> str:
    """The verdict on a difference that should be above 0; for `rivals`, see `Noise.largest`."""
    if math.isnan(error):
        return UNKNOWN
    if difference < 0:  # above the best of several rivals is above each of them: no correction
        return NOT_HELD if -difference > noise.largest(error, rivals) else NOISE
    return HELD if difference > noise.largest(error) else NOISE


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
        # Their own noise, where it is known: an untrained network's is several times that of a trained one.
        own = len(first) > 1 and len(second) > 1
        of_seed = Noise.of([first, second]) if own else noise(runs, measure)
        error = of_seed.error(first, second)
        outcome = verdict(difference, of_seed, error)
        if equal and difference - of_seed.largest(error) > -MARGIN:
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
    of_seed = noise(runs, "linear")
    error = of_seed.error(*samples)
    evidence = ", ".join(f"{value}: {100 * mean:.1f}" for value, mean in means.items())
    shown = f"linear {evidence} (standard error of a difference {100 * error:.1f})"
    return [Finding(claim, verdict(means[wanted] - means[rival], of_seed, error, len(means) - 1), shown)]


def rising(runs: Runs, claim: str, line: Mapping[str, str]) -> list[Finding]:
    """Whether the linear accuracy rises along a sweep: the last above the first, and a positive rank correlation."""
    names = list(line.values())
    if len(names) < 2 or any(name not in runs for name in names):
        return []
    means = [float(np.mean(of_seeds(runs, name, "linear"))) for name in names]
    # Spearman's correlation is undefined if all are equal: then nothing rises.
    correlation = 0.0 if len(set(means)) == 1 else float(spearmanr(range(len(means)), means).statistic)
    samples = [of_seeds(runs, name, "linear") for name in (names[0], names[-1])]
    of_seed = noise(runs, "linear")
    outcome = verdict(means[-1] - means[0], of_seed, of_seed.error(*samples))
    if outcome == HELD and correlation <= 0:
        outcome = NOT_HELD
    evidence = ", ".join(f"{value}: {100 * mean:.1f}" for value, mean in zip(line, means, strict=True))
    return [Finding(claim, outcome, f"linear {evidence}; rank correlation {correlation:+.1f}")]


def by_layer(results: Sequence[Mapping[str, Any]], measure: str) -> dict[str, list[float]]:
    """Linear accuracies of each seed by layer; empty if they were not measured."""
    seeds = [result[measure] for result in results if measure in result]
    return {layer: [one[layer] for one in seeds] for layer in seeds[0]} if seeds else {}


def best_layer(runs: Runs, claim: str, name: str, wanted: str) -> list[Finding]:
    """Whether the layer `wanted` has a better linear accuracy than all others, by each of LAYERED that was measured."""
    found = ((title, by_layer(runs.get(name, []), measure)) for measure, title in LAYERED.items())
    return [_best_layer(f"{claim}{title}", layers, wanted) for title, layers in found if layers]


def _best_layer(claim: str, layers: Mapping[str, Sequence[float]], wanted: str) -> Finding:
    means = {layer: float(np.mean(values)) for layer, values in layers.items()}
    rival = max((layer for layer in means if layer != wanted), key=means.__getitem__)
    of_seed = Noise.of(list(layers.values()))
    error = of_seed.error(layers[wanted], layers[rival])
    evidence = ", ".join(f"{layer} {100 * mean:.1f}" for layer, mean in means.items())
    return Finding(claim, verdict(means[wanted] - means[rival], of_seed, error, len(means) - 1), evidence)


def nearer(runs: Runs, claim: str, name: str, other: str) -> list[Finding]:
    """Whether distances between images and their transformations are smaller and vary less than another model's."""
    findings = []
    for key, label in (("relative", "mean, relative to other images'"), ("mean", "mean"), ("variance", "variance")):
        first, second = ([one["invariance"][LEVEL][key] for one in runs.get(n, [])] for n in (name, other))
        if not first or not second:
            continue
        of_seed = Noise.of([first, second])
        error = of_seed.error(first, second)
        difference = float(np.mean(second) - np.mean(first))
        evidence = f"{np.mean(first):.3f} and {np.mean(second):.3f} (standard error {error:.3f})"
        findings.append(Finding(f"{claim}: {label}", verdict(difference, of_seed, error), evidence))
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
