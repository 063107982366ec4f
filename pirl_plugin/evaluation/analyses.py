"""The paper's analyses of checkpoints (`pirl analysis`); each writes a figure and its numbers."""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pirl_plugin.data.class_folders import check_splits
from pirl_plugin.data.image_files import list_images, load_rgb
from pirl_plugin.data.unreadable import Unreadable
from pirl_plugin.evaluation.figures import draw_gallery, draw_invariance, draw_lines, draw_spectrum
from pirl_plugin.evaluation.invariance import BINS, pairs_of_checkpoint, pretext_of, with_histogram
from pirl_plugin.evaluation.layers import embed_layers, layer_accuracies
from pirl_plugin.evaluation.measures import unit
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.evaluation.search import nearest_neighbors
from pirl_plugin.evaluation.spread import Moments, effective_rank, spectrum
from pirl_plugin.evaluation.spread import spread as spread_of
from pirl_plugin.figures import new_figure, save
from pirl_plugin.network.devices import Compute
from pirl_plugin.network.features import embed, progress_line
from pirl_plugin.network.weights import Trunk, load_trunk
from pirl_plugin.paths import prepare_output, write_json
from pirl_plugin.validation import ConfigError, check_integer

USUAL = 8  # queries, and neighbours of each


def chosen(path: str | os.PathLike[str], limit: int) -> list[str]:
    """At most `limit` images of a folder or list, evenly spaced."""
    check_integer(limit, "the limit of images", 2)
    files = list_images(path)
    return [files[place] for place in np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int)]


def view_of(name: str, trunk: Trunk, size: int | None) -> Callable[[Image.Image], Tensor]:
    """The view that a network expects, which is also printed; `size` in pixels overrides its own."""
    view = trunk.view(size)
    print(f"{name}: {trunk.architecture}, expects {trunk.preprocessing}" + (f"; size used: {size}" if size else ""))
    return view


def invariance(options: Namespace, models: dict[str, Path], unreadable: Unreadable) -> dict:
    """Distances from f(v_I) to g(v_It) by model."""
    files = chosen(options.images, options.limit)
    pretext = None
    if options.pretext_of is not None:
        pretext = pretext_of(options.pretext_of)
    results = {}
    for name, path in models.items():
        pairs = pairs_of_checkpoint(
            path,
            files,
            options.level,
            options.statistics,
            pretext,
            options.draws,
            progress=progress_line(name),
            on_unreadable=unreadable,
            compute=options.compute,
        )
        results[name] = with_histogram(*pairs, options.draws)
        numbers = {key: value for key, value in results[name].items() if key != "histogram"}
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in numbers.items()))
    figure = new_figure(6, 4)
    histograms = {name: result["histogram"] for name, result in results.items()}
    means = {name: result["mean"] for name, result in results.items()}
    draw_invariance(figure.subplots(), histograms, BINS, means, options.level)
    save(figure, options.picture)
    return {"bins": BINS.tolist(), "models": results}


def layers(options: Namespace, models: dict[str, Path], unreadable: Unreadable) -> dict:
    """Linear accuracy by model and layer."""
    check_splits(options.train, options.test)
    splits = [labelled_images(folder, options.limit, "--limit") for folder in (options.train, options.test)]
    results = {}
    for name, path in models.items():
        trunk = load_trunk(path)
        view, parts = view_of(name, trunk, options.size), list[Any]()
        for files, labels in splits:
            how = {"progress": progress_line(name), "on_unreadable": unreadable, "compute": options.compute}
            features = embed_layers(trunk.network, files, view, trunk.stages, 9000, **how)
            read = unreadable.read(files)
            parts += [{layer: values[read] for layer, values in features.items()}, labels[read]]
        results[name] = layer_accuracies(*parts)
        print(f"{name}: " + ", ".join(f"{layer} {100 * value:.1f}" for layer, value in results[name].items()))
    figure = new_figure(6, 4)
    series = {name: {layer: [value] for layer, value in result.items()} for name, result in results.items()}
    draw_lines(figure.subplots(), series, "Figure 5: quality by layer", "layer")
    save(figure, options.picture)
    return {"models": results}


def neighbors(options: Namespace, models: dict[str, Path], unreadable: Unreadable) -> dict:
    """The nearest images of each query, by file."""
    if len(models) > 1:
        raise ConfigError("neighbors takes one checkpoint.")
    ((name, path),) = models.items()
    trunk = load_trunk(path)
    view = view_of(name, trunk, options.size)
    chosen_files = chosen(options.images, options.limit)
    features, files = embed_readable(trunk, chosen_files, view, name, unreadable, options.compute)
    if len(files) < 2:
        raise ConfigError(f"{options.images} has one image that can be read; neighbors needs others.")
    most = _at_most(options.neighbors, len(files) - 1, "--neighbors")
    queries = np.linspace(0, len(files) - 1, _at_most(options.queries, len(files), "--queries")).round().astype(int)
    device = options.compute.device
    _, ranked = nearest_neighbors(features[queries], features, most + 1, device=device)  # one is the image itself
    rows = [[row for row in line if row != query] for query, line in zip(queries, ranked, strict=True)]
    rows = [line[:most] for line in rows]
    side = min(96, (options.size or trunk.preprocessing.size) * 2)

    def thumbnail(place: int) -> np.ndarray:
        return np.asarray(ImageOps.fit(load_rgb(files[place]), (side, side)))

    pictures = [[thumbnail(query), *map(thumbnail, row)] for query, row in zip(queries, rows, strict=True)]
    draw_gallery(options.picture, pictures, f"{name}: query, then its nearest neighbours")
    return {"queries": {files[query]: [files[row] for row in line] for query, line in zip(queries, rows, strict=True)}}


def _at_most(number: int | None, most: int, where: str) -> int:
    """An option's number, or USUAL of as many as there are without one; more than there are is refused."""
    return min(USUAL, most) if number is None else check_integer(number, where, 1, most)


def spread(options: Namespace, models: dict[str, Path], unreadable: Unreadable) -> dict:
    """Spread, effective rank and spectrum by model."""
    files, results = chosen(options.images, options.limit), dict[str, dict[str, Any]]()
    for name, path in models.items():
        trunk = load_trunk(path)
        view = view_of(name, trunk, options.size)
        features, _ = embed_readable(trunk, files, view, name, unreadable, options.compute)
        moments = Moments.of(torch.from_numpy(unit(features, np.float64)))
        numbers = {"spread": spread_of(moments), "effective_rank": effective_rank(moments)}
        results[name] = {**numbers, "spectrum": spectrum(moments).tolist()}
        print(f"{name}: spread {numbers['spread']:.3f}, effective rank {numbers['effective_rank']:.1f}")
    figure = new_figure(6, 4)
    draw_spectrum(figure.subplots(), {name: result["spectrum"] for name, result in results.items()})
    save(figure, options.picture)
    return {"models": results}


def embed_readable(
    trunk: Trunk,
    files: list[str],
    view: Callable[[Image.Image], Tensor],
    name: str,
    unreadable: Unreadable,
    compute: Compute,
) -> tuple[np.ndarray, list[str]]:
    """Features float32 [n, D] of the files that can be read, and those files."""
    shown = progress_line(name)
    features = embed(trunk.network, files, view, progress=shown, on_unreadable=unreadable, compute=compute)
    read = unreadable.read(files)
    return features[read], [file for file, good in zip(files, read, strict=True) if good]


ANALYSES = {"invariance": invariance, "layers": layers, "neighbors": neighbors, "spread": spread}


def analyse(options: Namespace) -> None:
    """Run one of ANALYSES with the options of `pirl analysis`, and write its figure and its numbers.

    Raises:
        ConfigError: for options that contradict each other, or files that cannot be used.
    """
    names = options.names or [str(path) for path in options.checkpoints]
    if len(names) != len(options.checkpoints):
        raise ConfigError(f"--names has {len(names)} names for {len(options.checkpoints)} checkpoints; give each one.")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ConfigError(f"The {'--names' if options.names else 'checkpoints'} have {twice[0]} twice; give it once.")
    for key in ("limit", "size", "draws", "queries", "neighbors"):
        if getattr(options, key, None) is not None:
            check_integer(getattr(options, key), f"--{key}", 1)
    options.picture, path = Path(f"{options.output}.png"), Path(f"{options.output}.json")
    for written in (options.picture, path):
        prepare_output(written, "--output")
    options.compute, unreadable = Compute.of_options(options), Unreadable()
    numbers = ANALYSES[options.analysis](options, dict(zip(names, options.checkpoints, strict=True)), unreadable)
    numbers["unreadable"] = list(unreadable.reasons)
    write_json(path, numbers)
    print(f"Written: {options.picture} and {path}" + (f"; {unreadable}" if unreadable else ""))
