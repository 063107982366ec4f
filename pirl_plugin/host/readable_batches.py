"""VISSL's loaders without unreadable images, which VISSL would train and measure on as grey squares."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vissl.trainer.train_task import SelfSupervisionTask

from pirl_plugin.data.file_lists import printable, read_list, write_list


class ReadableBatches:
    """A loader's batches of `default_collate`, without unreadable images.

    In training and testing, a batch with no readable image keeps one grey image: all ranks must do the same number of
    steps.

    Args:
        loader: VISSL's loader, whose other attributes are available here as well.
        skip_empty: skip such a batch, since features can be extracted from any number of batches.

    Attributes:
        unreadable: indices, in the data set, of the images that were left out since the last `forget`.
        kept: those of them that were kept as grey images.
    """

    def __init__(self, loader: Any, skip_empty: bool = False) -> None:
        self.loader, self.skip_empty = loader, skip_empty
        self.unreadable: set[int] = set()
        self.kept: set[int] = set()

    def forget(self) -> None:
        """Start counting again from zero."""
        self.unreadable.clear()
        self.kept.clear()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> _Iterator:
        return _Iterator(self)

    def without_unreadable(self, batch: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """A batch without unreadable images; None if it is to be skipped."""
        valid = torch.stack([one > 0 for one in batch["data_valid"]]).all(0)  # VISSL's are 1 and -1
        if valid.all():
            return batch
        (indices, *_) = batch["data_idx"]
        self.unreadable.update(indices[~valid].tolist())
        if not valid.any():
            if self.skip_empty:
                return None
            valid[0] = True
            self.kept.add(int(indices[0]))
        return {key: [_rows(one, valid) for one in values] for key, values in batch.items()}


class _Iterator:
    """Iterator of ReadableBatches; like a loader's, it has a length, which VISSL's schedules need."""

    def __init__(self, batches: ReadableBatches) -> None:
        self.batches, self.iterator = batches, iter(batches.loader)

    def __len__(self) -> int:
        return len(self.iterator)

    def __iter__(self) -> _Iterator:
        return self

    def __next__(self) -> Mapping[str, Any]:
        while True:
            batch = self.batches.without_unreadable(next(self.iterator))
            if batch is not None:
                return batch


def _rows(values: Any, valid: Tensor) -> Any:
    if isinstance(values, Tensor) and len(values) == len(valid):
        return values[valid]
    if isinstance(values, (list, tuple)) and len(values) == len(valid):
        return [value for value, good in zip(values, valid.tolist(), strict=True) if good]
    return values


def leave_out_unreadable(task: SelfSupervisionTask, skip_empty: bool) -> None:
    """Wrap in `ReadableBatches` those of a task's loaders that collate as the evaluations do."""
    for split, loader in task.dataloaders.items():
        if task.config.DATA[split.upper()].COLLATE_FUNCTION == "default_collate":
            task.dataloaders[split] = ReadableBatches(loader, skip_empty)
    task.left_out = dict(task.dataloaders)  # VISSL's extraction deletes its loaders at the end


def unreadable_in(loader: Any) -> set[int]:
    """Indices that a loader has left out so far; empty if it is VISSL's own loader."""
    return loader.unreadable if isinstance(loader, ReadableBatches) else set()


def list_unreadable(dataset: Any, indices: set[int], path: Path, num_named: int = 20) -> None:
    """Log, and write to a file, the names of unreadable images, given by their indices in a data set."""
    names = names_or_numbers(dataset, sorted(indices))
    write_list(path, names)
    for name in names[:num_named]:
        logging.warning(f"Not read: {printable(name)}")
    if len(names) > num_named:
        logging.warning(f"... and {len(names) - num_named} more; all are in {path}")


def count_listed(folder: Path) -> dict[str, int]:
    """How many images per split the lists in a folder name, each counted once even if several ranks read it."""
    names: dict[str, set[str]] = {}
    for path in sorted(folder.glob("unreadable_*rank*.txt")):
        match = re.fullmatch(r"unreadable_(?:(train|test)_)?rank\d+\.txt", path.name)
        if match:
            names.setdefault(match.group(1) or "train", set()).update(read_list(path))
    return {split: len(found) for split, found in names.items()}


def names_or_numbers(dataset: Any, indices: Sequence[int]) -> list[str]:
    """`names_of`, or image numbers if the source has no files."""
    try:
        return names_of(dataset, indices)
    except ValueError:
        return [f"image {index}" for index in indices]


def names_of(dataset: Any, indices: Sequence[int]) -> list[str]:
    """Paths of images by their indices in VISSL's data set, which with DATA_LIMIT is a subset of the files.

    Raises:
        ValueError: VISSL's, if the source has no files.
    """
    paths = dataset.get_image_paths()[0]
    if dataset.data_limit < 0:
        return [paths[index] for index in indices]
    if dataset.image_and_label_subset is None:  # with loader workers, only their copies have drawn it
        dataset._init_image_and_label_subset()
    return [paths[dataset.image_and_label_subset[index]] for index in indices]
