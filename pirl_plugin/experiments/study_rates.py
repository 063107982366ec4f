"""Chooses the learning rate of each method of a study on a part of the training images, never on the test images."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pirl_plugin.evaluation.measures import linear_probe
from pirl_plugin.experiments.study import Method, Study
from pirl_plugin.experiments.study_evaluation import Evaluation, labelled_features
from pirl_plugin.experiments.study_images import split
from pirl_plugin.experiments.study_runs import Run, run_all
from pirl_plugin.launch.composition import quote
from pirl_plugin.validation import ConfigError

SEED = 1000  # none of the study's own


def try_rate(run: Run, evaluation: Evaluation) -> None:
    """Pre-train with a rate and write the linear accuracy on the validation images to result.json; once."""
    run.complete(lambda: {"name": run.name, "linear": linear_probe(*labelled_features(run, evaluation))})
    for checkpoint in run.folder.glob("*.torch"):
        checkpoint.unlink()


@dataclass(frozen=True)
class Trials:
    """How learning rates are tried.

    Attributes:
        train: the study's training images, with one sub-folder per class.
        output: a folder for the runs; the same folder continues.
        epochs: of each run.
        jobs: runs at a time.
        overrides: of all runs.
    """

    train: Path
    output: Path
    epochs: int
    jobs: int
    overrides: Sequence[str]


def choose_rates(study: Study, names: Collection[str], trials: Trials, known: Mapping[str, Any]) -> dict[str, Any]:
    """Try all learning rates of each method that has several, except those that were tried before.

    Args:
        study: the study; `learning_rates` of its methods.
        names: of the methods.
        trials: how they are tried.
        known: what an earlier call returned; a study whose lists of rates have grown goes on from that.

    Returns:
        by method, also of `known`: {"rate": the best, "tried": {rate: linear accuracy in [0, 1] on the validation
        images}, "made_with": the method's config and overrides, which `known` must have, too}.

    Raises:
        ConfigError: if a run failed.
    """
    methods = {name: method for name, method in study.methods.items() if name in names and method.has_choice}
    made_with = {name: [str(method.config), *method.overrides] for name, method in methods.items()}
    tried = {name: _tried_before(known.get(name, {}), made_with[name]) for name in methods}
    new = {
        (name, rate): replace(method, learning_rates=(rate,))
        for name, method in methods.items()
        for rate in method.learning_rates
        if f"{rate:g}" not in tried[name]
    }
    if new:
        measured = _accuracies(new, study, trials)
        for (name, rate), accuracy in measured.items():
            tried[name][f"{rate:g}"] = accuracy
    chosen = {}
    for name, method in methods.items():
        best = max(method.learning_rates, key=lambda rate: tried[name][f"{rate:g}"])
        chosen[name] = {"rate": best, "tried": tried[name], "made_with": made_with[name]}
    if new:
        print(rates_in_words(chosen), flush=True)
    return {**known, **chosen}


def _tried_before(known: Mapping[str, Any], made_with: Sequence[str]) -> dict[str, float]:
    return dict(known.get("tried", {})) if known.get("made_with", made_with) == made_with else {}


def _accuracies(
    asked: Mapping[tuple[str, float], Method], study: Study, trials: Trials
) -> dict[tuple[str, float], float]:
    """Linear accuracy on the validation images by (method, learning rate)."""
    parts = split(trials.train, trials.output / "data")
    common = (
        *trials.overrides,
        f"config.DATA.TRAIN.DATA_PATHS=[{quote(parts[0])}]",
        f"config.OPTIMIZER.num_epochs={trials.epochs}",
    )
    base = next(method.config for method in study.methods.values() if method.config)
    runs = {
        (name, rate): Run(f"{name}_{rate:g}", SEED, method, trials.output, common, base)
        for (name, rate), method in asked.items()
    }
    print(f"{len(runs)} runs of {trials.epochs} epochs to choose the learning rates", flush=True)
    evaluation = Evaluation(*parts, base, ())
    failed = run_all(list(runs.values()), trials.jobs, functools.partial(try_rate, evaluation=evaluation))
    if failed:
        raise ConfigError(f"A learning rate could not be tried: {failed[0]}")
    return {key: json.loads(run.result.read_text())["linear"] for key, run in runs.items()}


def rates_in_words(chosen: Mapping[str, Any]) -> str:
    """What `choose_rates` found, in a line; it says where a better rate may lie beyond those tried."""
    each = []
    for name, one in chosen.items():
        rates, found = [float(rate) for rate in one["tried"]], one["tried"]
        edges = [
            f", {'the' if one['rate'] == end else 'no better than the'} {word}"
            for end, word in ((max(rates), "highest"), (min(rates), "lowest"))
            if found[f"{end:g}"] == max(found.values())
        ]
        tried = ", ".join(f"{rate}: {100 * accuracy:.1f}%" for rate, accuracy in one["tried"].items())
        each.append(f"{name} {one['rate']:g}{''.join(edges)} ({tried})")
    return f"chosen by linear accuracy on a fifth of the training images: {'; '.join(each)}"
