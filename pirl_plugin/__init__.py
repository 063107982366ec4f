"""PIRL (Pretext-Invariant Representation Learning) as a plugin for VISSL.

Importing the package supplies what VISSL 0.1.6 misses on today's stack (see pirl_plugin.host.mends), so that every
module of it may import VISSL. `import pirl_plugin.launch.registration` registers the plugin's components with VISSL.
"""

from pirl_plugin.host import mends

__version__ = "0.1.0"

mends.mend()
