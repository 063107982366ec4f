"""A study in pieces: some of its runs, and a study that goes on, on any machine, from its study.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pirl_plugin.experiments.study import Study
from pirl_plugin.experiments.study_runs import Run
from pirl_plugin.paths import write_json
from pirl_plugin.validation import ConfigError, check_choice

OF_ALL_RUNS = ("data", "epochs", "precision", "overrides")  # settings of a study.json that its runs share


def names_of(study: Study, only: Sequence[str] | None) -> set[str]:
    """The runs that `--only` asks for, by name: of each method, and of each sweep all points; without it, all.

    Raises:
        ConfigError: for a name that is neither.
    """
    if only is None:
        return {*study.methods, *study.points}
    names: set[str] = set()
    for name in only:
        check_choice(name, [*study.methods, *study.sweeps], "--only")
        series = study.sweeps[name].series.values() if name in study.sweeps else [{"": name}]
        names.update(run for line in series for run in line.values())
    return names


def methods_of(study: Study, names: set[str]) -> set[str]:
    """The methods of runs: those themselves, and those of which points of a sweep are variants."""
    return {name if name in study.methods else str(study.points[name].variant_of) for name in names}


def known_rates(before: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The learning rates that a study.json has, if they were tried as this study would try them."""
    return {} if _changed(before, settings) else before.get("rates", {})


def check_same_settings(before: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    """Raise if a study.json has runs of other images, epochs, precision or overrides.

    Raises:
        ConfigError: naming both.
    """
    changed = _changed(before, settings) if before["runs"] else []
    if changed:
        old, new = (one.get(changed[0], "none") for one in (before["settings"], settings))
        raise ConfigError(f"The runs of {path} have the {changed[0]} {old}, not {new}; give that, or another --output.")


def _changed(before: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    return [key for key in OF_ALL_RUNS if before["settings"].get(key) != settings.get(key)]


def check_same_rates(before: Mapping[str, Any], study: Study, rates: Mapping[str, Any], path: Path) -> None:
    """Raise if runs of a method are done with another learning rate than is best now.

    Raises:
        ConfigError: naming both.
    """
    done = methods_of(study, {run["name"] for run in before["runs"]} & {*study.methods, *study.points})
    for name in sorted(done & set(before.get("rates", {})) & set(rates)):
        old, new = before["rates"][name]["rate"], rates[name]["rate"]
        if old != new:
            raise ConfigError(
                f"{path} has runs of {name} with the learning rate {old:g}, but the best of those tried is now "
                f"{new:g}: give another --output, or a --study with the learning rates that it was made with."
            )


def check_none_is_lost(before: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Refuse a study that lacks runs which a study.json has, and no folder.

    Args:
        before: the content of the study.json.
        runs: all runs of the study; their learning rates do not matter.

    Raises:
        ConfigError: naming the first that would be lost.
    """
    of_study = {(run.name, run.seed) for run in runs}
    for result in before["runs"]:
        run = replace(runs[0], name=result["name"], seed=result["seed"])
        if (run.name, run.seed) not in of_study and not run.result.is_file():
            raise ConfigError(
                f"{run.output / 'study.json'} has {run.name}, seed {run.seed}, which is not of this study and would be "
                f"lost: add it (--seeds, --sweep-seeds, --study), or give another --output."
            )


def restore(before: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write result.json of the runs that a study.json has and whose folders have none, so that they count as done.

    Args:
        before: the content of the study.json; each run of it is one of `runs` or has a folder (`check_none_is_lost`).
        runs: all runs of the study.

    Raises:
        ConfigError: where it or a folder has a run with other settings.
    """
    path = runs[0].output / "study.json"
    all_runs = {(run.name, run.seed): run for run in runs}
    for run in runs:
        if run.result.is_file():
            _check_same_overrides(json.loads(run.result.read_text()), run, run.folder)
    for result in before["runs"]:
        mine = all_runs.get((result["name"], result["seed"]))
        if mine is not None and not mine.result.is_file():
            _check_same_overrides(result, mine, path)
            mine.begin()
            write_json(mine.result, result)


def _check_same_overrides(result: Mapping[str, Any], run: Run, where: Path) -> None:
    if result.get("overrides") != run.settings():
        told = " ".join(result.get("overrides", ["of an older version, which did not write them"]))
        raise ConfigError(
            f"{where} has {run.name}, seed {run.seed}, with other settings ({told}) than are asked for "
            f"({' '.join(run.settings())}); give those, or another --output."
        )


def content_before(stored: Path) -> dict[str, Any]:
    """What an earlier call left in study.json: runs, settings, rates; without one, no runs."""
    return json.loads(stored.read_text()) if stored.is_file() else {"runs": [], "settings": {}}
