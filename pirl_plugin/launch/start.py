"""The console script `run_distributed_engines.py`, like VISSL's tool of that name.

It imports this module at top level, and so do the processes that it starts: hence the registration here. If VISSL or a
user's module is missing, it says so in one sentence.
"""

from __future__ import annotations

import sys

from pirl_plugin.validation import ConfigError

try:
    from pirl_plugin.launch import launcher
except ConfigError as error:
    sys.exit(f"Error: {error}")


def main() -> None:
    """Entry point."""
    launcher.main()
