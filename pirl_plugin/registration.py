"""Importing this module makes VISSL run here and registers all that the plugin adds to it.

Every process needs it: ranks, data-loader workers, jobs of submitit. Entry points import it at top level,
which spawned and fork-served children repeat.
"""

from pirl_plugin import host

host.require_vissl()

# Only for their decorators.
from pirl_plugin import (  # noqa: E402
    checkpoints,
    collator,
    covariant_jigsaw,
    heads,
    image_files,
    loss,
    memory_bank,
    sharded_memory_bank,
    task,
    train_step,
    trunks,
)
from pirl_plugin.user_modules import import_pretext_tasks, import_user_modules  # noqa: E402

import_pretext_tasks()
import_user_modules()
host.mend_imported()

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
