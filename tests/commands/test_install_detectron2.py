"""What `pirl install-detectron2` says where it cannot do its work; tests/end_to_end/test_install.py installs it."""

import subprocess
from argparse import Namespace
from pathlib import Path

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


@pytest.mark.parametrize("before", [True, False])
def test_detectron2_replaces_what_was_there_without_its_compiled_files_and_with_its_licence(
    monkeypatch, tmp_path, before
):
    (tmp_path / "site").mkdir()
    if before:
        (tmp_path / "site" / "detectron2").mkdir()
        (tmp_path / "site" / "detectron2" / "old.py").touch()

    def pip(command, check):
        target = Path(command[command.index("--target") + 1])
        for name in ("detectron2/__init__.py", "detectron2/_C.so", "detectron2/__pycache__/x.pyc", "other/LICENSE"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_text(name)
        assert check and Path(command[-1]).read_text() == install_detectron2.PACKAGE + "\n"

    monkeypatch.setattr(subprocess, "run", pip)
    install_detectron2.from_index(tmp_path / "site")
    files = {str(file.relative_to(tmp_path)) for file in (tmp_path / "site").rglob("*") if file.is_file()}
    assert files == {"site/detectron2/__init__.py", "site/detectron2/LICENSE"}
    assert [folder.name for folder in (tmp_path / "site").iterdir()] == ["detectron2"]
