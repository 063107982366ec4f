"""The console script `run_distributed_engines.py`: signals first, then VISSL's launcher with the plugin registered.

The processes that it starts import this module, as they import __main__, and so they are registered, too.
"""

from pirl_plugin import commands, early_stop

early_stop.end_when_asked()
commands.spin_briefly()

from pirl_plugin.launch.start import main  # noqa: E402

__all__ = ["main"]
