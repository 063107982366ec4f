"""Adapts VISSL's training to PIRL: task, step, hooks, checkpoints, signals."""

import pirl_plugin.host  # noqa: F401  (mends VISSL before anything here imports it)
