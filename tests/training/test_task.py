"""PIRL's task in VISSL's trainer: what reaches the data set, and what a checkpoint knows."""

import pytest
import torch
from vissl.trainer.trainer_main import build_task

from pirl_plugin.host.mends import register_data_paths
from pirl_plugin.launch.launcher import compose
from pirl_plugin.training.checkpoint_folder import AtomicCheckpointWriter
from pirl_plugin.training.hooks import hook_generator


@pytest.fixture(scope="module")
def task(photo_folder, tmp_path_factory):
    config = compose(
        ["config=pretrain/pirl/jigsaw_small_images_cpu", f"config.DATA.TRAIN.DATA_PATHS=[{photo_folder}]",
         "config.SEED_VALUE=5", f"config.CHECKPOINT.DIR={tmp_path_factory.mktemp('run')}"]
    )  # fmt: skip
    register_data_paths(config)
    task = build_task(config)
    task.datasets, task.data_and_label_keys = task.build_datasets()
    task.dataloaders = task.build_dataloaders(pin_memory=False)
    task.iteration = 0
    return task


def views(task, index: int) -> torch.Tensor:
    sample = task.datasets["train"][index]
    return torch.cat([sample["images"].flatten(), sample["pretext"].flatten()])


def test_each_epoch_augments_an_image_otherwise_and_the_same_epoch_as_before(task):
    drawn = []
    for epoch in (0, 1, 0):
        task.set_epoch("train", epoch, 0, epoch)
        drawn.append(views(task, 7))
    assert not torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_each_epoch_has_an_order_of_its_own(task):
    orders = []
    for epoch in (0, 1, 0):
        task.set_epoch("train", epoch, 0, epoch)
        orders.append(list(task.dataloaders["train"].sampler))
    assert orders[0] == orders[2] != orders[1] and len(set(orders[0])) == 32  # a whole batch of 48 images


def test_keep_last_reaches_the_writer_which_deletes_what_is_older(task, tmp_path):
    hook_generator(task.config)
    assert AtomicCheckpointWriter.keep_last == 3  # of the config
    names = [f"model_phase{number}.torch" for number in range(5)]
    for number, name in enumerate(names):
        writer = AtomicCheckpointWriter(str(tmp_path), False, "phase", number, "disk")
        assert writer.get_checkpoint_name() == name
        writer.save_consolidated_checkpoint({"iteration": number})
    assert sorted(path.name for path in tmp_path.glob("model_*")) == names[2:]
    assert (tmp_path / "checkpoint.torch").resolve().name == names[-1]
