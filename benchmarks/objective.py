"""Compares the loss and its bank with VISSL's own: ImageNet's size, both terms, forward to bank update."""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from contrast_bandwidth import bandwidth, rates
from measuring import (
    alternate,
    machine,
    median_ms,
    peak_extra_memory,
    print_table,
    where_a_run_computes,
    write_json,
)
from vissl.config import AttrDict
from vissl.losses.nce_loss import NCELossWithMemory

from pirl_plugin.objective.loss import PIRLLoss

VISSL_CONFIG = {
    "loss_type": "nce",
    "norm_embedding": True,
    "temperature": 0.07,
    "loss_weights": [0.5, 0.5],
    "norm_constant": -1,
    "update_mem_with_emb_index": 1,  # its outputs are [patches, images]
    "ignore_index": -1,
    "negative_sampling_params": {"type": "random"},
    "memory_params": {"memory_size": -1, "embedding_dim": 128, "momentum": 0.5, "norm_init": True},
}


def vissl_loss(num_rows: int, num_negatives: int) -> NCELossWithMemory:
    """VISSL's own loss, with the settings of its PIRL configs."""
    config = copy.deepcopy(VISSL_CONFIG)
    config["negative_sampling_params"]["num_negatives"] = num_negatives
    config["memory_params"]["update_mem_on_forward"] = False
    config["num_train_samples"] = num_rows
    return NCELossWithMemory(AttrDict(config))


def stepper(loss, embeddings: list[torch.Tensor], target: torch.Tensor):
    """A function that runs forward, backward and bank update once."""

    def step() -> None:
        for embedding in embeddings:
            embedding.grad = None
        loss(list(embeddings), target).backward()

    return step


def measure(num_rows: int, num_negatives: int, batch: int, repeats: int, dim: int = 128) -> dict:
    """Construction time, time per step and peak extra memory of each variant."""
    where = where_a_run_computes()
    torch.manual_seed(0)
    image, pretext = (each.requires_grad_() for each in torch.randn(2, batch, dim).to(where).unbind())
    target = torch.randperm(num_rows)[:batch].to(where)
    built, construction = {}, {}

    def build(name: str, make) -> None:
        print(f"building {name} ...", flush=True)
        start = time.perf_counter()
        built[name] = make().to(where)
        construction[name] = time.perf_counter() - start

    build("VISSL", lambda: vissl_loss(num_rows, num_negatives))
    shared_arguments = {"num_train_samples": num_rows, "num_negatives": num_negatives, "embedding_dim": dim}
    for mode in ("per_image", "shared"):
        for form in ("nce", "npid"):
            build(
                f"{mode}, {form}",
                lambda m=mode, f=form: PIRLLoss(
                    negatives=m, contrast=f, batch_size_per_replica=batch, report_frequency=100, **shared_arguments
                ),
            )
    steps = {
        name: stepper(loss, [pretext, image] if name == "VISSL" else [image, pretext], target)
        for name, loss in built.items()
    }
    seconds = alternate(steps, repeats)
    memory = {name: peak_extra_memory(step) for name, step in steps.items()}
    return {
        "settings": {"rows": num_rows, "negatives": num_negatives, "batch": batch, "dim": dim, "repeats": repeats},
        "construction_seconds": construction,
        "step_seconds": seconds,
        "peak_extra_bytes": memory,
    }


def scaling(num_negatives: int, batch: int, repeats: int, sizes: list[int], dim: int = 128) -> dict[str, list[float]]:
    """Seconds per step of `shared` for banks of several sizes."""
    where = where_a_run_computes()
    torch.manual_seed(0)
    embeddings = [e.requires_grad_() for e in torch.randn(2, batch, dim).to(where).unbind()]
    steps = {}
    for size in sizes:
        loss = PIRLLoss(
            num_train_samples=size,
            num_negatives=num_negatives,
            embedding_dim=dim,
            negatives="shared",
            batch_size_per_replica=batch,
            report_frequency=100,
        )
        steps[str(size)] = stepper(loss.to(where), embeddings, torch.randperm(size)[:batch].to(where))
    return alternate(steps, repeats, warm_ups=3)


def report(results: dict) -> None:
    """Print the tables of `measure` and `scaling`."""
    vissl = median_ms(results["step_seconds"]["VISSL"])
    memory = results["peak_extra_bytes"]
    rows = [["loss", "build s", "step ms", "faster", "peak extra MB", "of VISSL's"]]
    for name, seconds in results["step_seconds"].items():
        milliseconds, extra = median_ms(seconds), memory[name]
        rows.append(
            [
                name,
                f"{results['construction_seconds'][name]:.2f}",
                f"{milliseconds:.1f}",
                f"{vissl / milliseconds:.1f}x",
                "-" if extra is None else f"{extra / 2**20:.0f}",
                "-" if extra is None else f"{extra / memory['VISSL']:.3f}",
            ]
        )
    print_table("Objective: both terms, forward + backward + bank update; medians", rows)
    if "bandwidth" in results:
        measured = results["bandwidth"]
        found = rates(measured)
        rows = [["per_image", "GB/s of rows", "of a copy's"]]
        rows += [[name, f"{rate / 1e9:.0f}", f"{rate / found['copy']:.2f}"] for name, rate in found.items()]
        print_table(f"Rows read once, B = {measured['batch']}, {measured['device']}", rows)
    if "shared_by_rows" in results:
        rows = [["rows", "step ms"]]
        rows += [[f"{int(size):,}", f"{median_ms(s):.1f}"] for size, s in results["shared_by_rows"].items()]
        print_table("`shared` by the size of the bank", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--negatives", type=int, default=32_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/objective.json"))
    options = parser.parse_args()
    print(machine())
    results = measure(options.rows, options.negatives, options.batch, options.repeats)
    if options.sizes:
        results["shared_by_rows"] = scaling(options.negatives, options.batch, options.repeats, options.sizes)
    if torch.cuda.is_available():
        results["bandwidth"] = bandwidth(options.rows, options.negatives, 256, options.repeats, "cuda")
    report(results)
    write_json(options.output, results)


if __name__ == "__main__":
    main()
