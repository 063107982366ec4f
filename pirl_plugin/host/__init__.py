"""VISSL 0.1.6, unmodified, on today's stack.

Importing this package mends what VISSL misses; every module that imports VISSL lies below it, so that it comes first.
"""

from pirl_plugin.host import mends

mends.mend()
