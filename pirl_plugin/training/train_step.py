"""`pirl_train_step`: one iteration of VISSL's trainer, without waiting for the device."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vissl.hooks import SSLClassyHookFunctions as When
from vissl.trainer.train_steps import register_train_step
from vissl.trainer.train_steps.standard_train_step import construct_sample_for_model
from vissl.utils.activation_checkpointing import manual_gradient_all_reduce

from pirl_plugin.data.collator import IGNORED

Inputs = Tensor | dict[str, Tensor]


def split_batch(inputs: Inputs, target: Tensor, parts: int) -> Iterator[tuple[Inputs, Tensor, float]]:
    """Split a batch into parts, in order, keeping all views of an image in one part.

    Args:
        inputs: [B * V, 3, h, w] or several by name, the V views of an image one after the other.
        target: int64 [B].
        parts: how many; if B is smaller, copies of the last image, with the index IGNORED, fill up.

    Yields:
        inputs and target of a part and its share of the batch.
    """
    images = len(target)
    if images < parts:
        last = torch.full((parts - images,), images - 1, device=target.device)
        order = torch.cat([torch.arange(images, device=target.device), last])
        target = torch.cat([target, target.new_full((parts - images,), IGNORED)])
    else:
        order = None

    def part(views: Tensor, chosen: slice) -> Tensor:
        grouped = views.view(images, -1, *views.shape[1:])
        grouped = grouped if order is None else grouped[order]
        return grouped[chosen].flatten(0, 1)

    bounds = np.linspace(0, len(target), parts + 1).round().astype(int)
    for start, end in itertools.pairwise(bounds):
        chosen = slice(int(start), int(end))
        inputs_of_part = (
            {key: part(views, chosen) for key, views in inputs.items()}
            if isinstance(inputs, dict)
            else part(inputs, chosen)
        )
        yield inputs_of_part, target[chosen], max(0, min(end, images) - start) / images


def keep_until_used(value: Any) -> None:
    """Tell the allocator that this stream reads a batch that VISSL's loader copied to the GPU on another stream.

    Otherwise a later batch might overwrite its memory before the step that reads it has run.
    """
    if isinstance(value, Tensor):
        if value.is_cuda:
            value.record_stream(torch.cuda.current_stream(value.device))
    elif isinstance(value, (list, tuple)):
        for item in value:
            keep_until_used(item)
    elif isinstance(value, dict):
        keep_until_used(list(value.values()))


def channels_last(inputs: Inputs) -> Inputs:
    """The same views with channels last in memory."""
    if isinstance(inputs, dict):
        return {key: views.contiguous(memory_format=torch.channels_last) for key, views in inputs.items()}
    return inputs.contiguous(memory_format=torch.channels_last)


@register_train_step("pirl_train_step")
def pirl_train_step(task: Any) -> Any:
    """One iteration of a `pirl_task` with `pirl_loss`: read a batch, forward, loss, backward, optimiser, hooks.

    Like VISSL's standard step, but precision, memory format and accumulation follow TRAINER.PIRL_TRAIN_STEP; the loss
    is always computed in float32; and nothing waits for the device, except float16's loss scaling: losses stay there
    until `pirl_plugin.training.progress` reads those of LOG_FREQUENCY steps at once.
    """
    settings = task.step_settings
    task.last_batch = SimpleNamespace()
    started = time.perf_counter()
    batch = next(task.data_iterator)
    task.last_batch.input_wait = time.perf_counter() - started
    keep_until_used(batch)
    sample = construct_sample_for_model(batch, task)
    inputs, target = task.prepare_inputs(sample), sample["target"]
    if settings.channels_last:
        inputs = channels_last(inputs)
    task.last_batch.sample, task.last_batch.target = sample, target

    task.optimizer.zero_grad()
    total, parts = None, settings.accumulation_steps
    manual = task.enable_manual_gradient_reduction
    task.base_loss.hold_updates(parts > 1)
    for number, (inputs_of_part, indices, share) in enumerate(split_batch(inputs, target, parts)):
        last = number == parts - 1
        distributed = hasattr(task.model, "no_sync")
        with task.model.no_sync() if distributed and (manual or not last) else contextlib.nullcontext():
            with torch.autocast(task.device.type, settings.autocast_dtype, enabled=bool(settings.autocast_dtype)):
                output = task.model(inputs_of_part)
            output = output[0] if len(output) == 1 else output
            task.last_batch.model_output = output
            if last:
                task.run_hooks(When.on_forward.name)
            loss = task.loss(output, indices)
            total = loss.detach() * share if total is None else total + loss.detach() * share
            loss = loss * share
            (loss if task.amp_grad_scaler is None else task.amp_grad_scaler.scale(loss)).backward()
    task.base_loss.hold_updates(False)
    if manual:
        manual_gradient_all_reduce(task.model)
    task.last_batch.loss = total
    task.run_hooks(When.on_loss_and_meter.name)
    task.run_hooks(When.on_backward.name)

    if task.amp_grad_scaler is None:
        task.optimizer.step(where=task.where)
    else:
        task.amp_grad_scaler.step(task.optimizer, where=task.where)
        task.amp_grad_scaler.update()
    task.run_hooks(When.on_update.name)
    task.num_updates += task.get_global_batchsize()
    return task
