"""The loop of one's own learns; test_packaging.py runs both examples from the wheel, without VISSL."""

import runpy
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def test_the_plain_loop_learns_and_fits_seventy_lines(photo_folder):
    source = (ROOT / "examples" / "plain_pytorch.py").read_text()
    assert source.count("\n") <= 80
    example = runpy.run_path(str(ROOT / "examples" / "plain_pytorch.py"))
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 0.03}
    _, losses = example["train"](str(photo_folder), **settings, batch_norm=False)
    assert losses[0] == 0  # the bank is filled
    assert np.isfinite(losses).all() and losses[-1] < losses[1]
    _, losses = example["train"](str(photo_folder), **{**settings, "epochs": 2})
    assert losses[0] == 0 and np.isfinite(losses).all() and losses[1] > 0
