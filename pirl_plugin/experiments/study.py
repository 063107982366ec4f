"""What a study compares, read from a YAML file: methods, and sweeps over one setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pirl_plugin.experiments.schedules import cosine
from pirl_plugin.paths import config_folder
from pirl_plugin.validation import ConfigError, check_choice, check_keys, check_mapping, check_number

DEFAULT = "small_images"


@dataclass(frozen=True)
class Method:
    """One line of the table: a config to pre-train with, or none for the untrained network.

    Attributes:
        cost: seconds per image, relative to PIRL (jigsaw); above 0 if there is a config.
        paper: the paper's figures in per cent, by measure.
        learning_rates: those to choose among; none keeps the config's, one replaces it.
        variant_of: for a point of a sweep, the method of which it has all but its own overrides.
    """

    title: str
    config: str | None = None
    cost: float = 0.0
    overrides: tuple[str, ...] = ()
    paper: Mapping[str, float] | None = None
    learning_rates: tuple[float, ...] = ()
    variant_of: str | None = None

    @property
    def has_choice(self) -> bool:
        """Whether its learning rate is to be chosen."""
        return len(self.learning_rates) > 1

    def all_overrides(self) -> list[str]:
        """The launcher's overrides: the learning rate, which falls to a hundredth, if there is one, and `overrides`."""
        if len(self.learning_rates) != 1:
            return list(self.overrides)
        return [*cosine(*self.learning_rates), *self.overrides]


@dataclass(frozen=True)
class Sweep:
    """One plot: the runs of each series by the swept value, in order.

    Attributes:
        series: name of the series -> swept value -> name of a run.
    """

    title: str
    label: str
    logarithmic: bool
    series: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Study:
    """What a study compares.

    Attributes:
        methods: by name; the lines of the table.
        points: by name; runs that belong only to a sweep.
    """

    methods: Mapping[str, Method]
    points: Mapping[str, Method]
    sweeps: Mapping[str, Sweep]


def read_study(name: str | Path = DEFAULT, rates: Mapping[str, float] | None = None) -> Study:
    """Read a study from configs/study by name, or from your own YAML file.

    Args:
        rates: learning rates of methods, in place of the file's.

    Raises:
        ConfigError: for a file that is missing, is not YAML, or has unknown keys or methods.
    """
    path = config_folder() / "study" / f"{name}.yaml"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in (config_folder() / "study").glob("*.yaml")))
        raise ConfigError(f"There is no study {str(name)!r}; it must be a YAML file, or one of {known}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"The study {path} is not YAML: {' '.join(str(error).split())}") from error
    check_keys(check_mapping(content, str(path)), {"methods", "sweeps"}, str(path))
    methods = {}
    for key, settings in check_mapping(content.get("methods"), f"methods of {path}").items():
        method = _read_method(check_mapping(settings, f"methods.{key} of {path}"), f"methods.{key} of {path}")
        methods[key] = replace(method, learning_rates=(rates[key],)) if rates and key in rates else method
    if not any(method.config for method in methods.values()):
        raise ConfigError(f"methods of {path} has none with a config; a study pre-trains at least one.")
    points, sweeps = {}, {}
    for key, sweep in check_mapping(content.get("sweeps") or {}, f"sweeps of {path}").items():
        where = f"sweeps.{key} of {path}"
        check_keys(check_mapping(sweep, where), {"title", "label", "logarithmic", "series"}, where)
        _require(sweep, ("title", "label", "series"), where)
        series: dict[str, Any] = {}
        for line, values in check_mapping(sweep["series"], f"series of {where}").items():
            series[line] = {}
            for value, point in check_mapping(values, f"series.{line} of {where}").items():
                at = f"series.{line}.{value} of {where}"
                check_keys(check_mapping(point, at), {"method", "overrides"}, at)
                _require(point, ("method",), at)
                method = check_choice(point["method"], list(methods), f"method of {at}")
                run = method
                if own := _overrides(point, at):
                    run = f"{key}_{line}_{value}".lower()
                    replaced = {one.partition("=")[0] for one in own}
                    kept = [one for one in methods[method].overrides if one.partition("=")[0] not in replaced]
                    own = (*kept, *own)
                    title = f"{line}, {sweep['label']} = {value}"
                    points[run] = replace(methods[method], overrides=own, title=title, variant_of=method)
                series[line][str(value)] = run
        sweeps[key] = Sweep(sweep["title"], sweep["label"], bool(sweep.get("logarithmic")), series)
    return Study(methods, points, sweeps)


def _read_method(settings: Mapping[str, Any], where: str) -> Method:
    check_keys(settings, {"title", "config", "cost", "overrides", "paper", "learning_rates"}, where)
    _require(settings, ("title", "cost") if settings.get("config") else ("title",), where)
    if settings.get("config"):
        check_number(settings["cost"], f"cost of {where}", 0, above=True)
    rates = settings.get("learning_rates") or []
    if not isinstance(rates, list) or len(set(rates)) != len(rates):
        raise ConfigError(f"learning_rates of {where} is {rates!r}; it must be a list of different numbers.")
    for rate in rates:
        check_number(rate, f"learning_rates of {where}", 0, above=True)
    return Method(**{**settings, "overrides": _overrides(settings, where), "learning_rates": tuple(rates)})


def _require(settings: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if settings.get(key) is None:
            raise ConfigError(f"{where} has no {key}, which it needs.")


def _overrides(settings: Mapping[str, Any], where: str) -> tuple[str, ...]:
    overrides = settings.get("overrides") or []
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        raise ConfigError(f"overrides of {where} is {overrides!r}; it must be a list of strings.")
    return tuple(overrides)
