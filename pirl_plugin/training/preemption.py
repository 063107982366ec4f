"""On SIGTERM and SIGUSR1: write a checkpoint after the step, and end so that the same command resumes.

SLURM sends them before a job's time is up (`--signal=USR1@120`), torchrun and Kubernetes when a job is stopped.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed

from pirl_plugin import early_stop
from pirl_plugin.distributed import world_size
from pirl_plugin.early_stop import EXIT_CODE, SIGNALS
from pirl_plugin.training.base_hook import Hook
from pirl_plugin.training.process_group import TORCHRUN

LOOK_SECONDS = 0.2  # how often to check whether another rank has started after a signal
# For the current step: torchrun kills after 30 seconds; a SLURM job sets how early it is signalled.
GRACE_SECONDS = {"torchrun": 25.0, "otherwise": 100.0}


def grace_seconds(given: float | None) -> float:
    """Seconds that a step may still take after a signal: as given, or as long as the starter of the run waits."""
    started_by = "torchrun" if TORCHRUN in os.environ else "otherwise"
    return GRACE_SECONDS[started_by] if given is None else given


class PreemptionHook(Hook):
    """Asks after every step whether any rank got a signal; all of them stop at the same step.

    The answer is read after the next step, so that no step waits for it. A rank whose step does not end (because it
    waits for a dead rank) ends itself after `grace` seconds.

    Args:
        checkpoint: function that writes a checkpoint: called with the task on every rank.
        grace: seconds; None for `grace_seconds`.
        timeout: minutes that a rank waits for the others' answer.
    """

    def __init__(self, checkpoint: Any, grace: float | None = None, timeout: float = 30) -> None:
        super().__init__()
        self.checkpoint, self.grace = checkpoint, grace_seconds(grace)
        self.timeout = datetime.timedelta(minutes=timeout)
        self.question: tuple[distributed.Work, torch.Tensor] | None = None  # pending: was any rank asked to stop?
        self.requested = threading.Event()
        self.writing: int | None = None  # write end of the pipe for signals, while they are watched

    def on_start(self, task: Any) -> None:
        # On the CPU: asking must not wait for a GPU.
        self.group = distributed.new_group(backend="gloo", timeout=self.timeout) if world_size() > 1 else None
        self.timer: threading.Timer | None = None
        reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        # Replaces the default, which would end the process.
        self.before = {name: signal.signal(name, lambda *_: None) for name in SIGNALS}
        # Python runs handlers between its instructions, so not inside a collective. Bytes in a pipe arrive at once.
        signal.set_wakeup_fd(self.writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()

    def _watch(self, reading: int) -> None:
        while byte := os.read(reading, 1):  # empty when the other end is closed
            if byte[0] in SIGNALS and not self.requested.is_set():
                logging.warning("Asked to stop: writing a checkpoint after this step.")
                self.timer = threading.Timer(self.grace, self._give_up)
                self.timer.daemon = True
                self.timer.start()
                self.requested.set()
        os.close(reading)

    def _give_up(self) -> None:
        logging.error(f"Asked to stop, but the step did not end within {self.grace:.0f} s; ending without it.")
        os._exit(EXIT_CODE)

    def on_step(self, task: Any) -> None:
        asked = self.requested.is_set()
        if self.group is not None:
            answer = self._answer()
            anyone = torch.tensor(int(asked))
            work = distributed.all_reduce(anyone, distributed.ReduceOp.MAX, group=self.group, async_op=True)
            self.question, asked = (work, anyone), answer
        if not asked:
            return
        self._answer()
        # From now on signals are ignored: the checkpoint is being written.
        self.requested.set()
        if self.timer is not None:
            self.timer.cancel()
        self.checkpoint(task)
        if self.group is not None:
            distributed.barrier(self.group)  # a node that ended would end the others, which may still be writing
        logging.warning(f"Stopped after iteration {task.iteration}; the same command resumes from there.")
        raise SystemExit(EXIT_CODE)

    def _answer(self) -> bool:
        """The answer to the last question, which is then cleared."""
        if self.question is None:
            return False
        work, anyone = self.question
        work.wait()
        self.question = None
        return bool(anyone)

    def on_end(self, task: Any) -> None:
        self._answer()
        self.group = None  # see process_group.leave
        self._stop_watching()

    def on_exception(self, task: Any) -> None:
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self.writing is None:
            return
        if self.timer is not None:
            self.timer.cancel()
        signal.set_wakeup_fd(-1)
        os.close(self.writing)
        self.writing = None
        for name, handler in self.before.items():
            signal.signal(name, handler)


forwarded = threading.Event()  # whether this process, which started the ranks, was asked to stop


@contextlib.contextmanager
def forwarded_signals() -> Iterator[None]:
    """For the process that starts the ranks: forward signals to them, and let them end by themselves.

    A rank that starts only after the signal gets it as well: the ranks on other nodes have ended, and it would wait for
    them until it is killed.
    """
    told: set[int] = set()
    running = True

    def hand_on(number: int) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                told.add(child.pid)
                os.kill(child.pid, number)

    def later(number: int, frame: Any) -> None:
        if any(child.pid not in told for child in multiprocessing.active_children()):
            hand_on(signal.SIGTERM)

    def forward(number: int, frame: Any) -> None:
        forwarded.set()
        hand_on(number)
        if running:
            signal.signal(signal.SIGALRM, later)  # in this thread, the only one that may manage children
            signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)

    for name in SIGNALS:
        before = signal.getsignal(name)
        # Otherwise the caller, such as submitit, has its own handler.
        if before is signal.SIG_DFL or early_stop.is_early(before):
            signal.signal(name, forward)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)  # the alarm would kill Python while it exits
