"""PIRL (Pretext-Invariant Representation Learning) as a plugin for VISSL.

Importing this package alone costs nothing and touches nothing. `import pirl_plugin.registration`
makes VISSL run on today's stack and registers the plugin's components with it.
"""

__version__ = "0.1.0"
