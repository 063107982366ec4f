"""Findings of a study: held, not held, or within the noise."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from pirl_plugin.experiments.study_findings import (
    Noise,
    best_at,
    best_layer,
    by_name,
    compare,
    nearer,
    noise,
    rising,
    verdict,
)
from study_results import result, runs_with


def test_a_difference_is_told_from_noise():
    runs = runs_with(a=[0.50, 0.51, 0.52], b=[0.40, 0.41, 0.42], c=[0.505, 0.51, 0.515], d=[0.4])
    of_seed = noise(runs, "linear")
    assert of_seed.deviation == pytest.approx(np.sqrt((0.01**2 + 0.01**2 + 0.005**2) / 3)) and of_seed.degrees == 6
    assert {finding.verdict for finding in compare(runs, "a > b", "a", "b")} == {"held"}
    assert {finding.verdict for finding in compare(runs, "b > a", "b", "a")} == {"not held"}
    assert {finding.verdict for finding in compare(runs, "a > c", "a", "c")} == {"within the noise"}
    assert {finding.verdict for finding in compare(runs, "c >= a", "c", "a", equal=True)} == {"held"}
    assert {finding.verdict for finding in compare(runs, "d >= a", "d", "a", equal=True)} == {"not held"}
    noisy = runs_with(a=[0.25, 0.45], b=[0.40, 0.60], c=[0.50, 0.52])
    (linear, _) = compare(noisy, "a >= b", "a", "b", equal=True)  # 15 points worse, with an error of 14.1
    assert "-15.0 (standard error 14.1)" in linear.evidence and linear.verdict == "within the noise"
    exact = Noise(0.0, 4)
    assert verdict(0.0, exact, 0.0) == "within the noise" and verdict(1e-9, exact, 0.0) == "held"
    assert compare(runs, "a > e", "a", "e") == []
    quiet = runs_with(a=[0.50, 0.51, 0.52], b=[0.46, 0.47, 0.48], wild=[0.2, 0.5, 0.8])
    assert {finding.verdict for finding in compare(quiet, "a > b", "a", "b")} == {"held"}  # by their own noise
    (linear, _) = compare(runs, "a > b", "a", "b")
    assert linear.evidence == "linear 51.0 and 41.0, +10.0 (standard error 0.8)"
    alone = runs_with(a=[0.5], b=[0.4])
    assert {finding.verdict for finding in compare(alone, "a > b", "a", "b")} == {
        "not known: no seeds to tell the noise from"
    }


def test_equal_methods_are_told_apart_in_one_study_of_twenty():
    draws, found = np.random.default_rng(0), []
    for _ in range(2000):
        values = {name: list(0.5 + 0.01 * draws.normal(size=3)) for name in "ab"}
        found.append(compare(runs_with(**values), "a > b", "a", "b")[0].verdict)
    assert np.mean([one != "within the noise" for one in found]) == pytest.approx(0.05, abs=0.015)
    first, second = values["a"], values["b"]
    reference = ttest_ind(first, second)
    of_seed = Noise.of([first, second])
    error = of_seed.error(first, second)
    assert (np.mean(first) - np.mean(second)) / error == pytest.approx(reference.statistic)
    assert of_seed.largest(error) == pytest.approx(
        reference.confidence_interval().high - np.mean(first) + np.mean(second)
    )


def test_the_best_of_a_level_sweep_is_rarely_told_from_the_value_that_should_be():
    draws, found = np.random.default_rng(0), []
    line = {name: name for name in "abcde"}
    for _ in range(2000):
        values = {name: list(0.5 + 0.01 * draws.normal(size=3 if name == "a" else 2)) for name in line}
        found.append(best_at(runs_with(**values), "a is best", line, "a")[0].verdict)
    assert found.count("not held") < 0.05 * 2000 and found.count("held") < 0.05 * 2000


@pytest.mark.parametrize(
    ("noise_of_a_seed", "outcome"), [(0.03, "within the noise"), (0.003, "held"), (0.0003, "held")]
)
def test_at_least_as_good_holds_the_more_surely_the_more_exactly_half_a_point_less_is_measured(
    noise_of_a_seed, outcome
):  # fmt: skip
    around = noise_of_a_seed * np.array([-1, 0, 1])
    runs = runs_with(a=list(0.495 + around), b=list(0.5 + around))
    assert {one.verdict for one in compare(runs, "a >= b", "a", "b", equal=True)} == {outcome}
    assert "held" not in {one.verdict for one in compare(runs, "a > b", "a", "b")}


def test_each_measure_is_compared_by_its_own_figures():
    runs = by_name({"runs": [{**result(name, seed, value), "knn": 1 - value + seed / 100, "linear": value + seed / 100}
                             for name, value in (("a", 0.7), ("b", 0.4)) for seed in (0, 1)]})  # fmt: skip
    linear, knn = compare(runs, "a > b", "a", "b")
    assert (linear.verdict, knn.verdict) == ("held", "not held")
    assert linear.evidence.startswith("linear 70.5 and 40.5, +30.0") and knn.evidence.startswith(
        "kNN 30.5 and 60.5, -30.0"
    )


def test_measures_that_only_some_studies_have_are_compared_where_both_runs_have_them():
    more = {"a": {"knn_recomputed": 0.9, "finetuned_10percent": 0.8}, "b": {"knn_recomputed": 0.5}, "c": {}}
    runs = by_name({"runs": [result(name, seed, 0.5, **{key: value + seed / 100 for key, value in own.items()})
                             for name, own in more.items() for seed in (0, 1)]})  # fmt: skip
    found = compare(runs, "a > b", "a", "b")
    assert [one.verdict for one in found] == ["within the noise", "within the noise", "held"]
    assert found[2].evidence == "kNN, averages recomputed 90.5 and 50.5, +40.0 (standard error 0.7)"
    assert len(compare(runs, "a > c", "a", "c")) == 2


def test_sweeps_are_judged_by_where_they_are_best_and_whether_they_rise():
    runs = runs_with(low=[0.40, 0.41], mid=[0.50, 0.51], high=[0.45, 0.46])
    line = {"1": "low", "2": "mid", "3": "high"}
    assert best_at(runs, "best at 2", line, "2")[0].verdict == "held"
    assert best_at(runs, "best at 3", line, "3")[0].verdict == "not held"
    close = runs_with(low=[0.505, 0.515], mid=[0.51, 0.52])
    assert best_at(close, "best at 2", {"1": "low", "2": "mid"}, "2")[0].verdict == "within the noise"
    assert best_at(runs, "best at 7", line, "7") == []
    (finding,) = rising(runs, "rises", line)
    assert finding.verdict == "held" and "rank correlation +0.5" in finding.evidence
    assert rising(runs, "falls", {"1": "mid", "2": "low"})[0].verdict == "not held"
    falls_then_jumps = runs_with(a=[0.40, 0.41], b=[0.80, 0.81], c=[0.60, 0.61], d=[0.30, 0.31], e=[0.45, 0.46])
    assert rising(falls_then_jumps, "rises", dict(zip("12345", "abcde", strict=True)))[0].verdict == "not held"
    assert rising(runs, "not run", {"1": "low", "2": "other"}) == []
    tied = runs_with(a=[0.30, 0.31], b=[0.50, 0.51], c=[0.50, 0.51], d=[0.50, 0.51])
    (finding,) = rising(tied, "rises, then stays", dict(zip("1234", "abcd", strict=True)))
    assert finding.verdict == "held" and "rank correlation +0.8" in finding.evidence
    level = runs_with(a=[0.50, 0.51], b=[0.50, 0.51])
    assert "rank correlation +0.0" in rising(level, "rises", {"1": "a", "2": "b"})[0].evidence


def test_distances_are_compared_by_mean_and_variance():
    pairs = [result("pirl_jigsaw", seed, 0.5, 0.3 + 0.01 * seed) for seed in (0, 1)]
    pairs += [result("jigsaw", seed, 0.4, 0.6 + 0.01 * seed) for seed in (0, 1)]
    found = nearer(by_name({"runs": pairs}), "c", "pirl_jigsaw", "jigsaw")
    within = "within the noise"  # they are equal
    verdicts = {finding.claim.split(": ")[1]: finding.verdict for finding in found}
    assert verdicts == {"mean, relative to other images'": "held", "mean": within, "variance": within}


def test_the_best_layer_is_told_from_noise():
    def runs(*pairs: tuple[float, float]) -> dict:
        layers = [{"res4": first, "res5": second} for first, second in pairs]
        return by_name({"runs": [result("a", n, 0.5, layers=one) for n, one in enumerate(layers)]})

    assert best_layer(runs((0.4, 0.5), (0.41, 0.51)), "c", "a", "res5")[0].verdict == "held"
    assert best_layer(runs((0.4, 0.5), (0.41, 0.51)), "c", "a", "res4")[0].verdict == "not held"
    assert best_layer(runs((0.4, 0.405), (0.41, 0.411)), "c", "a", "res5")[0].verdict == "within the noise"
