"""Importing this module prepares VISSL and registers everything that the plugin and the user's files add to it.

Every process needs it: ranks, data-loader workers, jobs of submitit. Modules that start processes import it at top
level, which spawned and fork-served children repeat.
"""

import sys

from pirl_plugin.host import mends

mends.require_vissl()

from pirl_plugin.host import components  # noqa: E402
from pirl_plugin.registry import import_user_modules  # noqa: E402
from pirl_plugin.training import task, train_step  # noqa: E402, F401

import_user_modules()
components.register_trunks_of_vissl()
mends.mend_imported()


def import_in_children() -> None:
    """Make the processes that this one starts import this module, whatever __main__ is: they import __main__ first."""
    sys.modules["__main__"] = sys.modules[__name__]
