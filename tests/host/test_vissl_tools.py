"""VISSL's `tools` are found although the user's project has a package of that name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import multiprocessing
from pirl_plugin.launch import registration
if __name__ == "__main__":
    import tools
    from pirl_plugin.host.vissl_tools import script
    train_svm = script("train_svm").train_svm
    assert script("create_low_shot_samples").generate_voc07_low_shot_samples
    print("project" in tools.__file__, train_svm.__module__)
    process = multiprocessing.get_context("forkserver").Process(target=train_svm, args=(None, None, None))
    process.start()
    process.join()
"""


@pytest.mark.parametrize("file", ["tools/__init__.py", "tools.py"])
def test_a_project_with_tools_of_its_own_keeps_them_and_has_vissls(file, tmp_path):
    (tmp_path / "project" / file).parent.mkdir(parents=True)
    (tmp_path / "project" / file).touch()
    (tmp_path / "main.py").write_text(CODE)
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"], capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}/project:{ROOT}"},
    )  # fmt: skip
    assert done.stdout.split() == ["True", "vissl_tool_train_svm"], done.stderr
    assert "in train_svm" in done.stderr and "ModuleNotFoundError" not in done.stderr  # it ran there, and had no config
