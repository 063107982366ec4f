"""The training of VISSL's trainer, as PIRL needs it: task, step, hooks, checkpoints, signals."""

import pirl_plugin.host  # noqa: F401  (mends VISSL before anything here imports it)
