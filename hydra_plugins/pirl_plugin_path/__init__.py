"""Tells Hydra where the plugin's configs are; imports nothing heavy, because Hydra hides its errors."""

from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


def config_folder() -> Path:
    """The folder that holds `config/`: inside the package (wheel) or beside it (checkout, editable)."""
    # Found without importing it: Hydra reads this file in every program of the environment that uses Hydra.
    package = Path(find_spec("pirl_plugin").origin).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


class PirlPluginPath(SearchPathPlugin):
    """Appends the plugin's config folder to Hydra's search path, once."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        path = f"file://{config_folder()}"
        if all(element.path != path for element in search_path.get_path()):
            search_path.append(provider="pirl_plugin", path=path)
