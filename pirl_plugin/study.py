"""A study: pre-train a list of configs with several seeds within a budget, evaluate each, write one report.

What is to be compared is a YAML file (configs/study/small_images.yaml): methods, and sweeps over one setting.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from hydra_plugins.pirl_plugin_path import config_folder
from pirl_plugin.benchmarking import last_line
from pirl_plugin.composition import quote
from pirl_plugin.demo import seconds_per_image
from pirl_plugin.image_files import labelled_class_folders, list_images
from pirl_plugin.validation import ConfigError, check_choice, check_integer, check_keys, check_number

DEFAULT = "small_images"
FEWEST_EPOCHS, FEWEST_IMAGES = 12, 500
OVERHEAD = 30.0  # seconds a run: start-up and evaluation
SAY_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Method:
    """One line of the table: a config to pre-train with, or none for the untrained network."""

    title: str
    config: str | None = None
    cost: float = 0.0
    overrides: tuple[str, ...] = ()
    paper: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Sweep:
    """One plot: for each series the runs by the swept value, in order.

    Attributes:
        series: name of the series -> swept value -> name of a run.
    """

    title: str
    label: str
    logarithmic: bool
    series: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        methods: by name; the lines of the table.
        points: by name; runs that only a sweep has.
    """

    methods: Mapping[str, Method]
    points: Mapping[str, Method]
    sweeps: Mapping[str, Sweep]


def read_study(name: str | Path = DEFAULT) -> Study:
    """A study of configs/study by name, or of a YAML file of one's own.

    Raises:
        ConfigError: for a file that is missing, is no YAML, or has keys or methods that are not known.
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
    check_keys(content, {"methods", "sweeps"}, str(path))
    methods = {}
    for key, settings in content["methods"].items():
        check_keys(settings, {"title", "config", "cost", "overrides", "paper"}, f"methods.{key} of {path}")
        methods[key] = Method(**{**settings, "overrides": tuple(settings.get("overrides", ()))})
    points, sweeps = {}, {}
    for key, sweep in (content.get("sweeps") or {}).items():
        check_keys(sweep, {"title", "label", "logarithmic", "series"}, f"sweeps.{key} of {path}")
        series = {}
        for line, values in sweep["series"].items():
            series[line] = {}
            for value, point in values.items():
                check_keys(point, {"method", "overrides"}, f"sweeps.{key}.series.{line}.{value} of {path}")
                method = check_choice(point["method"], list(methods), f"sweeps.{key}.series.{line}.{value}.method")
                run = method
                if point.get("overrides"):
                    run = f"{key}_{line}_{value}".lower()
                    own = methods[method].overrides + tuple(point["overrides"])
                    points[run] = replace(methods[method], overrides=own, title=f"{line}, {sweep['label']} = {value}")
                series[line][str(value)] = run
        sweeps[key] = Sweep(sweep["title"], sweep["label"], bool(sweep.get("logarithmic")), series)
    return Study(methods, points, sweeps)


@dataclass(frozen=True)
class Plan:
    """How much of it the budget allows.

    Attributes:
        images: to train on, the same for all runs.
        epochs: of each run.
        seconds: that all runs are expected to take on one core each, together.
    """

    images: int
    epochs: int
    seconds: float


def make_plan(study: Study, seeds: int, sweep_seeds: int, budget_minutes: float, jobs: int, available: int) -> Plan:
    """Scale images and epochs to a budget: at least 12 epochs first, then as many images as there are, then epochs.

    Args:
        seeds, sweep_seeds: how many of the methods and of the points that only a sweep has.
        budget_minutes: wall-clock, with `jobs` runs at a time.
        available: training images.

    Raises:
        ConfigError: where 12 epochs of 500 images are beyond the budget.
    """
    check_number(budget_minutes, "--budget-minutes", 0, above=True)
    costs = [(method.cost, seeds) for method in study.methods.values() if method.config]
    costs += [(point.cost, sweep_seeds) for point in study.points.values()]
    number = sum(count for _, count in costs)
    total = sum(cost * count for cost, count in costs)
    seconds = 60 * budget_minutes * jobs - OVERHEAD * number
    per_image = seconds_per_image(1)
    visits = seconds / (total * per_image) if total else 0
    if visits < FEWEST_EPOCHS * FEWEST_IMAGES:
        needed = (FEWEST_EPOCHS * FEWEST_IMAGES * total * per_image + OVERHEAD * number) / 60 / jobs
        raise ConfigError(
            f"--budget-minutes is {budget_minutes:g}; {number} runs of {FEWEST_EPOCHS} epochs of {FEWEST_IMAGES} "
            f"images need {math.ceil(needed)} here."
        )
    images = min(available, int(visits / FEWEST_EPOCHS))
    epochs = min(200, int(visits / images))
    return Plan(images, epochs, total * per_image * images * epochs + OVERHEAD * number)


@dataclass(frozen=True)
class Run:
    """One method with one seed, in a folder of its own.

    Attributes:
        overrides: of the launcher, the method's and those that all runs have.
        base_config: whose network `random` is.
    """

    name: str
    seed: int
    method: Method
    output: Path
    overrides: tuple[str, ...]
    base_config: str

    @property
    def folder(self) -> Path:
        return self.output / "runs" / self.name / f"seed{self.seed}"

    @property
    def checkpoint(self) -> Path | None:
        """The final checkpoint, once there is one."""
        return next(iter(self.folder.glob("model_final_checkpoint_phase*.torch")), None)

    def launcher_overrides(self) -> list[str]:
        """The command line of the pre-training, without the program."""
        return [
            f"config={self.method.config or self.base_config}",
            f"config.SEED_VALUE={self.seed}",
            f"config.CHECKPOINT.DIR={quote(self.folder)}",
            *self.overrides,
            *self.method.overrides,
        ]

    def pretrain(self) -> None:
        """Pre-train, unless that is done; goes on where it was interrupted.

        Raises:
            RuntimeError: with the last line of the log where it failed.
        """
        if self.checkpoint is not None or self.method.config is None:
            return
        started = time.time()
        with (self.folder / "log.txt").open("ab") as log:
            code = subprocess.run(
                [sys.executable, "-m", "pirl_plugin.launcher", *self.launcher_overrides()],
                stdout=log, stderr=subprocess.STDOUT, check=False,
            ).returncode  # fmt: skip
        if code or self.checkpoint is None:
            raise RuntimeError(f"pre-training failed: {last_line(self.folder / 'log.txt')} (see {self.folder}/log.txt)")
        with (self.folder / "minutes.txt").open("a") as file:
            file.write(f"{(time.time() - started) / 60:.2f}\n")

    def begin(self) -> None:
        """Make the folder, or see that what is in it is of the same run.

        Raises:
            ConfigError: where it is of another.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, own = self.folder / "overrides.json", [*self.overrides, *self.method.overrides]
        if path.is_file() and json.loads(path.read_text()) != own:
            raise ConfigError(
                f"{self.folder} was made with other settings ({' '.join(json.loads(path.read_text()))}); give another "
                f"--output, or the settings that it was made with."
            )
        path.write_text(json.dumps(own))


def runs_of(
    study: Study, output: Path, seeds: Sequence[int], sweep_seeds: Sequence[int], overrides: Sequence[str]
) -> list[Run]:
    """All runs, seed by seed: the methods first, then the points that only a sweep has."""
    base = next(method.config for method in study.methods.values() if method.config)
    parts = [(study.methods, seeds), (study.points, sweep_seeds)]
    return [
        Run(name, seed, method, output, tuple(overrides), base)
        for methods, of_seeds in parts
        for seed in of_seeds
        for name, method in methods.items()
    ]


def lay_out_images(source: str | Path, target: Path, limit: int | None = None) -> int:
    """Links to the images of a folder with one sub-folder a class: the first of each, as many of one as of another.

    Returns:
        how many there are.

    Raises:
        ConfigError: where `target` has others.
    """
    classes = labelled_class_folders(source)
    if limit is not None:
        check_integer(limit, "the number of images", len(classes))
    count = 0
    for folder in classes:
        files = list_images(folder)
        own = target / folder.name
        own.mkdir(parents=True, exist_ok=True)
        for file in files if limit is None else files[: limit // len(classes)]:
            link = own / Path(file).name
            if not link.is_symlink():
                link.symlink_to(Path(file).resolve())
            count += 1
    if (there := len(list_images(target))) != count:
        raise ConfigError(
            f"{target} has {there} images, not the {count} that were asked for: give another --output, or the number "
            f"of images that the study was begun with."
        )
    return count


def machine() -> dict[str, str]:
    """What the figures were measured on and with."""
    import vissl

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = models[0] if models else processor
    if torch.cuda.is_available():
        processor += f", {torch.cuda.get_device_name()}"
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "VISSL": vissl.__version__}
    return {"machine": f"{processor}, {os.cpu_count()} cores", **versions}


def run_all(
    runs: Sequence[Run], jobs: int, complete: Callable[[Run], Any], threads: int = 1, expected_seconds: float = 0.0
) -> list[str]:
    """Complete all runs, `jobs` at a time, saying how far it is; returns what failed, a sentence each."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    failed: list[str] = []
    started, done, next_word = time.monotonic(), 0, 0.0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        left: dict[Future, Run] = {pool.submit(complete, run): run for run in runs}
        while left:
            finished, _ = wait(left, timeout=SAY_EVERY, return_when=FIRST_COMPLETED)
            for future in finished:
                run, done = left.pop(future), done + 1
                error = future.exception()
                if error is not None:
                    failed.append(f"{run.name}, seed {run.seed}: {error}")
                    print(f"failed: {failed[-1]}", flush=True)
            if finished or time.monotonic() > next_word:
                next_word = time.monotonic() + SAY_EVERY
                minutes = (time.monotonic() - started) / 60
                remaining = minutes / done * (len(runs) - done) if done else expected_seconds / 60 / jobs
                at = [f"{run.name} seed {run.seed}" for future, run in left.items() if future.running()]
                print(
                    f"{done} of {len(runs)} runs done, {minutes:.0f} min gone, about {remaining:.0f} left"
                    f"{'; now ' + ', '.join(at[:jobs]) if at else ''}",
                    flush=True,
                )
    return failed
