"""The installer's sentences, in a copy of it whose PATH holds only what each case allows."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")


def install(tmp_path: Path, commands: dict[str, str], **environment: str) -> subprocess.CompletedProcess:
    """Run a copy of install.sh with ordinary tools, no Python, and the given scripts as commands."""
    copy, tools = tmp_path / "copy", tmp_path / "bin"
    (copy / "extra_scripts").mkdir(parents=True)
    (copy / "pirl_plugin" / "commands").mkdir(parents=True)
    tools.mkdir()
    for name in ("extra_scripts/install.sh", "pirl_plugin/commands/install_detectron2.py"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("requirements.txt", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    for name in (
        "bash",
        "cat",
        "cksum",
        "cut",
        "dirname",
        "grep",
        "head",
        "awk",
        "sed",
        "sleep",
        "tail",
        "tr",
        "rm",
        "df",
        "mkdir",
    ):
        if name not in commands and shutil.which(name):
            (tools / name).symlink_to(shutil.which(name))
    for name, script in commands.items():
        (tools / name).write_text(f"#!{BASH}\n{script}\n")
        (tools / name).chmod(0o755)
    return subprocess.run(
        [BASH, str(copy / "extra_scripts" / "install.sh")],
        capture_output=True,
        text=True,
        timeout=500,
        env={"PATH": str(tools), "HOME": str(tmp_path), **environment},
    )


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE))


def test_the_lock_for_cuda_12_differs_in_pytorch_and_what_it_brings_only():
    usual, older = pins("requirements.txt"), pins("requirements-cuda12.txt")
    different = {name for name in usual.keys() | older.keys() if usual.get(name) != older.get(name)}
    own = {"torch", "torchvision", "triton", "sympy"}
    assert own <= different and {name for name in different - own if not name.startswith(("nvidia-", "cuda-"))} == set()
    assert not [name for name in older if name.endswith("cu13")] and older["nvidia-cuda-runtime-cu12"] == "12.4.127"


@pytest.mark.parametrize("name", ["requirements", "requirements-cuda12"])
def test_a_lock_has_the_versions_of_its_source_and_a_hash_for_each(name):
    lock = (ROOT / f"{name}.txt").read_text()
    assert pins(f"{name}.txt") == pins(f"{name}.in")
    packages = re.split(r"^(?=[\w-]+==)", lock, flags=re.MULTILINE)[1:]
    assert len(packages) == len(pins(f"{name}.in"))
    assert [one.split()[0] for one in packages if not re.search(r"--hash=sha256:[0-9a-f]{64}$", one.strip())] == []


BROKEN_SHIM = "echo 'pyenv: command not found' >&2; exit 127"
# A Python 3.12 that answers the version, and fails where its second question is asked.
WITHOUT_VENV = 'case "$2" in *version_info*) echo 3.12 ;; *) exit 1 ;; esac'
WITH_VENV = f'case "$2" in *version_info*) echo 3.12 ;; *executable*) echo {os.__file__} ;; *) exit 0 ;; esac'


@pytest.mark.parametrize(
    ("commands", "environment", "sentence"),
    [
        ({"python3.12": BROKEN_SHIM}, {}, "no Python 3.11, 3.12 or 3.13 found on PATH"),
        ({"python3": "echo 3.10"}, {}, "no Python 3.11, 3.12 or 3.13 found on PATH"),
        ({}, {"PYTHON": "/no/such/python"}, "PYTHON=/no/such/python does not run as Python 3.11, 3.12 or 3.13"),
        ({}, {"FOR_CUDA": "11"}, "FOR_CUDA=11 has no lock; give 12 or 13"),
        ({"python3.12": WITHOUT_VENV}, {}, "python3.12 has no venv module; install it"),
        (
            {"python3.12": WITH_VENV, "df": "echo Filesystem 1024-blocks Used Available; echo x 9 9 4194304 9% /"},
            {},
            "4 GB of free disk",
        ),
    ],
    ids=["broken shim", "too new", "named but missing", "no lock for that", "no venv module", "too little disk"],
)
def test_what_is_missing_is_said_in_one_sentence(tmp_path, commands, environment, sentence):
    result = install(tmp_path, commands, **environment)
    assert result.returncode == 1
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("install: ") and sentence in lines[0], result.stderr
    assert not (tmp_path / "copy" / ".venv").exists()
