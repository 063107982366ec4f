"""Draws docs/method.png, the picture that explains PIRL: python docs/draw_method.py"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from skimage import data

from pirl_plugin import JigsawPatchTransform
from pirl_plugin.figures import BLUE, INK, MUTED, ORANGE, contact_sheet, new_figure, save, to_pixels

PLAIN = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "random_photometric": 0, "grayscale": 0}


def draw(path: Path) -> None:
    photo = Image.fromarray(data.chelsea())
    transform = JigsawPatchTransform(image_crop_scale=(0.9, 1.0), patch_crop_scale=(0.9, 1.0), photometric=PLAIN)
    view, patches = transform.views(photo, torch.Generator().manual_seed(3))
    pixels = [to_pixels(one, *(value.flatten().tolist() for value in (transform.mean, transform.std)))
              for one in (view, *patches)]  # fmt: skip

    figure = new_figure(11, 3.9)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(0, 3.9))
    axes.set_axis_off()

    def picture(image: np.ndarray, left: float, bottom: float, side: float) -> None:
        axes.imshow(image, extent=(left, left + side, bottom, bottom + side), zorder=2)

    def box(text: str, left: float, bottom: float, width: float, height: float, color: str) -> None:
        shape = FancyBboxPatch((left, bottom), width, height, boxstyle="round,pad=0.02,rounding_size=0.08",
                               facecolor="white", edgecolor=color, linewidth=1.6)  # fmt: skip
        axes.add_patch(shape)
        axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=10.5, color=INK)

    def arrow(start: tuple[float, float], end: tuple[float, float], color: str = MUTED, style: str = "-|>") -> None:
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=13, color=color, linewidth=1.6))

    picture(pixels[0], 0.25, 2.3, 1.35)
    axes.text(0.92, 3.72, "image I", ha="center", va="center", fontsize=10.5, color=INK)
    picture(contact_sheet(pixels[1:], 3, 6), 0.25, 0.25, 1.35)
    axes.text(0.92, 1.78, "its shuffled patches", ha="center", va="center", fontsize=10.5, color=INK)

    box("trunk\n(ResNet-50)", 2.3, 1.35, 1.3, 1.2, INK)
    for height in (2.97, 0.92):
        arrow((1.7, height), (2.25, 2.3 if height > 2 else 1.6))
    for height, name, vector, color in ((2.97, "head f", "f(v)", BLUE), (0.92, "head g", "g(v')", ORANGE)):
        box(name, 4.2, height - 0.3, 1.1, 0.6, color)
        arrow((3.65, 2.3 if height > 2 else 1.6), (4.15, height))
        box(vector, 5.9, height - 0.3, 0.9, 0.6, color)
        arrow((5.35, height), (5.85, height))

    left, width, rows, mine = 8.5, 2.1, 11, 5
    shades = np.random.default_rng(0).uniform(0.35, 1.0, (rows, 16))
    for row in range(rows):
        bottom = 0.35 + row * 0.29
        cells = np.full((1, 16, 3), 1.0)
        tint = np.array([0.12, 0.5, 0.22]) if row == mine else np.array([0.6, 0.64, 0.68])
        cells[0] = 1 - shades[row][:, None] * (1 - tint)
        axes.imshow(cells, extent=(left, left + width, bottom, bottom + 0.21), zorder=2, aspect="auto")
    axes.text(
        left + width / 2, 3.72, "memory bank, a row per image", ha="center", va="center", fontsize=10.5, color=INK
    )
    row_height = 0.35 + mine * 0.29 + 0.1
    green, red = "#1a7f37", "#cf222e"
    for height in (2.97, 0.92):
        arrow((6.85, height), (left - 0.08, row_height), green, "<|-|>")
        arrow((6.85, height), (left - 0.08, 3.2 if height > 2 else 0.55), red, "-")
    axes.text(6.35, 1.95, "pulled together:\nthe image's own row", ha="center", va="center", fontsize=9.5, color=green)
    axes.text(7.55, 3.42, "pushed apart: other rows", ha="center", va="center", fontsize=9.5, color=red)
    axes.text(7.55, 0.38, "pushed apart: other rows", ha="center", va="center", fontsize=9.5, color=red)
    axes.set(xlim=(0, 11), ylim=(0, 3.9), aspect="auto")
    save(figure, path)


if __name__ == "__main__":
    draw(Path(__file__).with_name("method.png"))
