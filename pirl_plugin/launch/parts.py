"""Whatever is registered, for commands that VISSL is not needed for: with VISSL's parts where it is installed."""

from __future__ import annotations

from pirl_plugin.host.mends import is_installed
from pirl_plugin.registry import import_user_modules


def import_parts() -> None:
    """Register the plugin's and the user's parts and, where VISSL is installed, all of its."""
    if is_installed("vissl") and is_installed("classy_vision"):
        from pirl_plugin.launch import registration  # noqa: F401
    else:
        import_user_modules()
