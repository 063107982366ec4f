"""The runs of a study: plans images and epochs for a budget, and runs everything."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pirl_plugin.early_stop import end_with_parent, environment_of_child
from pirl_plugin.experiments.benchmarking import last_line
from pirl_plugin.experiments.demo import seconds_per_image
from pirl_plugin.experiments.study import Method, Study
from pirl_plugin.launch.composition import quote
from pirl_plugin.launch.doctor import processor
from pirl_plugin.out_of_memory import cause_of_a_kill
from pirl_plugin.paths import write_json
from pirl_plugin.training.checkpoint_folder import iteration_of
from pirl_plugin.validation import ConfigError, check_integer, check_number, check_seed

FEWEST_EPOCHS, FEWEST_IMAGES = 12, 1000
OVERHEAD = 12.0  # seconds per run, for starting up
RATE_EPOCHS, RATE_IMAGES = 3, 0.8  # a learning rate is tried for a third of the epochs on four fifths of the images
SAY_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Plan:
    """The number of images and epochs that the budget allows.

    Attributes:
        images: number of training images, the same for all runs.
        epochs: number of epochs of each run.
        seconds: expected total time of all runs on one core each; None if unknown.
    """

    images: int
    epochs: int
    seconds: float | None


def make_plan(
    study: Study, seeds: int, sweep_seeds: int, budget_minutes: float, jobs: int, available: int, tested: int
) -> Plan:
    """Scale images and epochs to a budget: first 12 epochs, then up to all images, then more epochs.

    Args:
        study: the study whose methods and points are counted, with their costs.
        seeds, sweep_seeds: number of seeds for the methods, and for points that belong only to a sweep.
        budget_minutes: wall-clock, with `jobs` runs at a time, including start-up and evaluation.
        jobs: at least 1.
        available, tested: number of images to train on and to test on.

    Raises:
        ConfigError: if 12 epochs of 1,000 images exceed the budget.
    """
    check_number(budget_minutes, "--budget-minutes", 0, above=True)
    costs = [(method.cost, seeds) for method in study.methods.values()]
    costs += [(point.cost, sweep_seeds) for point in study.points.values()]
    number, total = sum(count for _, count in costs), sum(cost * count for cost, count in costs)
    tried = [(method.cost, len(method.learning_rates)) for method in study.methods.values() if method.has_choice]
    total += sum(cost * count for cost, count in tried) * RATE_IMAGES / RATE_EPOCHS
    number_tried = sum(count for _, count in tried)
    per_image = seconds_per_image(1)

    def seconds(images: int, epochs: float) -> float:
        # Evaluating and fine-tuning take about as long as training on each image three times, and 5,000 more.
        evaluated = number * (3 * (images + tested) + 5000) + number_tried * images
        return per_image * (total * images * epochs + evaluated) + OVERHEAD * (number + number_tried)

    budget = 60 * budget_minutes * check_integer(jobs, "--jobs", 1)
    fewest = min(available, FEWEST_IMAGES)
    if seconds(fewest, FEWEST_EPOCHS) > budget:
        raise ConfigError(
            f"--budget-minutes is {budget_minutes:g}; {number} runs of {FEWEST_EPOCHS} epochs of {fewest} images need "
            f"{math.ceil(seconds(fewest, FEWEST_EPOCHS) / 60 / jobs)} here."
        )
    images = min(available, int((budget - seconds(0, 0)) / (seconds(1, FEWEST_EPOCHS) - seconds(0, 0))))
    epochs = min(200, int((budget - seconds(images, 0)) / (per_image * total * images)))
    return Plan(images, epochs, seconds(images, epochs))


def run_launcher(overrides: Sequence[str], log: Path) -> int:
    """The exit code of the launcher in a process of its own, whose output goes to the end of `log`."""
    command = [sys.executable, "-m", "pirl_plugin.launch.launcher", *overrides]
    with log.open("ab") as file:
        return subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment_of_child(), check=False
        ).returncode


@dataclass(frozen=True)
class Run:
    """One method with one seed, in its own folder.

    Attributes:
        overrides: the launcher's overrides: the method's and those of all runs.
        base_config: the config whose untrained network is `random`.
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
    def result(self) -> Path:
        """Its figures, once it is done."""
        return self.folder / "result.json"

    @property
    def is_done(self) -> bool:
        """Whether it has figures."""
        return self.result.is_file()

    @property
    def work(self) -> float:
        """How long it takes, relative to PIRL (jigsaw): evaluating alone, about a tenth."""
        return max(0.1, self.method.cost)

    @property
    def checkpoint(self) -> Path | None:
        """The final checkpoint, once it is complete."""
        found = self.folder.glob("model_final_checkpoint_phase*.torch")
        return next((path for path in found if iteration_of(path) is not None), None)

    def launcher_overrides(self) -> list[str]:
        """The command line of the pre-training, without the program."""
        return [
            f"config={self.method.config or self.base_config}",
            f"config.SEED_VALUE={self.seed}",
            f"config.CHECKPOINT.DIR={quote(self.folder)}",
            *self.overrides,
            *self.method.all_overrides(),
        ]

    def settings(self) -> list[str]:
        """`launcher_overrides` without the paths, which differ from machine to machine."""
        paths = ("config.CHECKPOINT.DIR=", "config.DATA.TRAIN.DATA_PATHS=")
        return [one for one in self.launcher_overrides() if not one.startswith(paths)]

    def pretrain(self) -> None:
        """Pre-train, unless that is done; an interrupted run is resumed.

        Raises:
            RuntimeError: with the last line of the log, if it failed.
        """
        if self.checkpoint is not None or self.method.config is None:
            return
        started, output = time.time(), self.folder / "output.txt"
        try:
            code = run_launcher(self.launcher_overrides(), output)
        finally:
            with (self.folder / "minutes.txt").open("a") as file:
                file.write(f"{(time.time() - started) / 60:.2f}\n")
        if code or self.checkpoint is None:
            raise RuntimeError(f"pre-training failed: {last_line(output)} (see {output})")

    def complete(self, measure: Callable[[], Mapping[str, Any]], figures: Collection[str] = ()) -> None:
        """Pre-train, and add what `measure` returns to `result`, unless it is there.

        Args:
            figures: those that `measure` returns, where `result` may be there without them.
        """
        self.begin()
        known = json.loads(self.result.read_text()) if self.is_done else {}
        if known and set(figures) <= set(known):
            return
        self.pretrain()
        write_json(self.result, {**known, **measure()})

    def begin(self) -> None:
        """Make the folder, or check that it belongs to the same run.

        Raises:
            ConfigError: if it belongs to another run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, own = self.folder / "overrides.json", self.launcher_overrides()
        if path.is_file() and json.loads(path.read_text()) != own:
            raise ConfigError(
                f"{self.folder} was made with other settings ({' '.join(json.loads(path.read_text()))}); give another "
                f"--output, or the settings that it was made with."
            )
        path.write_text(json.dumps(own))


def check_seeds(numbers: Sequence[int], option: str) -> None:
    """Refuse what is no seed, and a seed that is named twice.

    Raises:
        ConfigError: naming it.
    """
    for number in numbers:
        check_seed(number, option)
    if len(set(numbers)) != len(numbers):
        raise ConfigError(f"{option} names a seed twice: {' '.join(map(str, numbers))}.")


def runs_of(
    study: Study, output: Path, seeds: Sequence[int], sweep_seeds: Sequence[int], overrides: Sequence[str]
) -> list[Run]:
    """All runs, seed by seed: first the methods, then the points that belong only to a sweep."""
    base = next(method.config for method in study.methods.values() if method.config)
    parts = [(study.methods, seeds), (study.points, sweep_seeds)]
    return [
        Run(name, seed, method, output, tuple(overrides), base)
        for methods, of_seeds in parts
        for seed in of_seeds
        for name, method in methods.items()
    ]


def machine() -> dict[str, str]:
    """The machine and software that the figures were measured with."""
    import vissl

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "VISSL": vissl.__version__}
    return {"machine": f"{processor()}{gpu}, {os.cpu_count()} cores", **versions}


def _begin_worker(study: int) -> None:
    """One thread, and an end with the process of the study: a worker that outlives it would go on with its queue."""
    end_with_parent(study)
    torch.set_num_threads(1)


def run_all(
    runs: Sequence[Run],
    jobs: int,
    complete: Callable[[Run], Any],
    expected_seconds: float | None = None,
    after_each: Callable[[], Any] = lambda: None,
) -> list[str]:
    """Complete all runs, `jobs` at a time with one thread each, and print progress.

    Args:
        complete: called for each run, in a separate process.
        expected_seconds: total time of all runs, if known.
        after_each: called when a run has ended.

    Returns:
        failures, one sentence each.
    """
    check_integer(jobs, "--jobs", 1)
    os.environ["OMP_NUM_THREADS"] = "1"
    failed: list[str] = []
    earlier = [run for run in runs if run.is_done]
    waiting = deque([*earlier, *(run for run in runs if not run.is_done)])
    started, done, worked, work = time.monotonic(), 0, 0.0, sum(run.work for run in runs if not run.is_done)
    left = dict[Future, tuple[Run, ProcessPoolExecutor]]()
    free = [_process() for _ in range(min(jobs, len(runs)))]  # each its own pool: a killed one is known, and alone

    def begin_what_can() -> None:
        while waiting and free:
            run, process = waiting.popleft(), free.pop()
            left[process.submit(complete, run)] = run, process

    try:
        begin_what_can()
        while left:
            finished, _ = wait(left, timeout=SAY_EVERY, return_when=FIRST_COMPLETED)
            for future in finished:
                (run, process), done = left.pop(future), done + 1
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    error, process = RuntimeError(f"its process was killed {cause_of_a_kill()}"), _process()
                if run not in earlier:
                    worked, work = (worked + run.work, work) if error is None else (worked, work - run.work)
                if error is not None:
                    failed.append(f"{run.name}, seed {run.seed}: {error}")
                    print(f"failed: {failed[-1]}", flush=True)
                free.append(process)
                after_each()
            begin_what_can()
            minutes = (time.monotonic() - started) / 60
            expected = expected_seconds / 60 / jobs - minutes if expected_seconds else None
            remaining = minutes / worked * (work - worked) if worked else expected
            at = [f"{run.name} seed {run.seed}" for run, _ in left.values()]
            print(
                f"{done} of {len(runs)} runs done, {minutes:.0f} min gone"
                f"{'' if remaining is None else f', about {max(0, remaining):.0f} left'}"
                f"{'; now ' + ', '.join(at) if at else ''}",
                flush=True,
            )
    except KeyboardInterrupt:
        for _, process in left.values():
            process.shutdown(wait=False, cancel_futures=True)
        raise SystemExit("Interrupted; the same command resumes.") from None
    for process in free:
        process.shutdown()
    return failed


def _process() -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_begin_worker, initargs=(os.getpid(),))
