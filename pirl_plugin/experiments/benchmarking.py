"""Many evaluations of one checkpoint: run here or on SLURM, resumed if interrupted, gathered in one table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from pirl_plugin.early_stop import environment_of_child
from pirl_plugin.experiments.benchmarks import BENCHMARKS, DETECTOR
from pirl_plugin.launch.composition import quote
from pirl_plugin.network.export import export
from pirl_plugin.network.weights import read_trunk_weights
from pirl_plugin.registry import import_user_modules
from pirl_plugin.validation import ConfigError, check_choice, check_keys

SAY_EVERY = 15.0  # seconds


def read_settings(path: str | Path | None) -> dict[str, list[str]]:
    """Overrides by benchmark from a YAML file; the keys `vissl` and `detection` apply to all benchmarks of that kind.

    Raises:
        ConfigError: for an unknown benchmark, or if its overrides are not a list of words.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ConfigError(f"There is no settings file at {path}.")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"The settings file {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"The settings file {path} must map benchmarks to lists of overrides.")
    check_keys(settings, {*BENCHMARKS, "vissl", "detection"}, str(path))
    for name, words in settings.items():
        if not isinstance(words, list):
            raise ConfigError(f"{name} in {path} is {words!r}; it must be a list of overrides.")
    return {name: [str(word) for word in words] for name, words in settings.items()}


def freeze_weights(checkpoint: str | Path, output: Path) -> Path:
    """Write the trunk of a checkpoint to OUTPUT/weights.torch, once, so that all runs in OUTPUT use the same weights.

    Raises:
        ConfigError: if OUTPUT has another network's weights.
    """
    frozen = output / "weights.torch"
    if not frozen.exists():
        output.mkdir(parents=True, exist_ok=True)
        unfinished = output / "unfinished.torch"
        print(export(checkpoint, "vissl", unfinished))
        os.replace(unfinished.with_suffix(".torch.json"), frozen.with_suffix(".torch.json"))
        os.replace(unfinished, frozen)
        return frozen
    before, now = read_trunk_weights(frozen), read_trunk_weights(checkpoint)
    if set(before) != set(now) or not all(torch.equal(before[key], now[key]) for key in before):
        raise ConfigError(f"{output} has results of other weights than {checkpoint}; give another --output.")
    return frozen


@dataclass(frozen=True)
class Run:
    """A benchmark of the weights in a folder.

    Attributes:
        name: a name in BENCHMARKS.
        output: the folder of all runs; the run's own is output/name.
        overrides: from the settings file.
    """

    name: str
    output: Path
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        return self.output / self.name

    def command(self) -> list[str]:
        """The command line of the process that runs it."""
        benchmark, weights, folder = BENCHMARKS[self.name], self.output / "weights.torch", self.folder / "run"
        start = [sys.executable, "-m", "pirl_plugin.commands", benchmark.tool]
        if benchmark.tool == DETECTOR:
            gpus = ["--num-gpus", str(max(1, torch.cuda.device_count()))]
            given = ["--config-file", benchmark.config, "--weights", str(weights), "--resume", *gpus]
            return [*start, *given, "OUTPUT_DIR", str(folder), *self.overrides]
        places = {"MODEL.WEIGHTS_INIT.PARAMS_FILE": weights, "CHECKPOINT.DIR": folder}
        given = [f"config.{key}={quote(value)}" for key, value in places.items()]
        return [*start, f"config={benchmark.config}", *given, *self.overrides]

    def result(self) -> dict[str, Any] | None:
        """The stored result: "overrides" and, once it is done, "figures" or "failed"; None if it never started.

        Raises:
            ConfigError: if it was done, or started, with other overrides.
        """
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        result = json.loads(path.read_text())
        if result["overrides"] != list(self.overrides) and "failed" not in result:
            raise ConfigError(
                f"{self.folder} was made with other overrides ({' '.join(result['overrides']) or 'none'}); delete it, "
                f"or give another --output."
            )
        return result

    def _write(self, **result: Any) -> dict[str, Any]:
        result = {"name": self.name, "overrides": list(self.overrides), **result}
        unfinished = self.folder / "result.unfinished"
        unfinished.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(unfinished, self.folder / "result.json")
        return result

    def run(self, position: str = "") -> dict[str, Any]:
        """Run it, unless it is done: its output goes to log.txt, an occasional line to the terminal."""
        before = self.result()
        if before is not None and "figures" in before:
            print(f"{position}{self.name}: done before", flush=True)
            return before
        if before is not None and before["overrides"] != list(self.overrides) and (self.folder / "run").exists():
            os.replace(self.folder / "run", self.folder / f"failed_{time.strftime('%Y%m%d_%H%M%S')}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        started, log = time.monotonic(), self.folder / "log.txt"
        print(f"{position}{self.name}: {'resumed' if before else 'started'}, log in {log}", flush=True)
        with log.open("ab") as file:
            process = subprocess.Popen(
                self.command(),
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment_of_child(),
                start_new_session=True,
            )
            try:
                while (code := _exit_code(process, SAY_EVERY)) is None:
                    minutes = (time.monotonic() - started) / 60
                    print(f"{position}{self.name}: {minutes:.1f} min; {last_line(log)[:120]}", flush=True)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
        minutes = round((time.monotonic() - started) / 60, 2)
        try:
            if code:
                raise RuntimeError(last_line(log))
            result = self._write(minutes=minutes, figures=BENCHMARKS[self.name].read(self.folder / "run"))
        except Exception as error:
            # Whichever file is missing: the log has the reason, and the other benchmarks continue.
            result = self._write(minutes=minutes, failed=str(error) or type(error).__name__)
        outcome = f"failed: {result['failed']} (see {log})" if "failed" in result else f"done in {minutes:.1f} min"
        print(f"{position}{self.name}: {outcome}", flush=True)
        return result


def _exit_code(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code of a process, or None if it still runs after `seconds`."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def last_line(path: Path) -> str:
    """The last non-empty line of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output yet")


def plan(names: Sequence[str], output: Path, settings: Mapping[str, list[str]]) -> list[Run]:
    """The runs of some benchmarks.

    Raises:
        ConfigError: for an unknown name, or for results in `output` that were made with other overrides.
    """
    runs = []
    for name in names:
        check_choice(name, list(BENCHMARKS), "--run")
        kind = "detection" if BENCHMARKS[name].tool == DETECTOR else "vissl"
        runs.append(Run(name, output, (*settings.get(kind, []), *settings.get(name, []))))
        runs[-1].result()
    return runs


class SlurmBenchmark:
    """What submitit runs; a job that is preempted or runs out of time is requeued and resumes."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self) -> dict[str, Any]:
        import_user_modules()  # which may have registered the benchmark
        return self.run.run()

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(SlurmBenchmark(self.run))


def submit(runs: Sequence[Run], cluster: str, **parameters: Any) -> list[Any]:
    """Submit each run as a separate job; returns submitit's jobs.

    Args:
        cluster: `slurm`, or `local` for processes on this machine.
        parameters: for submitit's AutoExecutor (timeout_min, slurm_partition, gpus_per_node, cpus_per_task ...).
    """
    import submitit

    executor = submitit.AutoExecutor(folder=runs[0].output / "jobs", cluster=cluster)
    executor.update_parameters(name="pirl_benchmark", **parameters)
    return [executor.submit(SlurmBenchmark(run)) for run in runs]


def gather(output: Path) -> tuple[str, list[dict[str, Any]]]:
    """The table of all results in a folder, as Markdown and as rows; also writes results.md and results.json."""
    results = []
    for name, benchmark in BENCHMARKS.items():
        path = output / name / "result.json"
        if path.is_file():
            results.append({**json.loads(path.read_text()), "title": benchmark.title, "paper": dict(benchmark.paper)})
    lines = ["| evaluation | | this checkpoint | paper (PIRL) |", "| --- | --- | --- | --- |"]
    notes = []
    for result in results:
        if "figures" not in result:
            lines.append(f"| {result['title']} | | {'failed' if 'failed' in result else 'not finished'} | |")
            notes += [f"- {result['name']} failed: {result['failed']}"] if "failed" in result else []
            continue
        for number, (metric, value) in enumerate(result["figures"].items()):
            paper = result["paper"].get(metric)
            first = result["title"] if number == 0 else ""
            lines.append(f"| {first} | {metric} | {value:.1f} | {'-' if paper is None else f'{paper:.1f}'} |")
        if result["overrides"]:
            notes.append(f"- {result['name']} was run with {' '.join(result['overrides'])}")
    table = "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.md").write_text(table, encoding="utf-8")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return table, results
