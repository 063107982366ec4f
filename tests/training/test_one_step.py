"""A step of pirl_train_step on one rank, in this process: what is called, in which order, and what it changes."""

from types import SimpleNamespace

import pytest
import torch

from pirl_plugin.training import train_step
from pirl_plugin.training.train_step import pirl_train_step
from prepared_task import BATCH, prepared

FILLED = "config.LOSS.pirl_loss.memory_bank.fill_first=False"


@pytest.fixture
def task(photo_folder, tmp_path):
    task = prepared(photo_folder, tmp_path, FILLED)
    task.init_distributed_data_parallel_model()
    task.max_iteration = 12
    task.recreate_data_iterator("train", epoch=0, compute_start_iter=False, train_phase_idx=0)
    task.base_model.train()
    task.called = []
    task.run_hooks = task.called.append
    return task


def weights(task) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.base_model.parameters()]).clone()


def test_a_step_changes_weights_and_bank_and_calls_the_hooks_in_their_order(task):
    before, rows = weights(task), task.base_loss.memory_bank.rows.clone()
    assert pirl_train_step(task) is task
    assert task.called == ["on_forward", "on_loss_and_meter", "on_backward", "on_update"]
    assert not torch.equal(weights(task), before) and task.num_updates == BATCH
    changed = (task.base_loss.memory_bank.rows != rows).any(1)
    assert sorted(changed.nonzero().flatten().tolist()) == sorted(task.last_batch.target.tolist())
    assert task.last_batch.loss.ndim == 0 and not task.last_batch.loss.requires_grad
    assert task.last_batch.input_wait > 0 and len(task.last_batch.sample["input"]) == 2


def test_a_batch_is_kept_for_the_stream_that_reads_it(task, monkeypatch):
    kept = []
    monkeypatch.setattr(train_step, "keep_until_used", kept.append)
    pirl_train_step(task)
    (batch,) = kept
    assert torch.equal(torch.as_tensor(batch["data_idx"][0]), task.last_batch.target)


def test_float16_scales_the_loss_for_backward_then_steps_and_adapts_the_scale(task):
    done = []

    def scale(loss):
        done.append(("scale", float(loss)))
        return 8 * loss

    def step(optimizer, where):
        done.append(("step", optimizer is task.optimizer, where))
        done.append(max(float(one.grad.abs().max()) for one in task.base_model.parameters()))

    before = weights(task)
    torch.manual_seed(0)
    task.amp_grad_scaler = SimpleNamespace(scale=scale, step=step, update=lambda: done.append("update"))
    pirl_train_step(task)
    (first, loss), (second, own, where), largest, last = done
    assert (first, second, own, where, last) == ("scale", "step", True, 0.0, "update")
    assert loss == pytest.approx(float(task.last_batch.loss)) and torch.equal(weights(task), before)
    assert largest > 0


def test_parts_of_a_batch_give_the_mean_loss_and_each_image_its_row(photo_folder, tmp_path):
    found = {}
    for parts in (1, 2):
        settings = f"config.TRAINER.PIRL_TRAIN_STEP.accumulation_steps={parts}"
        torch.manual_seed(0)
        task = prepared(photo_folder, tmp_path, FILLED, settings)
        task.init_distributed_data_parallel_model()
        task.max_iteration, task.run_hooks = 12, lambda name: None
        task.recreate_data_iterator("train", epoch=0, compute_start_iter=False, train_phase_idx=0)
        for module in task.base_model.modules():  # whose statistics would be of a part
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        rows = task.base_loss.memory_bank.rows.clone()
        pirl_train_step(task)
        gradients = torch.cat([one.grad.flatten() for one in task.base_model.parameters()])
        changed = (task.base_loss.memory_bank.rows != rows).any(1).sum()
        found[parts] = float(task.last_batch.loss), gradients, int(changed)
    assert found[1][2] == found[2][2] == BATCH
    assert found[2][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[2][1], found[1][1], rtol=1e-3, atol=1e-5)
