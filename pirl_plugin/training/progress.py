"""Reports a run's progress, speed and loss: a progress bar, the log, progress.csv, TensorBoard, W&B.

Losses stay on the device until LOG_FREQUENCY of them are read at once: only then does a step wait for the device.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import logging
import math
import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classy_vision.generic.distributed_util import all_reduce_mean, is_primary
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from vissl.hooks import SSLTensorboardHook
from vissl.hooks.log_hooks import LogLossLrEtaHook, LogLossMetricsCheckpointHook

from pirl_plugin.distributed import rank
from pirl_plugin.training.base_hook import Hook
from pirl_plugin.training.checkpoint_folder import iteration_checkpoint_is_due
from pirl_plugin.validation import ConfigError


class WholeCheckpointHook(LogLossMetricsCheckpointHook):
    """VISSL's checkpoints and meters, without reading every step's output, which would wait for the device."""

    on_forward = LogLossMetricsCheckpointHook._noop

    def _print_and_save_meters(self, task: Any, train_phase_idx: int) -> None:
        try:
            super()._print_and_save_meters(task, train_phase_idx)
        except OSError as error:  # a full disk must not end the run before the epoch's checkpoint
            logging.error(f"The epoch's meters could not be written: {error}")

    def checkpoint_now(self, task: Any) -> None:
        """Write model_iteration{N}.torch, whatever CHECKPOINT_ITER_FREQUENCY is."""
        self._checkpoint_model(task, mode_frequency=1, mode_num=task.iteration, mode="iteration")


def fills_the_bank(task: Any) -> bool:
    """Whether this epoch only fills the memory bank and has no loss."""
    bank = getattr(task.base_loss, "memory_bank", None)
    return bool(getattr(bank, "fill_first", False)) and task.train_phase_idx == 0


class ProgressHook(Hook):
    """Reads the losses of the last steps, stops if one is not finite, and reports progress.

    Replaces VISSL's LogLossLrEtaHook; stdout.json has the same keys, progress.csv those of `row`.

    Args:
        folder: the checkpoint folder.
        wandb_project: the W&B project, if W&B is to be used.
    """

    def __init__(self, folder: str | Path, wandb_project: str = "") -> None:
        super().__init__()
        self.folder, self.wandb_project = Path(folder), wandb_project
        self.resources = ExitStack()
        self.json_lines = LogLossLrEtaHook(str(folder))  # VISSL's file and its flushing
        self._forget()

    def _forget(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.indices: list[np.ndarray] = []
        self.images, self.input_wait, self.since = 0, 0.0, time.perf_counter()

    # Hooks -----------------------------------------------------------------------------------------------------------

    def on_start(self, task: Any) -> None:
        self.writers = [hook.tb_writer for hook in task.hooks if isinstance(hook, SSLTensorboardHook)]
        self.wandb = start_wandb(self.wandb_project, task.config, self.folder) if self.wandb_project else None
        self.bar = None
        if is_primary():
            keep_rows(self.folder / "progress.csv", task.iteration)
            # disable=None: only on a terminal
            self.bar = tqdm(
                total=task.max_iteration, initial=task.iteration, unit=" steps", disable=None, dynamic_ncols=True,
                mininterval=1.0, smoothing=0.05,
            )  # fmt: skip
            if not self.bar.disable:
                self.resources.enter_context(logging_redirect_tqdm())

    def on_phase_start(self, task: Any) -> None:
        self._forget()
        if task.start_iter:
            task.learning_rate_of_the_epoch()

    def on_update(self, task: Any) -> None:
        last = task.last_batch
        self.losses.append(last.loss)
        self.indices.append(np.asarray(last.sample["data_idx"][0]))
        self.images += task.get_global_batchsize()
        self.input_wait += last.input_wait
        if task.iteration % task.config["LOG_FREQUENCY"] == 0:
            self._say(task, task.iteration + 1, fresh=True)

    def on_step(self, task: Any) -> None:
        if self.bar is not None:
            self.bar.set_description(f"epoch {task.train_phase_idx + 1}/{task.num_train_phases}", refresh=False)
            self.bar.update()
        if iteration_checkpoint_is_due(task):
            self._read(task, task.iteration)  # a loss that is not finite must not reach a checkpoint

    def on_phase_end(self, task: Any) -> None:
        if self.losses:
            self._say(task, task.iteration, fresh=False)

    def on_end(self, task: Any) -> None:
        self._close()

    def on_exception(self, task: Any) -> None:
        self._close()

    def finish(self, task: Any) -> None:
        """Before a run that was asked to stop writes its checkpoint: check the losses, and close the progress bar."""
        self._read(task, task.iteration)
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.resources.close()
        if self.wandb is not None:
            self.wandb.finish()

    # ----------------------------------------------------------------------------------------------------------------

    def _read(self, task: Any, done: int) -> tuple[float, dict[str, float]]:
        """The mean loss of the steps since the last call, and the last report of pirl_loss.

        Every rank must call this at the same step.

        Args:
            done: iterations done.

        Raises:
            FloatingPointError: if a loss is not finite, after writing the batch's image indices to a file.
        """
        if not self.losses:
            return math.nan, {}
        report = {key: value.double() for key, value in task.base_loss.report.items()}
        count = len(self.losses)
        losses = torch.stack(self.losses).double()
        values = torch.cat(
            [losses, all_reduce_mean(losses.clone()), *(value.view(1) for value in report.values())]
        ).tolist()
        own, everywhere, reported = values[:count], values[count : 2 * count], values[2 * count :]
        first = done - count + 1
        task.losses.extend(everywhere)
        for number, (mine, mean) in enumerate(zip(own, everywhere, strict=True)):
            if np.isfinite(mean):
                continue
            iteration = first + number
            path = self.folder / f"not_finite_iteration{iteration}_rank{rank()}.txt"
            if not np.isfinite(mine):
                np.savetxt(path, self.indices[number], fmt="%d")
            where = f"the indices of its images are in {path}" if not np.isfinite(mine) else "on another rank"
            raise FloatingPointError(
                f"The loss of iteration {iteration} is {mean} ({where}); the run stops before a checkpoint of it is "
                f"written: lower the learning rate, or use precision float32 or bfloat16."
            )
        self.losses, self.indices = [], []
        return float(np.mean(everywhere)), dict(zip(report, reported, strict=True))

    def _say(self, task: Any, done: int, fresh: bool) -> None:
        """Report progress; `fresh`: whether the report of pirl_loss is from the step just done."""
        loss, report = self._read(task, done)
        row = self.row(task, loss, done)
        self.images, self.input_wait, self.since = 0, 0.0, time.perf_counter()
        if not is_primary():
            return
        left = datetime.timedelta(seconds=round(row["seconds_left"]))
        where = f"epoch {row['epoch']} of {task.num_train_phases}, iteration {row['iteration']} of {task.max_iteration}"
        speed = f"{row['images_per_second']:.0f} images/s, {row['step_ms']:.0f} ms per step"
        logging.info(
            f"{where}: {self._loss_in_words(task, row['loss'])}, learning rate {row['learning_rate']:.6g}, {speed}, "
            f"{100 * row['input_wait_share']:.0f}% of it waiting for images, {row['memory_mb']:.0f} MB, {left} left"
        )
        names = list(report)
        if fresh:
            logging.info("; ".join(f"{key}: {value:.4f}" for key, value in report.items()))
        else:
            report = {}
        row |= report
        try:
            self._write(row, list(dict.fromkeys([*row, *names])), left)
        except OSError as error:  # a full disk must not end the run
            logging.error(f"The progress could not be written to {self.folder}: {error}")
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"loss {row['loss']:.3f}, {row['images_per_second']:.0f} images/s, "
                f"input {100 * row['input_wait_share']:.0f}%",
                refresh=False,
            )
        scalars = {f"Progress/{key}": value for key, value in row.items() if key not in ("iteration", "epoch", *report)}
        scalars |= {f"Loss/{key}": value for key, value in report.items()}
        self.publish({**scalars, "epoch": row["epoch"]}, int(row["iteration"]))

    @staticmethod
    def _loss_in_words(task: Any, loss: float) -> str:
        if loss == 0 and fills_the_bank(task):
            return "no loss yet (fill_first: the first epoch fills the memory bank)"
        return f"loss {loss:.4f}"

    def publish(self, scalars: dict[str, float], iteration: int) -> None:
        """Send scalars to TensorBoard and Weights & Biases, if in use; on the primary rank."""
        for writer in self.writers:
            for key, value in scalars.items():
                if key != "epoch":
                    writer.add_scalar(key, value, iteration)
        if self.wandb is not None:
            self.wandb.log(scalars, step=iteration)

    def _write(self, row: dict[str, float], names: list[str], left: datetime.timedelta) -> None:
        with (self.folder / "progress.csv").open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        self.json_lines.json_stdout_logger.write(as_vissl(row, left))
        self.json_lines.json_stdout_logger.flush()

    def row(self, task: Any, loss: float, done: int) -> dict[str, float]:
        """The progress values of the steps since the last call, after `done` iterations."""
        seconds = max(time.perf_counter() - self.since, 1e-9)
        steps = max(1, self.images // task.get_global_batchsize())
        cuda = task.device.type == "cuda"
        return {
            "iteration": done,
            "epoch": task.train_phase_idx + 1,
            "loss": loss,
            "learning_rate": float(np.max(task.optimizer.options_view.lr)),
            "images_per_second": self.images / seconds,
            "step_ms": 1000 * seconds / steps,
            "input_wait_share": min(1.0, self.input_wait / seconds),
            "memory_mb": (torch.cuda.max_memory_allocated() if cuda else resident_bytes()) / 2**20,
            "seconds_left": (task.max_iteration - done) * seconds / steps,
        }


def resident_bytes() -> int:
    """Memory of this process (Linux; 0 if unknown)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def as_vissl(row: dict[str, float], left: datetime.timedelta) -> str:
    """A row as a line of VISSL's stdout.json."""
    line: dict[str, Any] = {
        "Rank": rank(),
        "ep": row["epoch"] - 1,
        "iter": row["iteration"] - 1,
        "lr": round(row["learning_rate"], 5),
    }
    line |= {"loss": round(row["loss"], 5), "btime(ms)": round(row["step_ms"]), "eta": str(left)}
    return json.dumps({**line, "peak_mem(M)": round(row["memory_mb"])}) + "\n"


def keep_rows(path: Path, iteration: int) -> None:
    """Drop rows of progress.csv beyond `iteration`, from which a run resumes, and truncated rows."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        heading, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if len(row) == len(heading) and row[0].isdigit() and int(row[0]) <= iteration]
    shorter = path.with_suffix(".unfinished")
    with shorter.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heading, *kept] if heading else [])
    os.replace(shorter, path)


def start_wandb(project: str, config: Any, folder: Path) -> Any:
    """A run of Weights & Biases on the primary rank, None on others.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"TRAINER.PIRL_TRAIN_STEP.wandb_project is {project!r}, but Weights & Biases is not installed; install it "
            f"with: pip install wandb"
        ) from error
    if not is_primary():
        return None
    # The same folder continues the same W&B run; another folder of that name gets another.
    name = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
    return wandb.init(project=project, config=config.to_dict(), dir=str(folder), resume="allow", id=name)
