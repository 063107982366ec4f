"""Counts and names images that cannot be read during training, and stops the run if there are too many."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from classy_vision.generic.distributed_util import is_primary

from pirl_plugin.data.file_lists import printable
from pirl_plugin.distributed import rank, sum_over_ranks
from pirl_plugin.host.readable_batches import list_unreadable, names_or_numbers
from pirl_plugin.training.base_hook import Hook
from pirl_plugin.training.checkpoint_folder import iteration_checkpoint_is_due
from pirl_plugin.validation import ConfigError

SHARE, BATCHES = "DATA.TRAIN.LARGEST_UNREADABLE_SHARE", "DATA.TRAIN.LARGEST_UNREADABLE_BATCHES"


class UnreadableImagesHook(Hook):
    """Counts the unreadable images of each epoch, names them, and stops the run if there are too many.

    A disk that is unmounted during an epoch is noticed after a few batches, before the next checkpoint is written. The
    counts of an epoch are in its checkpoints: a resumed epoch continues counting.

    Args:
        folder: unreadable_rank<r>.txt there lists those that rank r met in the last epoch with any.
        largest_share: largest share of an epoch's images, in (0, 1]; above it the run stops.
        largest_batches: this many consecutive batches of a rank without any readable image stop the run.
        num_named: how many files each rank names in the log.
    """

    def __init__(
        self, folder: str | Path, largest_share: float = 1.0, largest_batches: int = 3, num_named: int = 20
    ) -> None:
        super().__init__()
        self.folder, self.largest_share, self.num_named = Path(folder), largest_share, num_named
        self.largest_batches = largest_batches

    def on_start(self, task) -> None:
        if is_primary() and not getattr(task, "start_iter", 0):
            for path in self.folder.glob("unreadable_rank*.txt"):  # of epochs that this run does not go on with
                path.unlink(missing_ok=True)

    def on_phase_start(self, task) -> None:
        self.unreadable: set[int] = set()
        self.seen = self.empty_batches = 0
        resumed = getattr(task, "start_iter", 0) and rank() == 0  # the checkpoint's counts are over all ranks
        self.before = task.unreadable_before if resumed else (0, 0)

    def on_step(self, task) -> None:
        sample = task.last_batch.sample
        if "image_index" not in task.data_and_label_keys["target"]:
            return
        (valid,), (indices,) = sample["data_valid"], sample["data_idx"]
        self.seen += len(valid)
        self.unreadable.update(indices[~valid].tolist())
        self.empty_batches = 0 if valid.any() else self.empty_batches + 1
        if self.empty_batches >= self.largest_batches:
            self._list(task)
            (last,) = names_or_numbers(task.datasets["train"], [int(indices[-1])])
            raise ConfigError(
                f"The last {self.empty_batches} batches of rank {rank()} had no readable image "
                f"({BATCHES} {self.largest_batches}); the last file is {printable(last)}: make sure "
                f"that the folder is still mounted, and run the same command again."
            )
        if iteration_checkpoint_is_due(task):
            self.check(task)

    def check(self, task) -> None:
        """Check before a checkpoint in the middle of an epoch; every rank must call this.

        Raises:
            ConfigError: if already too many of the epoch's images are unreadable.
        """
        total, seen = self._counts(task)
        allowed = self.largest_share * task.num_batches_per_phase * task.get_global_batchsize()
        if total > allowed:
            self._refuse(task, f"{total} of the {seen} images of this epoch so far could not be read.")

    def on_phase_end(self, task) -> None:
        total, seen = self._counts(task)
        if not total:
            return
        counted = (
            f"{total} of {seen} images could not be read in this epoch; they were not trained on and are not in the "
            f"memory bank."
        )
        if total > self.largest_share * seen:
            self._refuse(task, counted)
        self._list(task)
        if is_primary():
            logging.warning(counted)

    def _counts(self, task) -> tuple[int, int]:
        """(unreadable, seen) of this epoch on all ranks; kept by the task for its checkpoints."""
        before, seen_before = self.before
        counts = torch.tensor([before + len(self.unreadable), seen_before + self.seen], device=task.device)
        total, seen = sum_over_ranks(counts).tolist()
        task.unreadable_so_far = (total, seen)
        return total, seen

    def _refuse(self, task, counted: str) -> None:
        self._list(task)
        raise ConfigError(
            f"{counted} That is more than {SHARE} {self.largest_share:g} allows; their names are in "
            f"unreadable_rank*.txt in {self.folder}."
        )

    def _list(self, task) -> None:
        if self.unreadable:
            listed = self.folder / f"unreadable_rank{rank()}.txt"
            list_unreadable(task.datasets["train"], self.unreadable, listed, self.num_named)
