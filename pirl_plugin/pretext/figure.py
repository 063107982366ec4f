"""Draws what pretext tasks do to a photo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pirl_plugin.pretext.base import PRETEXT_TRANSFORMS, PretextTransform
from pirl_plugin.validation import ConfigError, check_choice, check_integer


def picture(task: PretextTransform, image: Image.Image, generator: torch.Generator) -> np.ndarray:
    """t(image) for one t, before photometric augmentation: its views side by side, uint8 [h, w, 3]."""
    from pirl_plugin.figures import contact_sheet  # imports Matplotlib, which loader workers do not need

    views = task.pretext_views(image, generator).permute(0, 2, 3, 1).numpy()
    side = math.ceil(math.sqrt(len(views)))
    return contact_sheet(list(views), columns=side, gap=6)


def draw(
    image: Image.Image, path: str | Path, tasks: Sequence[str] = (), columns: int = 4, seed: int = 0, dpi: int = 100
) -> list[str]:
    """Draw a row for each pretext task: the photo, then the results of some random t from its set T.

    Args:
        image: RGB.
        path: the PNG to write.
        tasks: registered names; none for all that have pretext views.
        columns: how many t to draw for each task.
        seed: seed of the draws.
        dpi: pixels per inch; each picture is two inches wide.

    Returns:
        the tasks drawn.

    Raises:
        ConfigError: for an unknown task, listing the known ones.
    """
    from pirl_plugin.figures import new_figure, show_image

    check_integer(columns, "--columns", 1, 50)
    check_integer(dpi, "--dpi", 10, 1000)
    for name in tasks:
        check_choice(name, PRETEXT_TRANSFORMS, "the pretext task")
    built = {name: PRETEXT_TRANSFORMS[name]() for name in tasks or PRETEXT_TRANSFORMS}
    built = {name: task for name, task in built.items() if task.num_views}
    if not built:
        raise ConfigError(f"{', '.join(tasks)} has no pretext views to draw.")
    figure = new_figure(2.1 * (columns + 1), 2.3 * len(built))
    engine: Any = figure.get_layout_engine()
    engine.set(wspace=0.08)
    grid = figure.subplots(len(built), columns + 1, squeeze=False)
    for row, (name, task) in zip(grid, built.items(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        show_image(row[0], np.asarray(image), name)
        for axes in row[1:]:
            show_image(axes, picture(task, image, generator), "")
    figure.savefig(path, dpi=dpi)
    return list(built)
