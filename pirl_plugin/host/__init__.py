"""VISSL 0.1.6, unmodified, on today's stack.

Importing this package supplies what VISSL lacks; all modules that import VISSL are inside it, so it runs first.
"""

from pirl_plugin.host import mends

mends.mend()
