"""The training of VISSL's trainer, as PIRL needs it: task, step, hooks, checkpoints, signals."""
