"""The demo's pre-training: VISSL's trainer in a separate process, with as many epochs as the time allows."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pirl_plugin.early_stop import environment_of_child
from pirl_plugin.validation import ConfigError

LINE = re.compile(
    r"epoch (\d+) of \d+, iteration (\d+) of \d+: (?:loss ([\d.einfa+-]+)|no loss yet).* (\S+(?: days?, \S+)?) left"
)
STARTED = "Starting phase 0"  # VISSL logs this when it starts to train: imports are not counted
LATEST = 1.2  # times the budget, after which a run is stopped in any case
FEWEST_EPOCHS = 2  # the first fills the bank


@dataclass
class Pretraining:
    """The state of a run in progress.

    Attributes:
        losses: (iteration, loss) as logged.
        epochs: the planned number, adapted to the machine after the first epoch.
    """

    epochs: int
    losses: list[tuple[int, float]] = field(default_factory=list)
    second_begun: bool = False


def pretrain(
    overrides: Sequence[str], output: Path, run: Path, processes: int, epochs: int, budget_seconds: float
) -> Pretraining:
    """Train for `epochs`, or for as many as the budget allows, which the first epoch shows.

    If it allows fewer, the run is restarted from the end of its first epoch, with a learning-rate schedule for the
    smaller number.

    Args:
        overrides: the run's overrides, without the number of epochs.
        output: folder for pretrain.log.
        run: its checkpoint folder.
        budget_seconds: for training, without the time to start.

    Raises:
        ConfigError: if the run failed, or two epochs do not fit into the budget.
    """
    state = Pretraining(epochs)
    log = output / "pretrain.log"
    log.unlink(missing_ok=True)
    clock = Clock(budget_seconds)
    while True:
        command = [*overrides, f"config.OPTIMIZER.num_epochs={state.epochs}"]
        end = _train(command, log, processes, state, clock)
        if end == "slower":
            print(f"      this machine is slower than measured: {state.epochs} epochs")
            continue
        if end == "late":
            if not state.second_begun or not (run / "checkpoint.torch").exists():
                raise ConfigError(
                    f"The first epoch did not end within {LATEST:g} times --budget-minutes {budget_seconds / 60:g}: "
                    f"give more minutes, or fewer --images."
                )
            print("      out of time: continuing with the last complete epoch")
        return state


class Clock:
    """Time budget of a run, from its first step on; imports after a restart are not counted either."""

    def __init__(self, budget_seconds: float) -> None:
        self.budget, self.spent = budget_seconds, 0.0
        self.started: float | None = None

    def start(self) -> None:
        self.started = time.monotonic()

    def stop(self) -> None:
        if self.started is not None:
            self.spent += time.monotonic() - self.started
        self.started = None

    @property
    def seconds(self) -> float:
        """Time trained so far."""
        return self.spent + (0.0 if self.started is None else time.monotonic() - self.started)

    @property
    def left(self) -> float:
        """Time until the run is stopped in any case."""
        return LATEST * self.budget - self.seconds


def affordable_epochs(first_epoch: float, budget: float) -> int:
    """How many epochs fit into a budget, given the seconds of the first epoch.

    Raises:
        ConfigError: if two do not fit.
    """
    count = int(budget / first_epoch)
    if count < FEWEST_EPOCHS:
        raise ConfigError(
            f"An epoch takes {first_epoch / 60:.1f} minutes here, and PIRL needs {FEWEST_EPOCHS}: --budget-minutes is "
            f"{budget / 60:g}; give at least {FEWEST_EPOCHS * first_epoch / 60:.1f}, or fewer --images."
        )
    return count


def _train(command: Sequence[str], log_path: Path, processes: int, state: Pretraining, clock: Clock) -> str:
    """Run the trainer once; returns `done`, `late`, or `slower` with a smaller number of epochs in `state`."""
    environment = dict(environment_of_child(), OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 1) // processes)))
    launcher = [sys.executable, "-u", "-m", "pirl_plugin.launch.launcher", *command]
    late = threading.Event()
    measured = bool(state.losses) or clock.spent > 0
    with (
        open(log_path, "a") as log,
        subprocess.Popen(
            launcher,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        ) as process,
    ):

        def out_of_time() -> None:
            late.set()
            _kill(process)

        timer: threading.Timer | None = None
        try:
            for line in _until_killed(process):
                log.write(line)
                if timer is None and (STARTED in line or LINE.search(line)):
                    clock.start()
                    timer = threading.Timer(max(0.0, clock.left), out_of_time)
                    timer.start()
                found = LINE.search(line)
                if not found:
                    continue
                _show(found, state)
                state.second_begun |= int(found.group(1)) >= 2
                if state.second_begun and not measured:
                    measured = True
                    epochs = min(state.epochs, affordable_epochs(clock.seconds, clock.budget))
                    if epochs < state.epochs:
                        state.epochs = epochs
                        return "slower"
        finally:
            clock.stop()
            if timer is not None:
                timer.cancel()
    if sys.stdout.isatty():
        print()
    if late.is_set():
        return "late"
    if process.returncode:
        tail = "\n".join(log_path.read_text().splitlines()[-5:])
        raise ConfigError(f"Pre-training failed; the end of {log_path}:\n{tail}")
    return "done"


def _show(found: re.Match[str], state: Pretraining) -> None:
    epoch, iteration, loss, left = found.groups()
    if loss is not None:
        state.losses.append((int(iteration), float(loss)))
    if sys.stdout.isatty() or len(state.losses) % 10 == 1:
        end = "" if sys.stdout.isatty() else "\n"
        state_of_loss = "filling the memory bank" if loss is None else f"loss {float(loss):.3f}"
        print(f"\r      epoch {epoch}, iteration {iteration}, {state_of_loss}, {left} left    ", end=end, flush=True)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _until_killed(process: subprocess.Popen) -> Iterator[str]:
    """The output lines of a process, which is killed with its children when the reader stops for any reason."""
    try:
        assert process.stdout is not None
        yield from process.stdout
        process.wait()
    finally:
        _kill(process)


def progress_line(verb: str) -> Callable[[int, int], None]:
    """A callback (done, total) that keeps one line updated with the time left."""
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        left = (time.monotonic() - started) / done * (total - done)
        end = "\n" if done == total else ""
        if done == total or sys.stdout.isatty():
            print(f"\r      {verb} {done} of {total}, {left:.0f} s left   ", end=end, flush=True)

    return show
