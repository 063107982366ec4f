"""The figure that `pirl demo` draws of its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Rectangle

from pirl_plugin import figures
from pirl_plugin.data.image_files import load_rgb
from pirl_plugin.evaluation.search import nearest_neighbors
from pirl_plugin.experiments.demo_data import DemoData
from pirl_plugin.pretext.jigsaw import JigsawPatchTransform

EXAMPLE = "astronaut/0079.png"  # of the bundled tiles, one in which one sees what it is: a face
QUERIES, NEIGHBORS, SIDE, GAP = 5, 7, 40, 4  # rows, columns, and pixels of and between their images


def draw(path: Path, config, data: DemoData, losses: list[tuple[int, float]], results: dict, features: tuple) -> Path:
    """Draw one PNG: a photo with its shuffled patches, the loss, neighbours of a few queries, and the accuracies."""
    settings = config.DATA.TRAIN.TRANSFORMS[0]
    transform = JigsawPatchTransform.from_config(settings)
    levels = settings["mean"], settings["std"]
    figure = figures.new_figure(11, 7.4)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.2))
    top, bottom = parts
    axes = top.subplots(1, 4, width_ratios=(1, 1, 1, 1.6))
    example = data.train_folder / EXAMPLE
    photo = load_rgb(example if example.is_file() else data.train_files[len(data.train_files) // 2])
    image, patches = transform.views(photo, torch.Generator().manual_seed(0))
    figures.show_image(axes[0], np.asarray(photo), "A training image I")
    figures.show_image(axes[1], figures.to_pixels(image, *levels), "A view of it")
    sheet = [figures.to_pixels(patch, *levels) for patch in patches]
    figures.show_image(axes[2], figures.contact_sheet(sheet, transform.grid_size, gap=1), "It: patches, shuffled")
    draw_losses(axes[3], losses)

    left, right = bottom.subplots(1, 2, width_ratios=(1.6, 1))
    draw_neighbors(left, data, *features)
    measures = list(results["PIRL"])
    series: dict[str, Sequence[float]] = {name: [results[name][m] for m in measures] for name in ("untrained", "PIRL")}
    figures.bars(right, measures, series, "Held-out accuracy")
    return figures.save(figure, path)


def draw_losses(axes, losses: list[tuple[int, float]]) -> None:
    """The loss over iterations; the grey part is the first epoch, which fills the memory bank and has none."""
    figures.style(axes, "Training loss (Eq. 5)", "iteration", "loss")
    if not losses:
        return
    iterations, values = zip(*losses, strict=True)
    axes.plot(iterations, values, color=figures.BLUE, linewidth=1.6)
    axes.axvspan(0, iterations[0], color="#e5e8eb")
    axes.set_xlim(left=0)
    axes.text(iterations[0] / 2, 0.5, "fills the memory bank", rotation=90, fontsize=8, color=figures.INK,
              transform=axes.get_xaxis_transform(), ha="center", va="center")  # fmt: skip


def draw_neighbors(axes, data: DemoData, train: np.ndarray, test: np.ndarray) -> None:
    """Queries from end to end of the held-out images, each with the training images nearest to it, marked by class."""
    chosen = np.linspace(0, len(test) - 1, QUERIES).round().astype(int)
    _, rows = nearest_neighbors(test[chosen], train, NEIGHBORS)
    sheet = []
    for query, neighbors in zip(chosen, rows, strict=True):
        files = [data.test_files[query], *(data.train_files[n] for n in neighbors)]
        sheet += [np.asarray(load_rgb(file).resize((SIDE, SIDE))) for file in files]
    title = "Held-out images (left) and the training images nearest to them"
    figures.show_image(axes, figures.contact_sheet(sheet, NEIGHBORS + 1, GAP), title)
    if data.train_labels is None or data.test_labels is None:
        return
    axes.set_title(f"{title}:\nof the same class (green), of another (red, dashed)", fontsize=10, loc="left")
    for row, (query, neighbors) in enumerate(zip(chosen, rows, strict=True)):
        for column, right in enumerate(data.train_labels[neighbors] == data.test_labels[query], start=1):
            corner = (column * (SIDE + GAP) - 0.5, row * (SIDE + GAP) - 0.5)
            look = {"edgecolor": "#1a7f37"} if right else {"edgecolor": "#cf222e", "linestyle": (0, (3, 2))}
            axes.add_patch(Rectangle(corner, SIDE, SIDE, fill=False, linewidth=2.2, clip_on=False, **look))
