"""Hooks on one rank: what evaluations leave out, the checksum of weights, when and how shards are written."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from vissl.config import AttrDict

from pirl_plugin.host.readable_batches import ReadableBatches, count_listed
from pirl_plugin.objective.sharded_memory_bank import ShardedMemoryBank
from pirl_plugin.training.hooks import LeftOutImagesHook, ShardsHook, weights_checksum


class Samples(Dataset):
    """As VISSL's: samples of ten files, of which some are broken."""

    data_limit = -1

    def __init__(self, broken: set[int]) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        valid = -1 if index in self.broken else 1
        return {"data": [torch.zeros(3, 2, 2)], "data_valid": [valid], "data_idx": [index], "label": [0]}

    def get_image_paths(self) -> list[list[str]]:
        return [[f"photos/{index}.jpg" for index in range(10)]]


def evaluation(broken: set[int], batch_size: int = 4) -> SimpleNamespace:
    """A task in its test phase, whose loader can leave images out."""
    data = Samples(broken)
    loader = ReadableBatches(DataLoader(data, batch_size=batch_size))
    return SimpleNamespace(train=False, datasets={"test": data}, dataloaders={"test": loader}, device="cpu")


def test_an_evaluation_says_how_many_images_it_left_out_and_lists_them(tmp_path, caplog):
    hook, task = LeftOutImagesHook(tmp_path), evaluation({1, 4, 5, 6, 7})
    (tmp_path / "unreadable_test_rank3.txt").write_text("of an earlier run.jpg\n")
    hook.on_start(task)
    assert count_listed(tmp_path) == {}
    for _ in range(2):  # each phase counts anew
        hook.on_phase_start(task)
        list(task.dataloaders["test"])
        caplog.clear()
        hook.on_phase_end(task)
        sentence = "test: 5 of 10 images could not be read and were left out, except 1 alone in a batch, which count as"
        assert sentence in caplog.text
    assert (tmp_path / "unreadable_test_rank0.txt").read_text().split() == [f"photos/{i}.jpg" for i in (1, 4, 5, 6, 7)]
    assert count_listed(tmp_path) == {"test": 5}


def test_an_evaluation_without_broken_images_says_nothing(tmp_path, caplog):
    hook, task = LeftOutImagesHook(tmp_path), evaluation(set())
    for step in (hook.on_start, hook.on_phase_start, lambda task: list(task.dataloaders["test"]), hook.on_phase_end):
        step(task)
    assert "left out" not in caplog.text and list(tmp_path.iterdir()) == []


def test_where_each_batch_has_a_good_image_none_counts_as_grey(tmp_path, caplog):
    hook, task = LeftOutImagesHook(tmp_path), evaluation({0, 5})
    list(task.dataloaders["test"])
    hook.on_phase_end(task)
    assert "2 of 10 images could not be read and were left out" in caplog.text and "grey" not in caplog.text


def test_the_checksum_of_weights_sees_a_bit_a_place_and_a_parameter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    usual = weights_checksum(model)
    assert weights_checksum(model) == usual and usual.dtype == torch.int64 and usual.ndim == 0
    first, second = (layer.weight.detach() for layer in model)
    found = {int(usual)}
    first.view(torch.int32)[0, 0] += 1
    found.add(int(weights_checksum(model)))
    first.view(torch.int32)[0, 0] -= 1
    first[0, 0], first[0, 1] = first[0, 1].item(), first[0, 0].item()
    found.add(int(weights_checksum(model)))
    first[0, 0], first[0, 1] = first[0, 1].item(), first[0, 0].item()
    assert weights_checksum(model) == usual
    model[0].weight, model[1].weight = model[1].weight, model[0].weight
    found.add(int(weights_checksum(model)))
    assert len(found) == 4 and not torch.equal(first, second)


def training(folder, epoch: int, epochs: int = 5, frequency: int = 2) -> SimpleNamespace:
    bank = ShardedMemoryBank(6, 4, folder=str(folder))
    config = AttrDict({"CHECKPOINT": {"CHECKPOINT_FREQUENCY": frequency, "CHECKPOINT_ITER_FREQUENCY": 3}})
    return SimpleNamespace(train=True, train_phase_idx=epoch, num_train_phases=epochs, config=config,
                           base_loss=SimpleNamespace(memory_bank=bank), device="cpu", iteration=0)  # fmt: skip


def test_shards_are_written_for_the_checkpoints_that_vissl_writes(tmp_path):
    written = {}
    for epoch in range(5):
        (tmp_path / str(epoch)).mkdir()
        ShardsHook().on_phase_end(training(tmp_path / str(epoch), epoch))
        written[epoch] = [path.name for path in (tmp_path / str(epoch)).iterdir()]
    assert [epoch for epoch, files in written.items() if files] == [0, 2, 4]
    assert all(f"model_phase{epoch}" in files[0] for epoch, files in written.items() if files)
    evaluated = training(tmp_path / "1", 4)
    evaluated.train = False
    ShardsHook().on_phase_end(evaluated)
    assert list((tmp_path / "1").iterdir()) == []


def test_a_shard_that_cannot_be_written_ends_the_run_in_a_sentence(tmp_path, monkeypatch):
    task = training(tmp_path, 0)

    def full(name: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(task.base_loss.memory_bank, "save_shard", full)
    with pytest.raises(RuntimeError, match=r"A shard of the checkpoint model_phase0 could not be written \(.*No space"):
        ShardsHook().on_phase_end(task)


@pytest.fixture(autouse=True)
def _all_levels(caplog):
    caplog.set_level(logging.INFO)
