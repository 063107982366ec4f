"""Importing this module makes VISSL run here and registers all that the plugin adds to it.

Every process needs it: ranks, data-loader workers, jobs of submitit. Entry points import it at top level,
which spawned and fork-served children repeat.
"""

from pirl_plugin import host

host.require_vissl()

# Only for their decorators.
from pirl_plugin import (  # noqa: E402
    collator,
    heads,
    image_files,
    jigsaw,
    loss,
    memory_bank,
    sharded_memory_bank,
    trunks,
)

host.mend_imported()

__all__ = ["collator", "heads", "image_files", "jigsaw", "loss", "memory_bank", "sharded_memory_bank", "trunks"]
