"""The paper's analysis figures, from arrays and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from pirl_plugin.figures import BLUE, INK, MUTED, ORANGE, contact_sheet, new_figure, save, show_image, style

GREEN, PURPLE, RED, TEAL = "#1a7f37", "#8250df", "#cf222e", "#0a7ea4"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, MUTED, INK)


def draw_invariance(
    axes: Axes,
    histograms: Mapping[str, Sequence[int]],
    edges: np.ndarray,
    means: Mapping[str, float] | None = None,
    level: str = "heads",
) -> None:
    """Figure 4: a histogram of distances for each model, as shares of its images.

    Args:
        histograms: by model, counts in the bins between `edges`.
        means: by model, for the legend.
        level: what is compared, for the title: `heads` (f(v_I) and g(v_It)) or features of the `trunk`.
    """
    centers = (edges[:-1] + edges[1:]) / 2
    for number, (name, counts) in enumerate(histograms.items()):
        shares = np.asarray(counts) / max(1, np.sum(counts))
        color = COLORS[number % len(COLORS)]
        label = name if means is None else f"{name}, mean {means[name]:.2f}"
        axes.plot(centers, shares, color=color, linewidth=1.6, label=label)
        axes.fill_between(centers, shares, color=color, alpha=0.12, linewidth=0)
    axes.legend(fontsize=8, frameon=False)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0)
    compared = {"heads": "f(v_I) to g(v_It)", "trunk": "the trunk's features of I to those of I^t"}[level]
    style(axes, f"Figure 4: distance of {compared}", "L2 distance of unit representations", "share of images")


def draw_lines(
    axes: Axes,
    series: Mapping[str, Mapping[str, Sequence[float]]],
    title: str,
    label: str,
    logarithmic: bool = False,
    ylabel: str = "linear accuracy, %",
) -> None:
    """Figures 5 to 8: accuracies in [0, 1] over layers or values of a setting.

    The line goes through the means over seeds, with error bars of one standard deviation; a single seed has a hollow
    marker. The axis starts at 0, so that noise does not look like a peak.

    Args:
        series: by name of the line, by value on the x axis, the accuracies of the seeds.
        logarithmic: whether the x axis is logarithmic, if all values are numbers.
    """
    ticks = list(dict.fromkeys(value for line in series.values() for value in line))
    numeric = all(_is_number(tick) for tick in ticks)
    ticks = sorted(ticks, key=float) if numeric else ticks
    places = {tick: (float(tick) if numeric else number) for number, tick in enumerate(ticks)}
    for number, (name, line) in enumerate(series.items()):
        color, values = COLORS[number % len(COLORS)], sorted(line, key=places.__getitem__)
        x = [places[value] for value in values]
        means = [100 * float(np.mean(line[value])) for value in values]
        single = max(len(line[value]) for value in values) == 1
        axes.plot(x, means, color=color, linewidth=1.6, label=f"{name}{', one seed' * single}")
        for place, mean, value in zip(x, means, values, strict=True):
            seeds = line[value]
            bar = 100 * float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None
            face = color if len(seeds) > 1 else "white"
            axes.errorbar(place, mean, bar, color=color, marker="o", markersize=4, markerfacecolor=face, capsize=3)
    if numeric and logarithmic:
        axes.set_xscale("log")
    axes.set_xticks(list(places.values()), list(places))
    axes.minorticks_off()
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])  # room for the markers at the top
    axes.legend(fontsize=8, frameon=False)
    style(axes, title, label, ylabel)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def draw_gallery(path: str | Path, rows: Sequence[Sequence[np.ndarray]], title: str) -> Path:
    """Rows of images uint8 [h, w, 3] of one size, such as a query and its nearest neighbours."""
    images = [image for row in rows for image in row]
    columns = len(rows[0])
    sheet = contact_sheet(images, columns, gap=max(2, images[0].shape[0] // 12))
    figure = new_figure(0.8 * columns + 0.4, 0.8 * len(rows) + 0.6)
    show_image(figure.subplots(), sheet, title)
    return save(figure, path)


def draw_spectrum(axes: Axes, spectra: Mapping[str, Sequence[float]]) -> None:
    """Shares of the principal directions in the variance of embeddings, in descending order, one line per model."""
    for number, (name, shares) in enumerate(spectra.items()):
        axes.plot(
            1 + np.arange(len(shares)),
            np.maximum(np.asarray(shares), 1e-8),
            color=COLORS[number % len(COLORS)],
            label=name,
        )
    axes.set_yscale("log")
    axes.set_xscale("log")
    axes.legend(fontsize=8, frameon=False)
    style(axes, "Spread of the embeddings", "principal direction", "share of the variance")
