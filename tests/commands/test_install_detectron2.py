"""What `pirl install-detectron2` says where it cannot do its work; tests/end_to_end/test_install.py installs it."""

import subprocess
from argparse import Namespace

import pytest

from pirl_plugin.commands import install_detectron2


def test_packages_that_detectron2_lacks_are_named_with_the_command(monkeypatch, tmp_path):
    (tmp_path / "detectron2").mkdir()
    called = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: called.append(command))
    monkeypatch.setattr(install_detectron2, "NEEDS", ("json", "nonesuch_a", "nonesuch_b"))
    with pytest.raises(SystemExit, match=r"needs nonesuch_a, nonesuch_b: pip install nonesuch_a nonesuch_b$"):
        install_detectron2.run(Namespace(checkout=tmp_path))
    assert called[0][-1] == str(tmp_path) and "--no-deps" in called[0] and len(called) == 1


def test_a_folder_without_detectron2_is_refused_before_pip_sees_it(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    with pytest.raises(SystemExit, match="which has no folder detectron2"):
        install_detectron2.run(Namespace(checkout=tmp_path))
