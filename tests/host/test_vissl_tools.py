"""VISSL's `tools` are found although the user's project has a package of that name."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import multiprocessing
from pirl_plugin.launch import registration
if __name__ == "__main__":
    import tools
    from extra_scripts.create_low_shot_samples import generate_voc07_low_shot_samples
    from tools.train_svm import train_svm
    print("project" in tools.__file__, train_svm.__module__, generate_voc07_low_shot_samples.__module__)
    process = multiprocessing.get_context("forkserver").Process(target=train_svm, args=(None, None, None))
    process.start()
    process.join()
"""


def test_a_project_with_a_package_tools_gets_both(tmp_path):
    for name in ("tools", "extra_scripts"):
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "__init__.py").touch()
    (tmp_path / "main.py").write_text(CODE)
    done = subprocess.run(
        [sys.executable, tmp_path / "main.py"], capture_output=True, text=True, timeout=500,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}/project:{ROOT}"},
    )  # fmt: skip
    assert done.stdout.split() == ["True", "tools.train_svm", "extra_scripts.create_low_shot_samples"], done.stderr
    assert "in train_svm" in done.stderr and "ModuleNotFoundError" not in done.stderr  # it ran there, and had no config
