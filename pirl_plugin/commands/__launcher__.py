"""The console script `run_distributed_engines.py`: signal handlers first, then VISSL's launcher with the plugin.

The processes that it starts import __main__ and so this module, which registers the plugin in them as well.
"""

import sys

from pirl_plugin import commands, early_stop

early_stop.end_when_asked()
commands.spin_briefly()

from pirl_plugin.launch import start  # noqa: E402


def main() -> None:
    """Entry point."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        from pirl_plugin.commands.__main__ import command_parser

        command_parser("train", prog="run_distributed_engines.py").print_help()
    else:
        start.main()
