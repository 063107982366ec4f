"""sharded_memory_bank: calculated memory and traffic, and real runs over gloo ranks on this machine.

python benchmarks/sharded_bank.py                            # 100 million rows, planned for 8 and 64 ranks
python benchmarks/sharded_bank.py --run 10_000_000 --ranks 4   # real processes: memory per rank, bytes per step
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from measuring import machine, print_table, status_bytes, write_json

from pirl_plugin.objective.loss import PIRLLoss


def plan(rows: int, ranks: int, batch: int, negatives: str, dim: int = 128, terms: int = 2, row_bytes: int = 4) -> dict:
    """What a rank stores, and what it passes to collective operations in a step.

    Args:
        batch: images of all ranks.
        row_bytes: 4 for float32, 2 for bfloat16.

    Returns:
        rows and bytes per rank, bytes of a checkpoint's shards, and, by purpose, the bytes of the tensors that a rank
        passes to collective operations (a ring moves up to twice as much over each link); nce, no report.
    """
    rows_each = math.ceil(rows / ranks)
    of_a_rank = batch // ranks
    traffic = {
        "indices gathered, twice": 2 * 8 * of_a_rank,
        "queries gathered": 4 * terms * of_a_rank * dim,
        "embeddings for the update gathered": 4 * of_a_rank * dim,
        "positives summed": row_bytes * batch * dim,
        "sums of the contrast": 4 * terms * batch * 5,
        "gradients summed": 4 * terms * batch * dim,
        "number of images": 8,
    }
    return {
        "negatives": negatives,
        "ranks": ranks,
        "rows a rank": rows_each,
        "bank bytes a rank": rows_each * (row_bytes * dim + 1),
        "shard bytes in all": rows * (row_bytes * dim + 1),
        "traffic bytes a step": sum(traffic.values()),
        "traffic": traffic,
    }


class CountedBytes:
    """While active, counts the bytes that this process passes to collective operations."""

    names = ("all_reduce", "all_gather_into_tensor")

    def __enter__(self) -> CountedBytes:
        self.total, self.originals = 0, {name: getattr(dist, name) for name in self.names}
        for name, original in self.originals.items():
            setattr(dist, name, self._counting(original))
        return self

    def _counting(self, original):
        def count(*tensors, **options):
            sent = tensors[-1]  # all_reduce(tensor), all_gather_into_tensor(output, input)
            self.total += sent.numel() * sent.element_size()
            return original(*tensors, **options)

        return count

    def __exit__(self, *_: object) -> None:
        for name, original in self.originals.items():
            setattr(dist, name, original)


def worker(rank: int, ranks: int, meet: str, output: str, settings: dict) -> None:
    """One rank: builds the bank, runs some steps, and writes its measurements."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=ranks)
    before = status_bytes("VmRSS")
    start = time.perf_counter()
    each = settings["batch"] // ranks
    loss = PIRLLoss(
        settings["rows"],
        negatives=settings["negatives"],
        num_negatives=settings["num_negatives"],
        batch_size_per_replica=each,
        memory_bank={"name": "sharded_memory_bank", "dtype": settings["dtype"]},
        report_frequency=10**9,
    )
    built, held = time.perf_counter() - start, status_bytes("VmRSS") - before
    seconds, sent = [], 0
    for step in range(settings["steps"] + 1):
        generator = torch.Generator().manual_seed(step * ranks + rank)
        image, pretext = torch.randn(2, each, 128, generator=generator).unbind()
        target = torch.randint(settings["rows"], (each,), generator=generator)
        dist.barrier()
        start = time.perf_counter()
        with CountedBytes() as counted:
            loss([image.requires_grad_(), pretext.requires_grad_()], target).backward()
        if step:  # the first warms up, and makes the report
            seconds.append(time.perf_counter() - start)
            sent = counted.total
    measured = {
        "seconds to build": built,
        "bank bytes a rank": held,
        "peak bytes beyond the bank": status_bytes("VmHWM") - before - held,
        "seconds a step": sorted(seconds)[len(seconds) // 2],
        "traffic bytes a step": sent,
    }
    Path(f"{output}.{rank}").write_text(json.dumps(measured))
    dist.destroy_process_group()


def run(ranks: int, settings: dict) -> list[dict]:
    """Run `worker` in `ranks` processes; returns the measurements of each."""
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/meet", f"{folder}/out"]
        command = [sys.executable, __file__, "--worker"]
        processes = [subprocess.Popen([*command, json.dumps([rank, ranks, *files, settings])]) for rank in range(ranks)]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise RuntimeError("A rank failed; see above.")
        return [json.loads(Path(f"{files[1]}.{rank}").read_text()) for rank in range(ranks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000, help="rows of the plan")
    parser.add_argument("--batch", type=int, default=1024, help="batch of all ranks in the plan")
    parser.add_argument("--run", type=int, help="rows of a real run")
    parser.add_argument("--ranks", type=int, nargs="*", default=None)
    parser.add_argument("--run-batch", type=int, default=32)
    parser.add_argument("--num-negatives", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(*json.loads(options.worker))
    print(machine())
    results: dict = {"plan": []}
    table = [["dtype", "ranks", "rows per rank", "GB per rank", "GB in shard files", "MB per rank and step"]]
    for dtype, row_bytes in (("float32", 4), ("bfloat16", 2)):
        for ranks in options.ranks or [8, 64]:
            planned = plan(options.run or options.rows, ranks, options.batch, "shared", row_bytes=row_bytes)
            results["plan"].append({"dtype": dtype, **planned})
            bank, shards = planned["bank bytes a rank"] / 1e9, planned["shard bytes in all"] / 1e9
            sent = planned["traffic bytes a step"] / 1e6
            table.append(
                [dtype, str(ranks), f"{planned['rows a rank']:,}", f"{bank:.2f}", f"{shards:.1f}", f"{sent:.2f}"]
            )
    print_table(f"Planned: {options.run or options.rows:,} rows, batch {options.batch}, d = 128", table)
    if options.run:
        results["measured"] = []
        table = [
            [
                "dtype",
                "negatives",
                "ranks",
                "build s",
                "bank GB per rank",
                "peak beyond MB",
                "ms per step",
                "MB per step",
            ]
        ]
        for ranks in options.ranks or [4]:
            for dtype, negatives in (("float32", "shared"), ("float32", "per_image"), ("bfloat16", "shared")):
                settings = {
                    "rows": options.run,
                    "batch": options.run_batch,
                    "negatives": negatives,
                    "num_negatives": options.num_negatives,
                    "dtype": dtype,
                    "steps": options.steps,
                }
                measured = run(ranks, settings)
                planned = plan(
                    options.run, ranks, options.run_batch, negatives, row_bytes=2 if dtype == "bfloat16" else 4
                )
                results["measured"].append({"ranks": ranks, **settings, "by rank": measured, "plan": planned})
                worst = {key: max(m[key] for m in measured) for key in measured[0]}
                table.append(
                    [
                        dtype,
                        negatives,
                        str(ranks),
                        f"{worst['seconds to build']:.1f}",
                        f"{worst['bank bytes a rank'] / 1e9:.2f}",
                        f"{worst['peak bytes beyond the bank'] / 1e6:.0f}",
                        f"{1000 * worst['seconds a step']:.0f}",
                        f"{worst['traffic bytes a step'] / 1e6:.3f} (plan {planned['traffic bytes a step'] / 1e6:.3f})",
                    ]
                )
        print_table(f"Measured: {options.run:,} rows, batch {options.run_batch}, gloo on this machine", table)
    if options.output:
        write_json(options.output, results)
    return None


if __name__ == "__main__":
    main()
