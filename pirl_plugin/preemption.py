"""SIGTERM and SIGUSR1: write a checkpoint after the step, and end so that the same command goes on.

SLURM sends them before the time of a job is up (`--signal=USR1@120`), torchrun and Kubernetes when a job is stopped.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from typing import Any

import torch
from torch import distributed

from pirl_plugin.distributed import world_size
from pirl_plugin.hook import Hook

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75  # of sysexits.h: try again
GRACE_SECONDS = 50.0  # for the step that is under way


class PreemptionHook(Hook):
    """Asks after every step whether any rank got a signal; all of them stop at the same step.

    A rank that comes to no end of its step (another is dead, and it waits for it) ends itself after GRACE_SECONDS.

    Args:
        checkpoint: what writes a checkpoint: called with the task on every rank.
    """

    def __init__(self, checkpoint: Any) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.requested = threading.Event()

    def on_start(self, task: Any) -> None:
        # Of the CPU: asking must not wait for a GPU.
        self.group = distributed.new_group(backend="gloo") if world_size() > 1 else None
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        for name in SIGNALS:
            signal.signal(name, lambda *_: None)  # replaces the default, which would end the process
        # Python runs handlers between its own instructions; a rank inside a collective has none. Bytes come at once.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()

    def _watch(self, reading: int) -> None:
        while True:
            if os.read(reading, 1)[0] in SIGNALS and not self.requested.is_set():
                logging.warning("Asked to stop: a checkpoint is written after this step.")
                self.timer = threading.Timer(GRACE_SECONDS, self._give_up)
                self.timer.daemon = True
                self.timer.start()
                self.requested.set()

    def _give_up(self) -> None:
        logging.error(f"Asked to stop, but the step did not end within {GRACE_SECONDS:.0f} s; ending without it.")
        os._exit(EXIT_CODE)

    def on_step(self, task: Any) -> None:
        asked = self.requested.is_set()
        if self.group is not None:
            anyone = torch.tensor(int(asked))
            distributed.all_reduce(anyone, distributed.ReduceOp.MAX, group=self.group)
            asked = bool(anyone)
        if not asked:
            return
        if self.requested.is_set():
            self.timer.cancel()
        self.checkpoint(task)
        if self.group is not None:
            distributed.barrier(self.group)  # a node that ended would end the others, which may still be writing
        logging.warning(f"Stopped after iteration {task.iteration}; the same command goes on from there.")
        raise SystemExit(EXIT_CODE)

    def on_end(self, task: Any) -> None:
        signal.set_wakeup_fd(-1)
        for name in SIGNALS:
            signal.signal(name, signal.SIG_DFL)


def forward_signals() -> None:
    """For the process that started the ranks: hand the signals on to them, and let them end by themselves."""

    def forward(number: int, frame: Any) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)

    for name in SIGNALS:
        signal.signal(name, forward)
