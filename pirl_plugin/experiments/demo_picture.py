"""The figure that `pirl demo` draws of its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pirl_plugin import figures
from pirl_plugin.data.image_files import load_rgb
from pirl_plugin.evaluation.search import nearest_neighbors
from pirl_plugin.experiments.demo_data import DemoData
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform


def draw(path: Path, config, data: DemoData, losses: list[tuple[int, float]], results: dict, features: tuple) -> Path:
    """Draw one PNG: a photo with its shuffled patches, the loss, neighbours of a few queries, and the accuracies."""
    settings = config.DATA.TRAIN.TRANSFORMS[0]
    transform = JigsawPatchTransform.from_config(settings)
    levels = settings["mean"], settings["std"]
    figure = figures.new_figure(11, 7.2)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    top, bottom = parts
    axes = top.subplots(1, 4, width_ratios=(1, 1, 1, 1.6))
    photo = load_rgb(data.train_files[len(data.train_files) // 3])
    image, patches = transform.views(photo, torch.Generator().manual_seed(3))
    figures.show_image(axes[0], np.asarray(photo), "A training image I")
    figures.show_image(axes[1], figures.to_pixels(image, *levels), "Its view")
    sheet = [figures.to_pixels(patch, *levels) for patch in patches]
    figures.show_image(axes[2], figures.contact_sheet(sheet, transform.grid_size, gap=1), "t(I): patches, shuffled")
    if losses:
        iterations, values = zip(*losses, strict=True)
        axes[3].plot(iterations, values, color=figures.BLUE, linewidth=1.6)
    figures.style(axes[3], "Loss (Eq. 5)", "iteration")

    left, right = bottom.subplots(1, 2, width_ratios=(1.6, 1))
    train, test = features
    chosen = np.linspace(0, len(test) - 1, 5).round().astype(int)
    _, rows = nearest_neighbors(test[chosen], train, 7)
    sheet = []
    for query, neighbours in zip(chosen, rows, strict=True):
        files = [data.test_files[query], *(data.train_files[n] for n in neighbours)]
        sheet += [np.asarray(load_rgb(f).resize((40, 40))) for f in files]
    figures.show_image(
        left, figures.contact_sheet(sheet, 8, gap=3), "Held-out query (left) and its nearest training images"
    )
    measures = list(results["PIRL"])
    series: dict[str, Sequence[float]] = {name: [results[name][m] for m in measures] for name in ("untrained", "PIRL")}
    figures.bars(right, measures, series, "Held-out accuracy")
    return figures.save(figure, path)
