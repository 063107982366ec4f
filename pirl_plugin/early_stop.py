"""Handles SIGTERM and SIGUSR1 while no training does: end so that the job is put back into the queue. And Ctrl-C.

Imports nothing heavy, because the launcher's first lines install it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75  # of sysexits.h: try again
STARTER = "PIRL_STARTER"  # in the environment: the process with which this one shall end
PR_SET_PDEATHSIG = 1  # prctl(2) option: the signal that a process gets when its parent ends


MESSAGE = "Asked to stop; the same command resumes from the last checkpoint, if there is one.\n"
to_delete: set[str] = set()  # files of this process that must not outlive it, such as its run lock


def _end(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, MESSAGE.encode())
    for path in to_delete:
        with contextlib.suppress(OSError):
            os.unlink(path)
    os._exit(EXIT_CODE)


def _pass_over() -> None:
    """Ignore signals at the end of the process, when Python restores the defaults: the exit code is settled by now."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)


def end_when_asked() -> None:
    """Until training handles SIGNALS, let them end this process with EXIT_CODE; other handlers are kept.

    Once Python is ending the process, they are ignored: srun sends SIGTERM to all tasks as soon as one has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python allows no handlers here
    atexit.unregister(_pass_over)  # only once, however often this is called
    atexit.register(_pass_over)
    for name in SIGNALS:
        if signal.getsignal(name) is signal.SIG_DFL:
            signal.signal(name, _end)


def shield_resource_tracker() -> None:
    """Start multiprocessing's resource tracker so that a signal to all processes of a job does not end it.

    Otherwise a new one replaces it, which prints a KeyError for every semaphore that it does not know. It keeps
    the signals blocked that are blocked when it starts.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def end_with_parent(parent: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    """From now on, let the kernel end this process when its parent ends, however that happens (on Linux).

    The parent counts as ended when the thread that started this process has.

    Args:
        parent: the process that should still be the parent; if it has ended already, so does this one.
        number: the signal that this process then gets.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def environment_of_child() -> dict[str, str]:
    """The environment for a `pirl` or launcher of its own that must not outlive this process."""
    return {**os.environ, STARTER: str(os.getpid())}


def end_with_starter() -> None:
    """If a process started this one with `environment_of_child`, get SIGTERM when that ends, even if it is killed.

    A training then writes its checkpoint first.
    """
    starter = os.environ.pop(STARTER, None)  # what this one starts is not meant
    if starter is not None:
        end_with_parent(int(starter), signal.SIGTERM)


def is_early(handler: object) -> bool:
    """Whether a signal's handler is the one above, which may be replaced."""
    return handler is _end


@contextlib.contextmanager
def ended_by_ctrl_c(sentence: str) -> Iterator[None]:
    """Ctrl-C ends the program with a sentence: VISSL's launcher takes a KeyboardInterrupt for the end of its work."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != owner:  # a loader's worker, which has inherited this
            raise KeyboardInterrupt
        raise SystemExit(sentence)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
