"""Tells Hydra where the plugin's configs are; imports nothing heavy, because Hydra hides import errors."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from pirl_plugin.paths import config_folder


class PirlPluginPath(SearchPathPlugin):
    """Appends the plugin's config folder to Hydra's search path, once."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        path = f"file://{config_folder()}"
        if all(element.path != path for element in search_path.get_path()):
            search_path.append(provider="pirl_plugin", path=path)
