"""Registers all parts for commands that do not need VISSL: with VISSL's parts if it is installed."""

from __future__ import annotations

from pirl_plugin.host.mends import is_installed
from pirl_plugin.registry import import_user_modules


def import_parts() -> None:
    """Register the plugin's and the user's parts and, if VISSL is installed, all of VISSL's."""
    if is_installed("vissl") and is_installed("classy_vision"):
        from pirl_plugin.launch import registration  # noqa: F401
    else:
        import_user_modules()
