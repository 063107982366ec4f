"""Packaging of pirl_plugin.

`configs/` and `extra_scripts/` lie at the top of the checkout, as VISSL's do, but install under the plugin's
own name: a second top-level `configs` would hide VISSL's, and uninstalling it would delete VISSL's files.

VISSL itself is not among the requirements: its metadata pins numpy 1.19.5 and other packages of 2021, which
no resolver can put beside a current torch. Nor is classy-vision: VISSL's wheel carries that folder already,
without saying so, and pip would write over it unasked. requirements.txt and docs/start.md install both, without
their dependencies.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version in pirl_plugin/__init__.py, found without importing torch."""
    text = (ROOT / "pirl_plugin" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('pirl_plugin/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_description() -> str:
    """The README without its pictures and without links to files: a package index has neither."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"^!\[.*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


class CleanBuildPy(build_py):
    """Starts from an empty folder: a file deleted since the last build must not come back in a wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


# Loose bounds: installing must upgrade nothing that a cluster owns. The exact pins are in requirements.txt.
# Hydra 1.4 drops the behaviour of 1.1 that VISSL's configs are written for.
INSTALL_REQUIRES = [
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy",
    "scipy",
    "pillow",
    "matplotlib>=3.6",
    "tensorboard",
    "tqdm",
    "pyyaml",
    "safetensors>=0.4",
    "simplejpeg>=1.6",
    # What VISSL needs, as nobody reads its own list.
    "fvcore",
    "hydra-core>=1.1,<1.4",
    "iopath",
    "omegaconf",
    "parameterized",
    "scikit-learn",
    "submitit",
    "tabulate",
]

EXTRAS_REQUIRE = {
    # Augmentation in the loader's workers. Not above: beside a cluster's opencv-python it would overwrite that.
    "opencv": ["opencv-python-headless"],
    # What Detectron2 needs beyond the list above. Detectron2 itself has no release to name: see docs/detection.md.
    "detection": ["cloudpickle", "packaging", "pycocotools", "termcolor", "yacs"],
    # Lists what Hugging Face datasets saved, and Parquet files, as data sets of images.
    "arrow": ["pyarrow>=14"],
    # The photos that the demo trains on when it is given none.
    "demo": ["scikit-image"],
    # Completion of `pirl` in a shell: eval "$(register-python-argcomplete pirl)".
    "completion": ["argcomplete"],
    # The site, `make docs`.
    "docs": ["furo", "myst-parser", "sphinx", "sphinx-copybutton"],
    "test": [
        "argcomplete",
        "lightning",
        "mypy",
        "pyarrow>=14",
        "pytest>=7",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "scikit-image",
        "timm",
        "types-PyYAML",
        "types-tabulate",
        "types-tqdm",
    ],
}

CONSOLE_SCRIPTS = {
    # Named as VISSL's own tool, so that a VISSL command line works unchanged.
    "run_distributed_engines.py": "pirl_plugin.commands.__launcher__:main",
    "pirl": "pirl_plugin.commands.__main__:main",
}

setup(
    name="pirl_plugin",
    version=read_version(),
    description="PIRL (self-supervised learning of pretext-invariant representations) as a plugin for VISSL",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    keywords=[
        "self-supervised learning",
        "PIRL",
        "VISSL",
        "contrastive learning",
        "jigsaw",
        "computer vision",
        "PyTorch",
    ],
    project_urls={"Paper": "https://arxiv.org/abs/1912.01991", "VISSL": "https://github.com/facebookresearch/vissl"},
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["pirl_plugin", "pirl_plugin.*"]),
        "pirl_plugin.configs",
        "pirl_plugin.extra_scripts",
        "hydra_plugins.pirl_plugin_path",
    ],
    package_dir={"pirl_plugin.configs": "configs", "pirl_plugin.extra_scripts": "extra_scripts"},
    package_data={"pirl_plugin": ["py.typed"], "pirl_plugin.configs": ["**/*.yaml"]},
    include_package_data=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": [f"{name} = {target}" for name, target in CONSOLE_SCRIPTS.items()]},
    cmdclass={"build_py": CleanBuildPy},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
