"""`pirl COMMAND`: one module a command, named for it, with `add_arguments(parser)` and `run(options)`.

Importing such a module must be quick, for `--help` and for shell completion: what it needs is imported in `run`.
"""

import os


def spin_briefly() -> None:
    """Before torch is imported: let its threads wait for each other asleep, not spinning for milliseconds.

    On a CPU that other processes use, too, they spin away the time of the thread that they wait for: a training step
    took 5 s in place of 0.08. So few turns cost a quiet machine nothing. Whoever set OpenMP's variables knows better.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
