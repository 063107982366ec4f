"""Reads and transforms images batch by batch, in worker processes or in this one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pirl_plugin.data.image_files import load_rgb

OnUnreadable = Callable[[Any, Exception], None]


def _sendable(error: Exception) -> Exception:
    """The error, or one with the same message if it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its class can do anything
        return OSError(f"{type(error).__name__}: {error}")
    return error


class _Made(Dataset):
    """(place, the item made for it or None, the error or None)."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, place: int) -> tuple[int, Any, Exception | None]:
        try:
            return place, self.make(place), None
        except Exception as error:  # whatever a broken file makes PIL raise
            return place, None, _sendable(error)


def _collate(made: list[tuple[int, Any, Exception | None]]) -> tuple[list[int], Any, list[tuple[int, Exception]]]:
    places = [place for place, _, error in made if error is None]
    values = default_collate([value for _, value, error in made if error is None]) if places else None
    return places, values, [(place, error) for place, _, error in made if error is not None]


def made_batches(
    make: Callable[[int], Any], batches: Sequence[list[int]], workers: int = 0
) -> Iterator[tuple[list[int], Any, list[tuple[int, Exception]]]]:
    """Make the items of each batch, in order, without touching the global random state.

    Args:
        make: place -> a tensor or a tuple of tensors, of the same shapes for all places.
        batches: lists of places.
        workers: processes that make items; 0: this process does.

    Yields:
        for each batch the places that could be made, their items stacked (None if there are none), and
        (place, error) for the others.
    """
    generator = torch.Generator()  # a loader draws its workers' seed from it
    yield from DataLoader(
        _Made(make), batch_sampler=batches, num_workers=workers, collate_fn=_collate, generator=generator
    )


def in_order(count: int, size: int) -> list[list[int]]:
    """0 ... count - 1 in batches of at most `size`."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


def view_batches(
    images: Sequence[Image.Image | str | Path],
    view: Callable[[Image.Image], Tensor],
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
    on_unreadable: OnUnreadable | None = None,
    workers: int = 0,
) -> Iterator[Tensor]:
    """The views of images or image files, in batches float [b, 3, H, W]; the arguments are those of `embed`.

    The view of an unreadable file is NaN, which does not affect other images if the network is in eval mode.
    """

    def make(place: int) -> Tensor:
        image = images[place]
        return view(image if isinstance(image, Image.Image) else load_rgb(image))

    blank, done = view(Image.new("RGB", (8, 8))), 0
    for places, views, failed in made_batches(make, in_order(len(images), batch_size), workers):
        for place, error in failed:
            if on_unreadable is None:
                raise error
            on_unreadable(images[place], error)
        first, count = done, len(places) + len(failed)
        if failed:
            whole = blank.new_full((count, *blank.shape), torch.nan)
            if places:
                whole[torch.tensor(places) - first] = views
            views = whole
        yield views
        done += count
        if progress is not None:
            progress(done, len(images))
