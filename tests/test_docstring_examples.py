"""The examples in docstrings run, and every public name has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import pirl_plugin

ROOMS = ("pretext", "data", "objective", "network", "evaluation")


def modules_with_examples() -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(pirl_plugin.__path__, "pirl_plugin.") if not module.ispkg]
    for room in ROOMS:
        package = importlib.import_module(f"pirl_plugin.{room}")
        names += [module.name for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    return [name for name in names if ">>>" in inspect.getsource(importlib.import_module(name))]


def test_there_are_examples():
    assert len(modules_with_examples()) >= 12


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_give_what_they_say(name, photo_folder, tmp_path, monkeypatch):
    (tmp_path / "photos").symlink_to(photo_folder)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert tried and not failed


@pytest.mark.parametrize("name", [name for name in pirl_plugin.__all__ if name not in ("__version__", "ConfigError")])
def test_every_public_name_has_an_example(name):
    assert ">>>" in (inspect.getdoc(getattr(pirl_plugin, name)) or "")
