"""Plots curves of one or several runs, from the progress.csv and monitor.csv that a run writes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from pirl_plugin.evaluation.figures import COLORS
from pirl_plugin.figures import new_figure, save, style
from pirl_plugin.validation import ConfigError, check_choice


@dataclass(frozen=True)
class Panel:
    """One plot: a column of one of the run's files."""

    file: str
    column: str
    title: str
    scale: float = 1.0


PANELS = (
    Panel("progress.csv", "loss", "loss"),
    Panel("progress.csv", "learning_rate", "learning rate"),
    Panel("monitor.csv", "effective_rank", "effective rank of the memory bank"),
    Panel("monitor.csv", "spread", "spread of the memory bank"),
    Panel("monitor.csv", "knn_accuracy", "kNN accuracy, %", 100),
    Panel("progress.csv", "images_per_second", "images per second"),
)


def series(folder: Path, panel: Panel) -> tuple[list[int], list[float]]:
    """Iterations and values of a panel's column; empty if the run has not written any.

    Losses of exactly 0 are left out: such an epoch only fills the memory bank.
    """
    iterations, values = [], []
    path = folder / panel.file
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                try:
                    iteration, value = int(row["iteration"]), float(row[panel.column])
                except (KeyError, TypeError, ValueError):  # not measured at this step, or a line cut by a kill
                    continue
                if panel.column != "loss" or value != 0:
                    iterations.append(iteration)
                    values.append(panel.scale * value)
    return iterations, values


def draw_curves(folders: Sequence[Path], output: Path, only: Sequence[str] = ()) -> Path:
    """Draw the curves of runs into one PNG, a colour for each run.

    Args:
        folders: the runs' folders (CHECKPOINT.DIR).
        output: the PNG to write.
        only: the columns to draw; none for all.

    Raises:
        ConfigError: for a folder in which no run has logged a loss, or an unknown column.
    """
    if output.suffix != ".png":
        raise ConfigError(f"--output is {output}; it must end in .png.")
    columns = [panel.column for panel in PANELS]
    wanted = [check_choice(column, columns, "--only") for column in only] or columns
    found = {panel: [series(folder, panel) for folder in folders] for panel in PANELS}
    for folder, (iterations, _) in zip(folders, found[PANELS[0]], strict=True):
        if not iterations:
            raise ConfigError(
                f"{folder} has no progress.csv with a loss in it; name the CHECKPOINT.DIR of a run that has logged one."
            )
    drawn = [panel for panel in PANELS if panel.column in wanted and any(iterations for iterations, _ in found[panel])]
    if not drawn:
        raise ConfigError(f"No run has logged {' or '.join(wanted)}; --only takes {', '.join(columns)}.")
    figure = new_figure(11, 3.0 * -(-len(drawn) // 2))
    for number, panel in enumerate(drawn):
        axes = figure.add_subplot(-(-len(drawn) // 2), 2, number + 1)
        _draw(axes, panel.title, [folder.name for folder in folders], found[panel])
        if number == 0 and len(folders) > 1:
            axes.legend(fontsize=8, frameon=False)
    return save(figure, output)


def _draw(axes: Axes, title: str, names: Sequence[str], curves: Sequence[tuple[list[int], list[float]]]) -> None:
    for number, (name, (iterations, values)) in enumerate(zip(names, curves, strict=True)):
        if iterations:
            marker = "o" if len(iterations) < 40 else None
            color = COLORS[number % len(COLORS)]
            axes.plot(iterations, values, color=color, linewidth=1.6, marker=marker, markersize=3, label=name)
    style(axes, title, "iteration")
