"""Importing this module makes VISSL run here and registers all that the plugin adds to it.

Every process needs it: ranks, data-loader workers, jobs of submitit. Entry points import it at top level,
which spawned and fork-served children repeat.
"""

from pirl_plugin.host import mends

mends.require_vissl()

# Only for their decorators.
from pirl_plugin.data import collator, image_files  # noqa: E402
from pirl_plugin.host import covariant_jigsaw  # noqa: E402
from pirl_plugin.network import checkpoints, heads, trunks  # noqa: E402
from pirl_plugin.objective import loss, memory_bank, sharded_memory_bank  # noqa: E402
from pirl_plugin.training import task, train_step  # noqa: E402
from pirl_plugin.user_modules import import_pretext_tasks, import_user_modules  # noqa: E402

import_pretext_tasks()
import_user_modules()
mends.mend_imported()

__all__ = [
    "checkpoints",
    "collator",
    "covariant_jigsaw",
    "heads",
    "image_files",
    "loss",
    "memory_bank",
    "sharded_memory_bank",
    "task",
    "train_step",
    "trunks",
]
