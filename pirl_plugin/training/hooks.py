"""The plugin's training hooks, in addition to VISSL's own."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from classy_vision.generic.distributed_util import is_primary
from classy_vision.hooks import ClassyHook
from torch import Tensor
from vissl.config import AttrDict
from vissl.hooks import SSLTensorboardHook, default_hook_generator, log_hooks
from vissl.hooks.log_hooks import LogLossLrEtaHook, LogLossMetricsCheckpointHook
from vissl.hooks.state_update_hooks import CheckNanLossHook, CheckNanModelOutputHook
from vissl.utils.checkpoint import get_checkpoint_folder, is_checkpoint_phase

from pirl_plugin.distributed import rank, smallest_and_largest_over_ranks, sum_over_ranks, world_size
from pirl_plugin.host.loss_settings import pirl_loss_class, sharded_bank_settings
from pirl_plugin.host.readable_batches import ReadableBatches, list_unreadable, unreadable_in
from pirl_plugin.training.base_hook import Hook
from pirl_plugin.training.checkpoint_folder import AtomicCheckpointWriter, iteration_checkpoint_is_due
from pirl_plugin.training.monitor import MonitorHook, MonitorSettings
from pirl_plugin.training.preemption import PreemptionHook
from pirl_plugin.training.progress import ProgressHook, WholeCheckpointHook
from pirl_plugin.training.settings import StepSettings
from pirl_plugin.training.unreadable_images import UnreadableImagesHook


class LeftOutImagesHook(Hook):
    """For evaluations: logs after each phase how many unreadable images the loaders left out.

    Args:
        folder: unreadable_<train or test>_rank<r>.txt there lists those that rank r met.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    def on_start(self, task) -> None:
        if is_primary():
            for path in self.folder.glob("unreadable_*rank*.txt"):  # from an earlier run
                path.unlink(missing_ok=True)

    def on_phase_start(self, task) -> None:
        loader = task.dataloaders["train" if task.train else "test"]
        if isinstance(loader, ReadableBatches):
            loader.forget()

    def on_phase_end(self, task) -> None:
        phase = "train" if task.train else "test"
        loader = task.dataloaders[phase]
        indices = unreadable_in(loader)
        if indices:
            list_unreadable(task.datasets[phase], indices, self.folder / f"unreadable_{phase}_rank{rank()}.txt")
        kept = len(loader.kept) if indices else 0
        counts = sum_over_ranks(torch.tensor([len(indices), kept], device=task.device)).tolist()
        if counts[0] and is_primary():
            grey = f", except {counts[1]} alone in a batch, which count as grey images" * bool(counts[1])
            logging.warning(
                f"{phase}: {counts[0]} of {len(task.datasets[phase])} images could not be read and were left out{grey}"
            )


def weights_checksum(model: torch.nn.Module) -> Tensor:
    """A checksum: networks whose weights differ in any bit almost surely have different ones. int64 scalar."""
    parameters = [value.detach() for value in model.parameters()]
    total = torch.zeros((), dtype=torch.int64, device=parameters[0].device)
    for number, value in enumerate(parameters, start=1):
        bits = value.float().contiguous().view(torch.int32).flatten()
        places = torch.arange(1, len(bits) + 1, device=bits.device)
        total += (bits * places).sum() * number
    return total


class BankAgreementHook(Hook):
    """Checks after every epoch that all ranks hold the same weights and the same memory bank, bit by bit."""

    def on_phase_end(self, task) -> None:
        lowest, highest = smallest_and_largest_over_ranks(weights_checksum(task.base_model))
        if lowest != highest:
            raise RuntimeError(
                f"The ranks' weights differ after epoch {task.train_phase_idx} (checksums from {lowest} to {highest}): "
                f"the run cannot be trusted; please report this."
            )
        bank = task.base_loss.memory_bank
        if bank.held_places() is not None:
            return  # each rank holds different rows
        number = bank.checksum()
        lowest, highest = smallest_and_largest_over_ranks(number)
        if lowest != highest:
            raise RuntimeError(
                f"The ranks' memory banks differ after epoch {task.train_phase_idx} (checksums from {lowest} to "
                f"{highest}): the run cannot be trusted; please report this."
            )
        if is_primary():
            logging.info(f"Memory bank identical on {world_size()} rank(s), checksum {lowest}")


class ShardsHook(Hook):
    """Writes the shards of a sharded_memory_bank when VISSL is about to write the checkpoint that names them.

    They are kept as long as that checkpoint.
    """

    def on_step(self, task) -> None:
        if task.train and iteration_checkpoint_is_due(task):
            self.save(task, "iteration", task.iteration)

    def on_phase_end(self, task) -> None:
        number, count = task.train_phase_idx, task.num_train_phases
        due = is_checkpoint_phase(number, task.config.CHECKPOINT.CHECKPOINT_FREQUENCY, number, count, "phase")
        if task.train and (due or number == count - 1):
            self.save(task, "phase", number)

    def save(self, task, mode: str, number: int) -> None:
        """Write the shards of the checkpoint model_{mode}{number}; every rank must call this."""
        bank = task.base_loss.memory_bank
        failed = None
        try:
            bank.save_shard(f"model_{mode}{number}")
        except OSError as error:
            failed = error
        if sum_over_ranks(torch.tensor(float(failed is not None), device=bank.rows.device)):
            reason = f" ({failed})" if failed else " on another rank"
            raise RuntimeError(
                f"A shard of the checkpoint model_{mode}{number} could not be written{reason}; make room and run the "
                f"same command again, which resumes from the last complete checkpoint."
            )
        if is_primary():
            bank.delete_orphans()


class LossReportHook(Hook):
    """Writes pirl_loss's report to the log, and to TensorBoard if VISSL uses it, every LOG_FREQUENCY iterations."""

    def on_start(self, task) -> None:
        self.writers = [hook.tb_writer for hook in task.hooks if isinstance(hook, SSLTensorboardHook)]

    def on_update(self, task) -> None:
        report = task.base_loss.report
        if not report or not is_primary() or task.iteration % task.config["LOG_FREQUENCY"]:
            return
        report = {key: float(value) for key, value in report.items()}
        logging.info("; ".join(f"{key}: {value:.4f}" for key, value in report.items()))
        for writer in self.writers:
            for key, value in report.items():
                writer.add_scalar(f"Loss/{key}", value, task.iteration)


def hook_generator(config: AttrDict) -> list[ClassyHook]:
    """VISSL's hooks and, if the loss is pirl_loss, the plugin's; with pirl_train_step none waits for the device."""
    hooks = default_hook_generator(config)
    AtomicCheckpointWriter.keep_last = config.CHECKPOINT.get("KEEP_LAST")
    log_hooks.CheckpointWriter = AtomicCheckpointWriter
    if pirl_loss_class(config) is None:
        return [*hooks, LeftOutImagesHook(get_checkpoint_folder(config))]
    # Before VISSL's, so that a bank that differs between ranks does not reach a checkpoint.
    train = config.DATA.TRAIN
    unreadable = UnreadableImagesHook(
        get_checkpoint_folder(config),
        train.get("LARGEST_UNREADABLE_SHARE", 1.0),
        train.get("LARGEST_UNREADABLE_BATCHES", 3),
    )
    own = [BankAgreementHook(), unreadable]
    if sharded_bank_settings(config) is not None:
        own.append(ShardsHook())
    if config.TRAINER.TRAIN_STEP_NAME != "pirl_train_step":
        return [*own, LossReportHook(), *hooks]
    waiting = (CheckNanLossHook, CheckNanModelOutputHook, LogLossLrEtaHook)
    kept = [hook for hook in hooks if not isinstance(hook, (*waiting, LogLossMetricsCheckpointHook))]
    settings = StepSettings.of_run(config)
    progress = ProgressHook(get_checkpoint_folder(config), settings.wandb_project)
    world_size = config.DISTRIBUTED.NUM_NODES * config.DISTRIBUTED.NUM_PROC_PER_NODE
    writer = WholeCheckpointHook(world_size)
    shards = [hook for hook in own if isinstance(hook, ShardsHook)]

    def checkpoint(task) -> None:
        progress.finish(task)
        unreadable.check(task)
        for hook in shards:
            hook.save(task, "iteration", task.iteration)
        writer.checkpoint_now(task)

    monitor = MonitorHook(
        get_checkpoint_folder(config),
        MonitorSettings.from_config(config.HOOKS.get("PIRL_MONITOR", {})),
        progress.publish,
    )
    stopping = PreemptionHook(checkpoint, settings.grace_seconds, settings.timeout_minutes)
    # The monitor last: measuring kNN takes time, so the epoch's checkpoint should be written before.
    return [progress, *own, *kept, writer, monitor, stopping]
