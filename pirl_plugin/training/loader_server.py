"""Imported only by the server that starts the loader's workers (as a preload of multiprocessing's forkserver).

SIGUSR1 to the whole job must end neither the server nor its workers before the rank has written its checkpoint. Not
SIGTERM: the workers inherit this, and a rank ends them by it.
"""

import signal

signal.signal(signal.SIGUSR1, signal.SIG_IGN)
