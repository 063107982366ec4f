"""Install Detectron2 into this environment, without a compiler.

    pirl install-detectron2                           # from PyPI alone, in seconds
    pirl install-detectron2 --checkout ~/detectron2   # from a checkout, compiled by its own setup.py

Detectron2 is not on PyPI under its own name. The package sal-detectron2 0.7.2 holds its official Python code of
April 2024; only that folder is copied, not the compiled part for Python 3.10, which Faster R-CNN R50-C4 does not need
(RoIAlign and NMS are torchvision's).
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PACKAGE = "sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
NEEDS = ("yacs", "pycocotools", "cloudpickle", "termcolor", "tabulate", "packaging", "fvcore", "iopath", "omegaconf")


def from_index(site: Path) -> None:
    """Copy the folder `detectron2` and its licence out of the package."""
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirement.txt")
        requirement.write_text(PACKAGE + "\n")
        target = Path(folder, "files")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
                *("--only-binary=:all:", "--implementation", "cp", "--python-version", "3.10"),
                *("--target", str(target), "-r", str(requirement)),
            ],
            check=True,
        )
        ready = Path(tempfile.mkdtemp(dir=site))
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(target / "detectron2", ready / "detectron2", ignore=ignored)
        for licence in target.rglob("LICENSE*"):
            shutil.copy(licence, ready / "detectron2" / "LICENSE")
        shutil.rmtree(site / "detectron2", ignore_errors=True)
        (ready / "detectron2").rename(site / "detectron2")
        ready.rmdir()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkout", type=Path, help="a checkout of Detectron2; needs a compiler")


def run(options: argparse.Namespace) -> None:
    if options.checkout is not None:
        if not (options.checkout / "detectron2").is_dir():
            sys.exit(f"Error: --checkout is {options.checkout}, which has no folder detectron2.")
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", str(options.checkout)]
        subprocess.run(pip, check=True)
    else:
        from_index(Path(sysconfig.get_path("purelib")))
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"Error: Detectron2 is installed but needs {', '.join(missing)}: pip install {' '.join(missing)}")
    subprocess.run([sys.executable, "-c", "import detectron2.modeling"], check=True)
    print("Detectron2 is installed.")


if __name__ == "__main__":  # as the installer runs it, before the plugin is installed
    arguments = argparse.ArgumentParser(description=__doc__)
    add_arguments(arguments)
    run(arguments.parse_args())
