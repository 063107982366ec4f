"""Run the tests with another PyTorch than the pinned one, in a separate environment.

python extra_scripts/other_versions.py --torch 2.6.0 --torchvision 0.21.0

The other packages are those of requirements.in. Arguments after -- go to pytest; default: the fast tests. The
environment (.venv_torch<version>, 6 GB) is kept, and the same command uses it again.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPLACED = re.compile(r"(torch|torchvision|triton|cuda-\w+|nvidia-\w.*)==")


def other_requirements(lock: str) -> str:
    """The lines of the lock file, except PyTorch and the dependencies of its Linux wheel."""
    return "\n".join(line for line in lock.splitlines() if not REPLACED.match(line)) + "\n"


def install(folder: Path, torch: str, torchvision: str) -> None:
    """Make the environment, unless it exists with the same versions."""
    marker, python = folder / "ready", folder / "bin" / "python"
    lock = (ROOT / "requirements.in").read_text()
    made_of = f"torch {torch}, torchvision {torchvision}, Python {sys.version}\n{lock}"
    if marker.is_file() and marker.read_text() == made_of:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    own = folder / "requirements.txt"
    own.write_text(other_requirements(lock))
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "--quiet"]
    tools = re.findall(r"^(?:pip|setuptools|wheel)==\S+", lock, re.MULTILINE)
    classy_vision = re.search(r"^classy-vision==\S+", lock, re.MULTILINE).group()
    numpy = re.search(r"^numpy==\S+", lock, re.MULTILINE).group()
    steps = {
        "build tools": [*pip, "--no-deps", *tools],
        f"torch {torch}, torchvision {torchvision}": [
            *pip, f"torch=={torch}", f"torchvision=={torchvision}", *tools, numpy,
        ],
        "the other packages of requirements.in": [*pip, "--no-deps", "--no-build-isolation", "-r", own],
        "classy-vision on top of VISSL's copy": [*pip, "--no-deps", "--force-reinstall", classy_vision],
        "Detectron2": [python, "-I", ROOT / "pirl_plugin" / "commands" / "install_detectron2.py"],
        "this project": [*pip, "--no-deps", "--no-build-isolation", ROOT],
    }  # fmt: skip
    for number, (text, command) in enumerate(steps.items(), start=1):
        started = time.monotonic()
        print(f"[{number}/{len(steps)}] {text} ...", flush=True)
        subprocess.run(command, check=True, cwd=ROOT)
        print(f"      done in {time.monotonic() - started:.0f} s", flush=True)
    marker.write_text(made_of)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", required=True, help="a version, such as 2.6.0")
    parser.add_argument("--torchvision", required=True, help="the matching version, such as 0.21.0")
    parser.add_argument("--folder", type=Path, help="folder of the environment; default .venv_torch<version>")
    parser.add_argument("tests", nargs="*", help="arguments of pytest")
    options = parser.parse_args()
    folder = (options.folder or ROOT / f".venv_torch{options.torch}").resolve()
    try:
        install(folder, options.torch, options.torchvision)
    except subprocess.CalledProcessError as error:
        sys.exit(f"Error: {' '.join(map(str, error.cmd))} ended with {error.returncode}; its output is above.")
    # Test the checkout as it is now, not as it was installed.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    tests = options.tests or ["-m", "not slow"]
    sys.exit(subprocess.run([folder / "bin" / "python", "-m", "pytest", *tests], cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()
