"""Writes checkpoints atomically (complete or not at all), finds the newest one, and deletes old ones."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from classy_vision.generic.util import load_and_broadcast_checkpoint
from safetensors import safe_open
from vissl.utils.checkpoint import CheckpointWriter, is_checkpoint_phase

from pirl_plugin.distributed import collective_device, smallest_and_largest_over_ranks
from pirl_plugin.paths import unfinished
from pirl_plugin.validation import ConfigError, check_integer

NAME = re.compile(r"model_(final_checkpoint_)?(phase|iteration)(\d+)\.torch")


def iteration_checkpoint_is_due(task: Any) -> bool:
    """Whether VISSL is about to write the checkpoint of the iteration just done."""
    frequency = task.config.CHECKPOINT.CHECKPOINT_ITER_FREQUENCY
    place = (task.train_phase_idx, task.num_train_phases)
    return frequency > 0 and is_checkpoint_phase(task.iteration, frequency, *place, "iteration")


class _Writing(io.BufferedWriter):
    """A file that remembers why it could not be written, for which torch.save only reports "unexpected pos"."""

    failed: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def write_atomically(content: Any, path: Path) -> None:
    """`torch.save`, so that the file is complete or not there, whatever happens meanwhile.

    Raises:
        OSError: if it cannot be written, with the system's reason; an existing file is unchanged.
    """
    torn = unfinished(path)
    file = None
    try:
        with _Writing(io.FileIO(torn, "w")) as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(torn, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            torn.unlink(missing_ok=True)
        if file is not None and file.failed is not None and isinstance(error, Exception):
            raise file.failed from error
        raise


class AtomicCheckpointWriter(CheckpointWriter):
    """VISSL's writer, but files are complete or not there, and a full disk costs a checkpoint, not the run.

    A run that cannot save any more would train for days in vain, so it ends at the third failure in a row.

    Attributes:
        keep_last: how many checkpoints to keep besides the final one; None for all.
        failures: how many in a row could not be written.
    """

    keep_last: int | None = None
    failures: int = 0
    MAX_FAILURES = 3

    def save_consolidated_checkpoint(self, content: dict[str, Any]) -> None:
        content["type"] = "consolidated"
        folder, name = Path(self.checkpoint_folder), self.get_checkpoint_name()
        try:
            write_atomically(content, folder / name)
            link = unfinished(folder / "checkpoint.torch")
            link.unlink(missing_ok=True)
            link.symlink_to(name)
            os.replace(link, folder / "checkpoint.torch")
            delete_old(folder, self.keep_last)
        except OSError as error:
            AtomicCheckpointWriter.failures += 1  # VISSL makes a new writer for each checkpoint
            what = f"The checkpoint {folder / name} could not be written ({' '.join(str(error).split())})"
            if self.is_final_train_phase or self.failures >= self.MAX_FAILURES:
                which = "the last" if self.is_final_train_phase else f"failure {self.failures} in a row"
                raise RuntimeError(
                    f"{what}, {which}; make room in {folder}, make sure that it is writable, and run the same command "
                    f"again, which resumes from the last complete checkpoint."
                ) from error
            logging.error(
                f"{what}; the last complete one is kept, and the run continues and tries again when the next is due "
                f"(failure {self.failures} in a row; {self.MAX_FAILURES} end the run)."
            )
            return
        AtomicCheckpointWriter.failures = 0
        logging.info(f"Saved checkpoint: {folder / name}")


def iteration_of(path: Path) -> int | None:
    """How many iterations were done when a checkpoint was written; None if the file is not a complete checkpoint."""
    try:
        # Maps the file instead of reading it: a torn one has no directory at its end, and fails.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        for shard in _shards(content):
            with safe_open(str(path.with_name(shard)), framework="pt") as file:
                file.keys()  # of a torn file there are none
        return int(content["iteration"])
    except Exception as error:
        logging.warning(f"{path} is not a complete checkpoint and is ignored: {' '.join(str(error).split())[:200]}")
        return None


def load_on_every_rank(path: str, device: torch.device | None = None) -> Any:
    """The content of a checkpoint file, memory-mapped by each rank.

    Replaces ClassyVision's load_and_broadcast_checkpoint, whose first rank reads the file, writes it into a buffer and
    sends that to all: several copies. That is still used if not every rank sees the file.

    Args:
        path: the same on every rank.
        device: where to put the tensors.
    """
    try:
        content = torch.load(path, map_location=device or "cpu", weights_only=True, mmap=True)
        mapped = True
    except (OSError, RuntimeError):  # missing, or in the format before PyTorch 1.6
        mapped = False
    if smallest_and_largest_over_ranks(torch.tensor(int(mapped), device=collective_device()))[0]:
        logging.info(f"Loaded checkpoint from {path}")
        return content
    return load_and_broadcast_checkpoint(path, device or torch.device("cpu"))


def _shards(content: Any) -> list[str]:
    """Names of the shard files of a checkpoint's memory bank, if it is sharded."""
    loss = content.get("loss") if isinstance(content, Mapping) else None
    state = loss.get("memory_bank._extra_state") if isinstance(loss, Mapping) else None
    return list(state.get("shards", [])) if isinstance(state, Mapping) else []


def checkpoints_in(folder: Path, final: bool = False) -> list[tuple[int, int, Path]]:
    """(iterations done, 1 at the end of an epoch else 0, file) of the complete checkpoints, the newest last.

    Args:
        final: also of the training's end.
    """
    found = []
    for path in folder.glob("model_*.torch"):
        match = NAME.fullmatch(path.name)
        if match is None or (match.group(1) and not final):
            continue
        iteration = iteration_of(path)
        if iteration is not None:
            found.append((iteration, int(match.group(2) == "phase"), path))
    return sorted(found)


def newest(config: Any, checkpoint_folder: str) -> str | None:
    """The checkpoint to resume from, instead of VISSL's choice: the newest complete one, of an iteration or an epoch.

    CHECKPOINT.LATEST_CHECKPOINT_RESUME_FILE_NUM 2 takes the one before it, and so on.
    """
    folder = Path(checkpoint_folder)
    if not config.CHECKPOINT.AUTO_RESUME or not folder.is_dir():
        return None
    # The end of a training is resumed for a last test that a kill cut off, and not where it is trained anew.
    found = checkpoints_in(folder, final=not config.CHECKPOINT.OVERWRITE_EXISTING)
    if not found:
        if any((m := NAME.fullmatch(path.name)) and not m.group(1) for path in folder.glob("model_*.torch")):
            raise ConfigError(f"{folder} has checkpoints, but none is complete; delete them to start again.")
        return None
    back = check_integer(
        config.CHECKPOINT.LATEST_CHECKPOINT_RESUME_FILE_NUM,
        f"CHECKPOINT.LATEST_CHECKPOINT_RESUME_FILE_NUM, for the checkpoints in {folder},", 1, len(found)
    )  # fmt: skip
    path = found[-back][2]
    logging.info(f"Resume from file: {path}")
    return str(path)


def delete_old(folder: Path, keep_last: int | None) -> None:
    """Delete all but the `keep_last` newest checkpoints; the final one stays."""
    if keep_last is None:
        return
    by_time = sorted(
        (path for path in folder.glob("model_*.torch") if (m := NAME.fullmatch(path.name)) and not m.group(1)),
        key=lambda path: path.stat().st_mtime_ns,
    )
    for path in by_time[: max(0, len(by_time) - keep_last)]:
        path.unlink()
