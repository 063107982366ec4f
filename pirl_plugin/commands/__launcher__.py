"""The console script `run_distributed_engines.py`: signal handlers first, then VISSL's launcher with the plugin.

The processes that it starts import __main__ and so this module, which registers the plugin in them as well.
"""

from pirl_plugin import commands, early_stop

early_stop.end_when_asked()
commands.spin_briefly()

from pirl_plugin.launch.start import main  # noqa: E402

__all__ = ["main"]
