"""`pirl COMMAND`: one module per command, named after it, with `add_arguments(parser)` and `run(options)`.

Importing such a module must be fast, for `--help` and for shell completion: heavy imports are in `run`.
"""

import os


def spin_briefly() -> None:
    """Call before importing torch: makes its threads sleep while they wait for each other, instead of spinning.

    On a CPU shared with other processes, spinning takes time from the thread that they wait for: a training step took
    5 s instead of 0.08. On a quiet machine the short spinning costs nothing. OpenMP variables that are set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
