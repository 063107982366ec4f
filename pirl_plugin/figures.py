"""Pictures of results (matplotlib, drawn without a screen)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

INK, MUTED, BLUE, ORANGE = "#1b1f24", "#8b949e", "#1f6feb", "#d1631b"


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, with its size in inches."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_pixels(view: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A normalised view [3, H, W] as uint8 [H, W, 3]."""
    levels = view.permute(1, 2, 0).numpy() * np.asarray(std) + np.asarray(mean)
    return (np.clip(levels, 0, 1) * 255).round().astype(np.uint8)


def contact_sheet(images: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Images uint8 [h, w, 3], all of one size, in rows of `columns` on white."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def show_image(axes, pixels: np.ndarray, title: str) -> None:
    """Draw an image without axes."""
    axes.imshow(pixels, interpolation="nearest")
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_axis_off()


def style(axes, title: str, xlabel: str = "", ylabel: str = "") -> None:
    """Apply a plain style: no box, light grid, title on the left."""
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.grid(axis="y", color="#e5e8eb", linewidth=0.8)
    axes.set_axisbelow(True)


def bars(axes, groups: Sequence[str], series: dict[str, Sequence[float]], title: str) -> None:
    """Grouped bars of shares in [0, 1], each labelled in per cent."""
    width = 0.8 / len(series)
    colors = (MUTED, BLUE, ORANGE)
    for number, (name, values) in enumerate(series.items()):
        places = np.arange(len(groups)) + (number - (len(series) - 1) / 2) * width
        drawn = axes.bar(places, values, width * 0.92, label=name, color=colors[number % 3])
        axes.bar_label(drawn, [f"{100 * value:.1f}" for value in values], fontsize=8, color=INK, padding=2)
    axes.set_xticks(np.arange(len(groups)), groups)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100%"])
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    style(axes, title)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path
