"""SIGTERM and SIGUSR1 before training has begun: end so that the job is put back into the queue.

Nothing is lost then, and nothing heavy is imported here: it is installed by the launcher's first lines.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75  # of sysexits.h: try again


def _end(number: int, frame: FrameType | None) -> None:
    os.write(sys.stderr.fileno(), b"Asked to stop before training began; the same command starts it again.\n")
    os._exit(EXIT_CODE)


def end_when_asked() -> None:
    """Until training handles them itself, let SIGNALS end this process with EXIT_CODE; other handlers are left."""
    if threading.current_thread() is not threading.main_thread():
        return  # where Python allows no handlers
    for name in SIGNALS:
        if signal.getsignal(name) is signal.SIG_DFL:
            signal.signal(name, _end)


def is_early(handler: object) -> bool:
    """Whether a signal's handler is the one above, which others may replace."""
    return handler is _end
