"""Starts runs: VISSL's launcher with the plugin registered, config checks, command-line overrides."""

import pirl_plugin.host  # noqa: F401  (mends VISSL before anything here imports it)
