"""Whole training steps, with all hooks, on a GPU that is not there: none waits for it outside the places that may."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import distributed
from vissl.hooks.state_update_hooks import CheckNanLossHook
from vissl.trainer import SelfSupervisionTrainer
from vissl.trainer.train_steps import get_train_step
from vissl.utils.env import set_env_vars

from pirl_plugin.host import mends
from pirl_plugin.launch import composition
from pirl_plugin.training.hooks import hook_generator
from pretended_gpu import Record, pretended_gpu

pytest.importorskip("triton")
STEPS, LOG_FREQUENCY = 5, 4
SETTINGS = {
    "float32": [],
    "bfloat16, channels last": [
        "config.TRAINER.PIRL_TRAIN_STEP.precision=bfloat16", "config.TRAINER.PIRL_TRAIN_STEP.channels_last=True",
    ],
    "in parts": ["config.TRAINER.PIRL_TRAIN_STEP.accumulation_steps=2"],
    "augmented and normalised on the device": [
        "+config.DATA.TRAIN.TRANSFORMS.0.augment_on=device", "+config.DATA.TRAIN.TRANSFORMS.0.normalize_on=device",
    ],
    "sharded bank, infonce": [
        "config.LOSS.pirl_loss.memory_bank.name=sharded_memory_bank", "config.LOSS.pirl_loss.contrast=infonce",
    ],
}  # fmt: skip


class Batches:
    """As a loader's iterator: with the length of the epoch."""

    def __init__(self, batches: list[dict], length: int) -> None:
        self.batches, self.length = iter(batches), length

    def __next__(self) -> dict:
        return next(self.batches)

    def __len__(self) -> int:
        return self.length


@pytest.fixture
def trainer(photo_folder, tmp_path, monkeypatch) -> Iterator[Callable[..., SelfSupervisionTrainer]]:
    """(overrides) -> VISSL's trainer, ready for its first epoch, and some batches of real images."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "DISTRIBUTED_RANK"):
        monkeypatch.setenv(name, "0")  # so that it is put back

    def make(*overrides: str) -> SelfSupervisionTrainer:
        config = composition.compose(
            ["config=pretrain/pirl/jigsaw_small_images_cpu", "config.MODEL.TRUNK.RESNETS.WIDTH_MULTIPLIER=0.125",
             "config.LOSS.pirl_loss.negatives=per_image", "config.LOSS.pirl_loss.num_negatives=16",
             "config.LOSS.pirl_loss.memory_bank.fill_first=False", "config.DATA.TRAIN.BATCHSIZE_PER_REPLICA=8",
             "config.DATA.NUM_DATALOADER_WORKERS=0", "config.DISTRIBUTED.NUM_PROC_PER_NODE=1",
             f"config.LOG_FREQUENCY={LOG_FREQUENCY}", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
             f"config.CHECKPOINT.DIR={tmp_path}/run", "config.DISTRIBUTED.INIT_METHOD=file", *overrides]
        ).config  # fmt: skip
        composition.make_folder(config)
        mends.register_data_paths(config)
        set_env_vars(local_rank=0, node_id=0, cfg=config)
        made = SelfSupervisionTrainer(config, f"{tmp_path}/met", None, f"{tmp_path}/run", hook_generator(config))
        made.task.prepare(pin_memory=False)
        made.task.init_distributed_data_parallel_model()
        made._init_training_state(config, made.task)
        made.task.run_hooks("on_start")
        made._advance_phase(made.task)
        made.task.local_iteration_num = 0
        made.task.run_hooks("on_phase_start")
        return made

    yield make
    if distributed.is_initialized():
        distributed.destroy_process_group()


def waits_of_steps(trainer: SelfSupervisionTrainer, monkeypatch) -> tuple[list[list[str]], Record]:
    """What each of STEPS steps, as VISSL's loop takes them, waited for once all was moved to the GPU."""
    batches, steps = list(itertools.islice(trainer.task.data_iterator, STEPS)), len(trainer.task.data_iterator)
    with pretended_gpu() as gpu:
        return _waits_of_steps(trainer.task, batches, steps, gpu, monkeypatch), gpu


def _waits_of_steps(task, batches: list[dict], steps: int, gpu: Record, monkeypatch) -> list[list[str]]:
    step = get_train_step("pirl_train_step")

    def backward(*_: object) -> None:  # autograd's engine asks for real devices
        for parameter in task.base_model.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    task.device = torch.device("cuda")
    task.base_model.to(task.device)
    task.base_loss.to(task.device)
    task.prepare_optimizer()
    on_host = ("data_idx", "data_valid", "photometric")
    task.data_iterator = Batches(
        [{key: values if key in on_host else [torch.empty_like(value, device="cuda") for value in values]
          for key, values in batch.items()} for batch in batches], steps,
    )  # fmt: skip
    found = []
    for _ in batches:
        gpu.forget()
        step(task)
        task.iteration += 1
        task.local_iteration_num += 1
        task.batches += 1
        task.batch_time.append(0.1)
        task.run_hooks("on_step")
        assert gpu.mixed == []
        found.append(gpu.waits)
    return found


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_step_with_all_hooks_waits_for_the_gpu_only_where_losses_are_said(settings, trainer, monkeypatch):
    made = trainer(*SETTINGS[settings])
    waits, gpu = waits_of_steps(made, monkeypatch)
    said = [number for number, of_step in enumerate(waits) if of_step]
    assert said == [0, LOG_FREQUENCY], waits
    assert all("progress.py" in wait for of_step in waits for wait in of_step), waits
    assert gpu.launches["pass_by"] > 0


def test_a_hook_that_looks_at_every_loss_would_be_noticed(trainer, monkeypatch):
    made = trainer()
    made.task.hooks.append(CheckNanLossHook())
    assert all(waits_of_steps(made, monkeypatch)[0])
