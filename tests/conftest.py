"""Shared by all tests: the plugin registered, and folders of small real image files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are defined

from pirl_plugin.launch import registration  # noqa: F401, I001
from vissl.data.dataset_catalog import VisslDatasetCatalog

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

REPOSITORY = Path(__file__).resolve().parent.parent


def smooth_photo(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A colourful image with edges and gradients, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module", autouse=True)
def vissl_catalogue():
    """Data sets that a module's tests register with VISSL are forgotten at its end."""
    registered = VisslDatasetCatalog._VisslDatasetCatalog__REGISTERED_DATASETS
    before = dict(registered)
    yield
    registered.clear()
    registered.update(before)


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> Path:
    """48 JPEGs of 48 x 40 pixels in four class folders."""
    return _photos(tmp_path_factory.mktemp("photos"), first=0)


@pytest.fixture(scope="session")
def held_out_folder(tmp_path_factory) -> Path:
    """48 others, in the same class folders."""
    return _photos(tmp_path_factory.mktemp("held_out"), first=1000)


def _photos(folder: Path, first: int) -> Path:
    for number in range(48):
        target = folder / f"class{number % 4}"
        target.mkdir(exist_ok=True)
        smooth_photo(first + number).save(target / f"{number:03d}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def make_photo():
    """(seed, width, height) -> PIL image."""
    return smooth_photo


@pytest.fixture
def as_in_a_terminal():
    """Ctrl-C reaches this process and those that it starts, also where a shell runs the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
