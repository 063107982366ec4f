"""One rank of a group of gloo processes that runs pirl_loss for a few steps; test_distributed.py starts it.

usage: gloo_loss.py RANK WORLD_SIZE RENDEZVOUS_FILE OUTPUT LIST_OF_SETTINGS(JSON)
"""

import json
import sys

import torch
import torch.distributed as dist

from pirl_plugin.objective import contrast
from pirl_plugin.objective.forms import register_form
from pirl_plugin.objective.loss import PIRLLoss
from pirl_plugin.training.monitor import bank_health

register_form("plain_nce")(contrast.nce)  # a form that has its definition alone

IMAGES, DIM, GLOBAL_BATCH, STEPS = 30, 8, 8, 4


def global_batch(step: int):
    """The same batch on every rank: two image rows repeated, one image not read."""
    generator = torch.Generator().manual_seed(step)
    image, pretext = torch.randn(2, GLOBAL_BATCH, DIM, generator=generator)
    target = torch.randint(IMAGES, (GLOBAL_BATCH,), generator=generator)
    target[5], target[2] = target[1], -1
    return image, pretext, target


def run(settings: dict, rank: int, world_size: int) -> dict:
    uneven = settings.pop("uneven", False)
    loss = PIRLLoss(num_train_samples=IMAGES, embedding_dim=DIM, num_negatives=16, **settings)
    bounds = torch.linspace(0, GLOBAL_BATCH, world_size + 1).long().tolist()
    if uneven and world_size == 2:
        bounds = [0, 6, GLOBAL_BATCH]
    values, gradients, reports = [], [], []
    for step in range(STEPS):
        image, pretext, target = global_batch(step)
        mine = slice(bounds[rank], bounds[rank + 1])
        image, pretext = image[mine].requires_grad_(), pretext[mine].requires_grad_()
        value = loss([image, pretext], target[mine])
        value.backward()
        values.append(value.detach())
        gradients.append((image.grad / world_size, pretext.grad / world_size))
        reports.append(dict(loss.report))
    bank = loss.memory_bank
    everyone = torch.arange(IMAGES)
    health = bank_health(bank)
    result = {"health": health, "values": values, "gradients": gradients, "reports": reports, "log_z": loss.log_z}
    return {**result, "bank": bank.lookup(everyone), "filled": bank.is_filled(everyone), "held": bank.rows.shape[0]}


def dense_only(collective):
    """gloo takes strided tensors, NCCL does not."""

    def checked(*arguments, **named):
        for given in arguments[:2]:
            for tensor in given if isinstance(given, list) else [given]:
                assert not isinstance(tensor, torch.Tensor) or tensor.is_contiguous(), tensor.stride()
        return collective(*arguments, **named)

    return checked


def refuse_what_nccl_refuses() -> None:
    for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast"):
        setattr(dist, name, dense_only(getattr(dist, name)))


def main() -> None:
    rank, world_size = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world_size)
    refuse_what_nccl_refuses()
    torch.save([run(settings, rank, world_size) for settings in json.loads(sys.argv[5])], f"{sys.argv[4]}.{rank}")
    dist.destroy_process_group()


main()
