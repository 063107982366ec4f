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
    same = all(before["settings"].get(key) == settings.get(key) for key in ("data", "epochs", "precision"))
    return before.get("rates", {}) if same else {}


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


def restore(before: Mapping[str, Any], runs: Sequence[Run], data: str) -> None:
    """Write result.json of the runs that a study.json has and whose folders have none, so that they count as done.

    Args:
        before: the content of the study.json.
        runs: all runs of the study.
        data: what `settings` of the study.json must have under that name.

    Raises:
        ConfigError: where it is of other images, or has a run with other settings, or one that is not of the study and
            would be lost.
    """
    path = runs[0].output / "study.json"
    all_runs = {(run.name, run.seed): run for run in runs}
    for result in before["runs"]:
        key = result["name"], result["seed"]
        run = all_runs.get(key) or replace(runs[0], name=key[0], seed=key[1])
        if (run.folder / "result.json").is_file():
            continue
        if before["settings"]["data"] != data:
            raise ConfigError(f"{path} is of {before['settings']['data']}, not of {data}: give another --output.")
        if key not in all_runs:
            raise ConfigError(
                f"{path} has {run.name}, seed {run.seed}, which is not of this study and would be lost: add it "
                f"(--seeds, --sweep-seeds, --study), or give another --output."
            )
        if result.get("overrides") != run.settings():
            raise ConfigError(
                f"{path} has {run.name}, seed {run.seed}, with other settings ({_in_words(result)}) than are asked for "
                f"({' '.join(run.settings())}); give those, or another --output."
            )
        run.begin()
        write_json(run.folder / "result.json", result)


def _in_words(result: Mapping[str, Any]) -> str:
    return " ".join(result.get("overrides", ["of an older version, which did not write them"]))


def content_before(stored: Path) -> dict[str, Any]:
    """What an earlier call left in study.json: runs, settings, rates; without one, no runs."""
    return json.loads(stored.read_text()) if stored.is_file() else {"runs": [], "settings": {}}
