"""Monitors the representation during training: spread of the memory bank, and kNN accuracy on labelled images."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classy_vision.generic.distributed_util import is_primary
from torch import Tensor

from pirl_plugin.data.class_folders import check_same_classes
from pirl_plugin.data.file_lists import printable
from pirl_plugin.distributed import collective_device, gather_padded, rank, sum_over_ranks, world_size
from pirl_plugin.evaluation.measures import weighted_knn
from pirl_plugin.evaluation.quick import labelled_images
from pirl_plugin.evaluation.spread import Moments, effective_rank, spread
from pirl_plugin.network.features import center_view_of, embed
from pirl_plugin.training.base_hook import Hook
from pirl_plugin.training.progress import fills_the_bank, keep_rows
from pirl_plugin.training.warning_signs import SAMPLE, WarningSigns, chance_loss
from pirl_plugin.validation import ConfigError, check_integer, check_keys, check_mapping, check_number

WHERE = "HOOKS.PIRL_MONITOR"
MOST_ROWS = 65_536  # rows of the bank that are examined
MOST_DIMENSIONS = 2048  # of an embedding whose effective rank is computed: above, that takes minutes


@dataclass(frozen=True)
class MonitorSettings:
    """HOOKS.PIRL_MONITOR of the config.

    Attributes:
        every_iterations: how often the bank is examined, besides at the end of each epoch.
        smallest_spread, smallest_effective_rank: below either, the log warns of a collapse.
        knn_every_epochs: how often the kNN accuracy is measured; 0 for never.
        knn_train, knn_test: folders with one sub-folder per class: images that vote, and images that are voted on.
        knn_images: at most this many of each, the same number per class.
        knn_k: neighbours.
        compare_images: at the end of a run on a folder with one sub-folder per class, at most this many of its images
            are used to compare the kNN accuracy with the untrained network's; 0 for none.
    """

    every_iterations: int = 1000
    smallest_spread: float = 0.01
    smallest_effective_rank: float = 2.0
    knn_every_epochs: int = 0
    knn_train: str = ""
    knn_test: str = ""
    knn_images: int = 10_000
    knn_k: int = 200
    compare_images: int = 2000

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MonitorSettings:
        """Settings from a mapping of the attributes above; those left out keep their defaults.

        Raises:
            ConfigError: for an unknown key or an invalid value.
        """
        check_keys(check_mapping(config, WHERE), [field.name for field in fields(cls)], WHERE)
        settings = cls(**config)
        check_integer(settings.every_iterations, f"{WHERE}.every_iterations", 1)
        check_number(settings.smallest_spread, f"{WHERE}.smallest_spread", 0, 1)
        check_number(settings.smallest_effective_rank, f"{WHERE}.smallest_effective_rank", 0)
        check_integer(settings.knn_every_epochs, f"{WHERE}.knn_every_epochs", 0)
        check_integer(settings.knn_images, f"{WHERE}.knn_images", 2)
        check_integer(settings.knn_k, f"{WHERE}.knn_k", 1)
        check_integer(settings.compare_images, f"{WHERE}.compare_images", 0)
        for key in ("knn_train", "knn_test"):
            folder = getattr(settings, key)
            if not isinstance(folder, str) or (settings.knn_every_epochs and not folder):
                raise ConfigError(
                    f"{WHERE}.{key} is {folder!r}; with knn_every_epochs {settings.knn_every_epochs} it must be a "
                    f"folder with one sub-folder per class."
                )
        return settings

    def images(self) -> list[tuple[list[str], np.ndarray]]:
        """Files and class numbers of knn_train and knn_test; none if kNN is off.

        Raises:
            ConfigError: for a folder without classes, or two with different ones.
        """
        if not self.knn_every_epochs:
            return []
        check_same_classes(self.knn_train, self.knn_test)
        return [
            labelled_images(folder, self.knn_images, f"{WHERE}.knn_images")
            for folder in (self.knn_train, self.knn_test)
        ]


def bank_health(bank: Any) -> dict[str, float]:
    """Statistics of the updated rows of a bank, over all ranks.

    Returns:
        rows_updated, the share of the rows that were ever updated, and, for at least two such rows of at most
        MOST_DIMENSIONS, spread and effective_rank; the same on all ranks.
    """
    updated = bank.updated
    places = updated.nonzero()[:, 0] if bank.dim <= MOST_DIMENSIONS else updated.nonzero()[:0, 0]
    places = places[:: max(1, -(-len(places) // MOST_ROWS))]
    moments = Moments.of(bank.rows[places][:, :MOST_DIMENSIONS])
    own = torch.cat([updated.sum().double().view(1), moments.packed()])
    shared = bank.held_places() is not None  # else every rank holds the same rows
    everywhere = (sum_over_ranks(own) if shared else own).cpu()
    health = {"rows_updated": float(everywhere[0]) / bank.num_rows}
    moments = Moments.unpacked(everywhere[1:], min(bank.dim, MOST_DIMENSIONS))
    if moments.count >= 2:
        health |= {"spread": spread(moments), "effective_rank": effective_rank(moments)}
    return health


def embed_among_ranks(trunk: torch.nn.Module, files: list[str], view: Callable[..., Tensor]) -> np.ndarray:
    """Features float32 [files, D] of image files, of which each rank embeds a part; the same on all ranks.

    Features of an unreadable image are NaN, and the log names it.
    """

    def name(file: Any, error: Exception) -> None:
        logging.warning(f"Could not be read and is left out of the kNN: {printable(file)} ({error})")

    own = files[rank() :: world_size()]
    embedded = embed(trunk, own or files[:1], view, on_unreadable=name)[: len(own)]
    features = torch.from_numpy(embedded).to(collective_device())
    most = -(-len(files) // world_size())
    gathered = gather_padded(features, most, 0.0).view(world_size(), -1, features.shape[1])[:, :most]
    return gathered.transpose(0, 1).flatten(0, 1)[: len(files)].cpu().numpy()


@contextlib.contextmanager
def evaluating(trunk: torch.nn.Module) -> Iterator[None]:
    """Context: eval mode, with the first rank's BatchNorm statistics, as in a checkpoint."""
    own = [buffer.clone() for buffer in trunk.buffers()]
    training = trunk.training
    trunk.eval()
    try:
        if world_size() > 1:
            for buffer in trunk.buffers():
                torch.distributed.broadcast(buffer, 0)
        yield
    finally:
        trunk.train(training)
        for buffer, before in zip(trunk.buffers(), own, strict=True):
            buffer.copy_(before)


class MonitorHook(Hook):
    """Measures `bank_health` and the online kNN accuracy; writes them to the log and to monitor.csv.

    Args:
        folder: the checkpoint folder.
        settings: how often, and on which images.
        publish: called on the primary rank with scalars by name and the iteration (TensorBoard and the like).
    """

    def __init__(
        self, folder: str | Path, settings: MonitorSettings, publish: Callable[[dict[str, float], int], None]
    ) -> None:
        super().__init__()
        self.path, self.settings, self.publish = Path(folder) / "monitor.csv", settings, publish

    def on_start(self, task: Any) -> None:
        if is_primary():
            keep_rows(self.path, task.iteration)
        self.images = self.settings.images()
        self.signs = WarningSigns(chance_loss(task.base_loss), task.num_train_phases)

    def on_step(self, task: Any) -> None:
        if task.iteration % self.settings.every_iterations == 0:
            self._say(task, bank_health(task.base_loss.memory_bank))

    def on_phase_end(self, task: Any) -> None:
        values = bank_health(task.base_loss.memory_bank)
        every, epoch = self.settings.knn_every_epochs, task.train_phase_idx + 1
        if every and (epoch % every == 0 or epoch == task.num_train_phases):
            values["knn_accuracy"] = self._knn(task)
        self._say(task, values)
        if is_primary():
            self._warn(task, values.get("effective_rank"))

    def _warn(self, task: Any, effective_rank: float | None) -> None:
        losses = [] if fills_the_bank(task) else task.losses
        loss = sum(losses) / len(losses) if losses else None
        rows = task.base_loss.memory_bank.rows
        rows = rows[:: max(1, len(rows) // SAMPLE)]
        for sentence in self.signs.after_epoch(task.train_phase_idx + 1, loss, effective_rank, rows):
            logging.warning(sentence)

    def _knn(self, task: Any) -> float:
        started = time.perf_counter()
        view = center_view_of(task.transform)
        with torch.no_grad(), evaluating(task.base_model.trunk):
            features = [embed_among_ranks(task.base_model.trunk, files, view) for files, _ in self.images]
        if not is_primary():
            return math.nan  # only one rank counts the votes
        read = [np.isfinite(found).all(1) for found in features]
        train, test = (
            (found[good], labels[good]) for found, good, (_, labels) in zip(features, read, self.images, strict=True)
        )
        accuracy, k = math.nan, self.settings.knn_k
        if len(train[1]) and len(test[1]):
            accuracy = weighted_knn(*train, *test, k=k, device="cpu")  # leaves the GPU's memory to training
        logging.info(f"kNN on {len(test[1])} images took {time.perf_counter() - started:.0f} s")
        return accuracy

    def _say(self, task: Any, values: dict[str, float]) -> None:
        if not is_primary():
            return
        logging.info("monitor: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()))
        settings = self.settings
        if "spread" in values and (
            values["spread"] < settings.smallest_spread or values["effective_rank"] < settings.smallest_effective_rank
        ):
            logging.warning(
                f"The embeddings of all images have a spread of {values['spread']:.2g} and lie in "
                f"{values['effective_rank']:.1f} directions: the representation has collapsed; lower the learning "
                f"rate, or check that the images differ from each other."
            )
        row = {"iteration": task.iteration, "epoch": task.train_phase_idx + 1, **values}
        names = ["iteration", "epoch", "rows_updated", "spread", "effective_rank", "knn_accuracy"]
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, names)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:  # a full disk must not end the run
            logging.error(f"{self.path} could not be written: {error}")
        self.publish({f"Monitor/{key}": value for key, value in values.items()}, task.iteration)
