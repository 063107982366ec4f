"""Schedules of the learning rate, as overrides of the launcher; each ends at a hundredth of its highest rate."""

from __future__ import annotations

SCHEDULE = "config.OPTIMIZER.param_schedulers.lr"
WARM_UP = 0.1  # of the training, in which the rate rises from a hundredth


def cosine(rate: float) -> list[str]:
    """A cosine from `rate`, where the config's schedule is one."""
    return [f"{SCHEDULE}.start_value={rate:g}", f"{SCHEDULE}.end_value={rate / 100:g}"]


def warmed_up_cosine(rate: float) -> list[str]:
    """A linear rise to `rate` in WARM_UP of the training, then a cosine."""
    rise = f"{{name:linear,start_value:{rate / 100:g},end_value:{rate:g}}}"
    fall = f"{{name:cosine,start_value:{rate:g},end_value:{rate / 100:g}}}"
    return [
        f"{SCHEDULE}.name=composite",
        f"{SCHEDULE}.schedulers=[{rise},{fall}]",
        f"{SCHEDULE}.lengths=[{WARM_UP:g},{1 - WARM_UP:g}]",
        f"{SCHEDULE}.interval_scaling=[rescaled,rescaled]",
    ]
