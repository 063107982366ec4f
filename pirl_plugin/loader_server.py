"""Imported only by the server that starts the loader's workers (as a preload of multiprocessing's forkserver).

A signal to the whole job must end neither the server nor its workers before the rank has written its checkpoint: the
workers end when their rank does.
"""

import signal

for _name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(_name, signal.SIG_IGN)
