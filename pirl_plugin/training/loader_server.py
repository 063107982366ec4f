"""Imported only by the server that starts the loader's workers (as a preload of multiprocessing's forkserver).

Signals to the whole job must end neither the server nor its workers before the rank has written its checkpoint (except
SIGTERM, by which a rank ends its workers, which inherit this). But they must end when the rank is killed, which would
leave them waiting for each other: the server checks that its rank lives, and the kernel ends the workers with it.
"""

import os
import signal
import sys
from multiprocessing import forkserver

from pirl_plugin.early_stop import end_with_parent

LOOK_SECONDS = 1.0
rank = os.getppid()
server = os.getpid()


def end_with_rank(number: int, frame: object) -> None:
    """Handler of the server's timer: end this process if the rank is no longer its parent."""
    if os.getpid() == server and os.getppid() != rank:
        os._exit(1)


def end_with_server() -> None:
    """Called in a worker that was just forked."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    end_with_parent(server)


def is_the_server() -> bool:
    """Whether this is imported by multiprocessing's forkserver."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code is not forkserver.main.__code__:
        frame = frame.f_back
    return frame.f_code is forkserver.main.__code__


if is_the_server():
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, end_with_rank)
    signal.setitimer(signal.ITIMER_REAL, LOOK_SECONDS, LOOK_SECONDS)  # no thread: this process forks
    os.register_at_fork(after_in_child=end_with_server)
