"""SIGTERM and SIGUSR1 where no training handles them: end so that the job is put back into the queue.

Nothing heavy is imported here: it is installed by the launcher's first lines.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75  # of sysexits.h: try again


MESSAGE = "Asked to stop; the same command goes on from the last checkpoint, if there is one.\n"
to_delete: set[str] = set()  # files of this process that must not outlive it, as that of its run lock


def _end(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, MESSAGE.encode())
    for path in to_delete:
        with contextlib.suppress(OSError):
            os.unlink(path)
    os._exit(EXIT_CODE)


def _pass_over() -> None:
    """At the end of the process, where Python puts the defaults back: the exit code is settled by now."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)


def end_when_asked() -> None:
    """Until training handles them itself, let SIGNALS end this process with EXIT_CODE; other handlers are left.

    Once Python ends the process they change nothing more: srun sends SIGTERM to all tasks as soon as one has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # where Python allows no handlers
    atexit.unregister(_pass_over)  # once, however often this is called
    atexit.register(_pass_over)
    for name in SIGNALS:
        if signal.getsignal(name) is signal.SIG_DFL:
            signal.signal(name, _end)


def shield_resource_tracker() -> None:
    """Start multiprocessing's resource tracker such that a signal to all processes of a job does not end it.

    Else another is started in its place, which prints a KeyError for every semaphore that it has not heard of. It keeps
    the signals blocked that are blocked when it starts.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def is_early(handler: object) -> bool:
    """Whether a signal's handler is the one above, which others may replace."""
    return handler is _end
