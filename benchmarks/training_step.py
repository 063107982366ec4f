"""A full training step compared with VISSL's own PIRL (its config, step function and loss), on the same network."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from classy_vision.generic.util import recursive_copy_to_gpu
from classy_vision.losses import build_loss
from input_pipeline import TRANSFORM, make_photos, reader
from measuring import alternate, machine, median_ms, print_table, where_a_run_computes, write_json
from vissl.trainer.train_steps import get_train_step
from vissl.trainer.train_steps.standard_train_step import construct_sample_for_model
from vissl.trainer.trainer_main import build_task

from pirl_plugin.launch.launcher import compose
from pirl_plugin.training.train_step import channels_last

STEP = "config.TRAINER.PIRL_TRAIN_STEP"
# VISSL's loss is the NPID form.
OURS = [
    "config=pretrain/pirl/jigsaw_8node",
    "config.LOSS.pirl_loss.contrast=npid",
    "config.LOSS.pirl_loss.negatives=shared",
]
VARIANTS = {
    "VISSL, float32": ["config=pretrain/pirl/pirl_jigsaw_4node_resnet50"],
    "float32": OURS,
    "float32, per_image": OURS[:2],
    "bfloat16": [*OURS, f"{STEP}.precision=bfloat16"],
    "bfloat16, augmented on the device": [*OURS, f"{STEP}.precision=bfloat16", f"+{TRANSFORM}.augment_on=device"],
}


class Batches:
    """A data iterator that repeats one batch."""

    def __init__(self, batch: dict[str, Any], device: str) -> None:
        self.batch, self.device = batch, device

    def __next__(self) -> dict[str, Any]:
        return recursive_copy_to_gpu(self.batch) if self.device == "gpu" else dict(self.batch)

    def __len__(self) -> int:
        return 10**9


def build(overrides: list[str], photos: Path, batch: int, rows: int, device: str) -> tuple[Any, Callable[[], None]]:
    """A task of VISSL's trainer, and a function that runs one step."""
    data = [
        f"config.DATA.TRAIN.DATA_PATHS=[{photos}]",
        f"config.DATA.TRAIN.BATCHSIZE_PER_REPLICA={batch}",
        f"config.MACHINE.DEVICE={device}",
    ]
    config = compose([*overrides, *data], check=False)
    config.OPTIMIZER.param_schedulers.lr.start_value = 0.001  # the same images are repeated
    task = build_task(config)
    task.train, task.phase_idx, task.train_phase_idx, task.phases = True, 0, 0, task._build_phases()
    task.base_model = task._build_model().to(task.device).train()
    task.meters, task.hooks, task.perf_stats = [], [], None
    task.optimizer, task.optimizer_schedulers = task._build_optimizer(), task._build_optimizer_schedulers()
    task.prepare_optimizer()
    loss = config.LOSS[config.LOSS.name]
    loss["num_train_samples"], loss["name"] = rows, config.LOSS.name
    task.base_loss = build_loss(loss).to(task.device)
    train = config.DATA.TRAIN
    task.data_and_label_keys = {"input": train.INPUT_KEY_NAMES, "target": train.TARGET_KEY_NAMES}
    task.datasets = {"train": SimpleNamespace(get_global_batchsize=lambda: batch)}
    task.data_iterator = Batches(reader([*overrides, *data], photos, batch)(), device)
    function = get_train_step(config.TRAINER.TRAIN_STEP_NAME)

    def step() -> None:
        task.losses.clear()
        function(task)

    return task, step


def parts(task: Any) -> dict[str, Callable[[], object]]:
    """The parts of a step, to time separately: the rest is the optimiser and overhead."""
    sample = construct_sample_for_model(next(task.data_iterator), task)
    target, dtype = sample["target"], task.step_settings.autocast_dtype

    def network() -> list[torch.Tensor]:
        with torch.autocast(task.device.type, dtype, enabled=dtype is not None):
            return task.base_model(channels_last(task.prepare_inputs(sample)))

    outputs = [output.detach().requires_grad_() for output in network()]
    return {
        "finish the views": lambda: channels_last(task.prepare_inputs(sample)),
        "and the network, forward": network,
        "and its backward": lambda: sum(output.float().sum() for output in network()).backward(),
        "loss, both ways, and bank": lambda: task.base_loss(outputs, target).backward(),
        "optimiser": lambda: task.optimizer.step(where=task.where),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=None, help="default: 8 on a CPU, 256 on a GPU")
    parser.add_argument("--rows", type=int, default=1_281_167, help="rows of the memory bank")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training_step.json"))
    options = parser.parse_args()
    device = "gpu" if where_a_run_computes().type == "cuda" else "cpu"
    batch = options.batch or (256 if device == "gpu" else 8)
    print(machine())
    tasks, steps, first, memory = {}, {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        make_photos(photos / "all", 2 * batch)
        for name, overrides in VARIANTS.items():
            print(f"building {name} ...", flush=True)
            tasks[name], steps[name] = build(overrides, photos, batch, options.rows, device)
        for name, step in steps.items():
            if device == "gpu":
                torch.cuda.reset_peak_memory_stats()
            step()
            first[name] = float(tasks[name].last_batch.loss)
            if device == "gpu":
                memory[name] = torch.cuda.max_memory_allocated()
        seconds = alternate(steps, options.repeats)
        last = {name: float(task.last_batch.loss) for name, task in tasks.items()}
        shares = {name: alternate(parts(tasks[name]), 3) for name in ("float32", "bfloat16")}
    if not all(np.isfinite([*first.values(), *last.values()])):
        raise RuntimeError(f"A loss is not finite: {first}, {last}")
    vissl = median_ms(seconds["VISSL, float32"])
    rows = [["step", "ms", "images/s", "faster", "first loss", "last", *(["peak GB"] if memory else [])]]
    for name, values in seconds.items():
        one = median_ms(values)
        row = [name, f"{one:.0f}", f"{1000 * batch / one:.1f}", f"{vissl / one:.2f}x"]
        row += [f"{first[name]:.2f}", f"{last[name]:.2f}"]
        rows.append([*row, *([f"{memory[name] / 1e9:.1f}"] if memory else [])])
    print_table(f"ResNet-50, 224 + 9x64, B = {batch}, |D| = {options.rows:,}, N = 32,000; medians", rows)
    rows = [
        ["part, ms", *shares],
        *([part, *(f"{median_ms(v[part]):.0f}" for v in shares.values())] for part in shares["float32"]),
    ]
    print_table("Where a step's time goes", rows)
    settings = {"batch": batch, "rows": options.rows, "device": device}
    results = {
        "seconds": seconds,
        "first_losses": first,
        "last_losses": last,
        "peak_bytes": memory,
        "part_seconds": shares,
    }
    write_json(options.output, {"settings": settings, **results})


if __name__ == "__main__":
    main()
