"""Starting things: VISSL's launcher with the plugin registered, checks of a config, the command line."""

import pirl_plugin.host  # noqa: F401  (mends VISSL before anything here imports it)
